"""Messages of a broker become frames, or are refused with a reason; what a message holds decides its key."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.domain import Array
from edged.errors import FrameRejected
from edged.feeder_config import MqttTopic
from edged.feeders.daemon import MAX_KEY
from edged.feeders.message import Message, frame_of
from edged.feeders.mqtt import rule_of

SHAPE = (1, 2, 2)


def rule(payload: str = "json", key: str = "digest", **more: Any) -> MqttTopic:
    return msgspec.convert({"filter": "plant/#", "payload": payload, "key": key} | more, MqttTopic)


def message(payload: bytes, **properties: str) -> Message:
    return Message("plant/1", payload, properties)


def array(one: MqttTopic, payload: bytes) -> Array:
    content = frame_of("yard", one, SHAPE, message(payload))[1]
    assert content.format == "npy"
    made: Array = np.load(io.BytesIO(content.data))
    return made


def test_json_numbers_become_an_array_in_the_models_shape() -> None:
    made = array(rule(), b"[1, 2.5, -3, 4]")
    assert (made.dtype.name, made.shape, made.ravel().tolist()) == ("float32", SHAPE, [1, 2.5, -3, 4])
    assert array(rule(), b"[[1, 2], [3, 4]]").shape == (2, 2)  # nested numbers say their shape themselves
    assert array(rule(), b"[1, 2, 3]").shape == (3,)  # the daemon refuses it by name, and the stream says so
    assert array(rule(shape=[4, 1]), b"[1, 2, 3, 4]").shape == (4, 1)
    assert array(rule(values="v"), b'{"v": [1, 2, 3, 4], "id": 7}').shape == SHAPE
    assert array(rule(dtype="uint8"), b"[0, 255, 1, 2]").dtype == np.uint8


def test_raw_numbers_are_little_endian() -> None:
    values = np.array([1, -2, 300, 4], "<i2")
    made = array(rule("raw", dtype="int16"), values.tobytes())
    assert (made.shape, made.ravel().tolist()) == (SHAPE, [1, -2, 300, 4])


def test_files_travel_as_they_are() -> None:
    for kind in ("png", "jpg", "npy", "bs2", "dat", "aedat"):
        content = frame_of("yard", rule(kind), SHAPE, message(b"anything"))[1]
        assert (content.format, content.data) == (kind, b"anything")


BAD: list[tuple[MqttTopic, bytes, str]] = [
    (rule(), b"", "not JSON"),
    (rule(), b"{", "not JSON"),
    (rule(), b"\xff", "not JSON"),
    (rule(), b"[" * 100_000, "not JSON"),
    (rule(), b"[1, NaN]", "not JSON"),
    (rule(), b"7", "no array of numbers"),
    (rule(), b"[]", "something else than numbers"),
    (rule(), b'["1"]', "something else than numbers"),
    (rule(), b"[true]", "something else than numbers"),
    (rule(), b"[null]", "something else than numbers"),
    (rule(), b"[{}]", "something else than numbers"),
    (rule(), b"[[1, 2], [3]]", "not nested evenly"),
    (rule(), b"[1e39]", "beyond what float32 holds"),
    (rule(), b"[" + b"9" * 400 + b"]", "something else|beyond"),
    (rule(values="v"), b"[1]", "no JSON object with 'v'"),
    (rule(values="v"), b'{"w": [1]}', "no JSON object with 'v'"),
    (rule(dtype="uint8"), b"[256]", "whole numbers from 0 to 255"),
    (rule(dtype="uint8"), b"[1.5]", "whole numbers"),
    (rule(shape=[3]), b"[1, 2]", "do not fill the shape"),
    (rule("raw"), b"123", "not a whole number of float32"),
    (rule("raw"), b"", "not a whole number"),
    (rule("raw", shape=[3]), b"12345678", "do not fill the shape"),
    (rule(key="field:id"), b"[1]", "no field 'id'"),
    (rule(key="field:id"), b'{"id": ""}', "no field 'id'"),
    (rule(key="field:id"), b'{"id": true}', "no field 'id'"),
    (rule(key="property:id"), b"[1]", "no property 'id'"),
]


@pytest.mark.parametrize(("one", "payload", "reason"), BAD)
def test_a_bad_payload_is_refused_with_its_reason(one: MqttTopic, payload: bytes, reason: str) -> None:
    with pytest.raises(FrameRejected, match=reason):
        frame_of("yard", one, SHAPE, message(payload))


def key(how: str, payload: bytes = b'{"id": 7, "v": [1, 2, 3, 4]}', **properties: str) -> str:
    return frame_of("yard", rule(key=how, values="v"), SHAPE, message(payload, **properties))[0]


def test_the_same_message_has_the_same_key_and_another_has_another() -> None:
    assert key("field:id") == key("field:id", b'{"id": "7", "v": [0]}') == "yard:plant/1:7"
    assert key("property:n", n="a") == "yard:plant/1:a" != key("property:n", n="b")
    assert key("digest") == key("digest") != key("digest", b'{"v": [1]}')
    assert key("each") != key("each")


def test_a_key_is_always_one_that_the_daemon_takes() -> None:
    for value in ("x" * 300, "a#b", "new\nline", "\x00"):
        made = key("property:n", n=value)
        assert len(made) <= MAX_KEY and made.isprintable() and "#" not in made
    assert key("property:n", n="a#b") != key("property:n", n="a#c")


def test_the_first_rule_that_matches_a_topic_holds() -> None:
    rules = [rule(filter="plant/1"), rule(filter="plant/+/raw"), rule(filter="#")]
    assert rule_of(rules, "plant/1") is rules[0]
    assert rule_of(rules, "plant/2/raw") is rules[1]
    assert rule_of(rules, "other") is rules[2]
    assert rule_of(rules[:2], "other") is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["json", "raw"]), st.sampled_from(["digest", "each", "property:id"]))
def test_fuzzed_payloads_are_frames_or_refused_and_nothing_else(payload: bytes, kind: str, how: str) -> None:
    try:
        made, content = frame_of("yard", rule(kind, how), SHAPE, message(payload, id="1"))
    except FrameRejected as error:
        assert error.message
    else:
        assert made and (kind == "raw" or np.isfinite(np.load(io.BytesIO(content.data))).all())
