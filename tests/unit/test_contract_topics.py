"""Topics: what is built can be parsed back, and no name can widen a topic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_sync.contract.topics import NAMED, Address, Channel, ContractError, DeviceTopics, parse

NAMES = st.text(
    st.characters(blacklist_categories=("Cc", "Cs", "Cn"), blacklist_characters="/+#$"), min_size=1, max_size=40
)


@given(root=NAMES, fleet=NAMES, device=NAMES, name=NAMES)
def test_every_topic_parses_back_to_what_it_was_built_from(root: str, fleet: str, device: str, name: str) -> None:
    topics = DeviceTopics(root, fleet, device)
    built = {
        Channel.STATUS: topics.status,
        Channel.INFO: topics.info,
        Channel.HEALTH: topics.health,
        Channel.ACK: topics.ack,
        Channel.RESULT: topics.result(name),
        Channel.EVENT: topics.event(name),
    }
    assert set(built) == set(Channel)
    for channel, topic in built.items():
        assert parse(topic) == Address(root, fleet, device, channel, name if channel in NAMED else "")


@pytest.mark.parametrize(
    "bad", ["", "a/b", "+", "a+", "#", "a#", "$SYS", "a\x00", "tab\t", "\x7f", "\ud800", "\uffff", "x" * 256]
)
def test_a_name_that_is_not_one_topic_level_is_refused_everywhere(bad: str) -> None:
    for arguments in ((bad, "f", "d"), ("r", bad, "d"), ("r", "f", bad)):
        with pytest.raises(ContractError):
            DeviceTopics(*arguments)
    topics = DeviceTopics("r", "f", "d")
    for build in (topics.result, topics.event):
        with pytest.raises(ContractError):
            build(bad)


@pytest.mark.parametrize(
    ("topic", "said"),
    [
        ("", "is not <root>"),
        ("edged/v1/fleet/device", "is not <root>"),
        ("edged/v2/fleet/device/status", "'v2'"),
        ("edged/v1//device/status", "fleet '' is empty"),
        ("edged/v1/fleet/device/nonsense", "'nonsense' is none of"),
        ("edged/v1/fleet/device/status/more", "takes no name"),
        ("edged/v1/fleet/device/result", "takes one name"),
        ("edged/v1/fleet/device/result/a/b", "takes one name"),
        ("edged/v1/fleet/device/result/", "name '' is empty"),
        ("edged/v1/+/device/status", "'+'"),
    ],
)
def test_a_topic_that_is_not_ours_is_refused_with_the_reason(topic: str, said: str) -> None:
    with pytest.raises(ContractError) as error:
        parse(topic)
    assert said in str(error.value)
