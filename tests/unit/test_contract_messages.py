"""Messages are read strictly, and a result event proves its own rows."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_sync.contract.messages import (
    Ack,
    Alarm,
    AlarmEvent,
    Gap,
    Health,
    Info,
    Message,
    Predecessor,
    Presence,
    Row,
    decode,
    encode,
    rfc3339,
)
from cloud_sync.contract.results import PAYLOAD_LIMIT_BYTES, Origin, Part, encode_row, pack, unpack
from cloud_sync.contract.topics import ContractError
from edged.status import LinkFacts

ORIGIN = Origin("yard", "cam-1", "e1", Predecessor(epoch="e0", last=7, reason="restored"), "digits")
TIME = "2025-11-23T08:30:00.000001Z"

MESSAGES: list[Message] = [
    Presence(device="d", session="s", state="online", reason="connected", version="0.1.0", time=TIME),
    Presence(device="d", session="s", state="offline", reason="lost", version="0.1.0"),
    Info(device="d", session="s", version="0.1.0", machine="Linux 6.1 x86_64"),
    Health(device="d", session="s", time=TIME, link=LinkFacts(state="connected")),
    Ack(store="db", epoch="e1", acks={"digits": 3}),
    AlarmEvent(
        specversion="1.0",
        id="1",
        source="/edged/f/d",
        type="edged.alarm.v1",
        subject="ack",
        datacontenttype="application/json",
        data=Alarm(device="d", session="s", name="ack", severity="warning", message="m"),
    ),
]


def row(seq: int, body: bytes = b'{"label":"7"}', key: str | None = "frame-1") -> bytes:
    return encode_row(make_row(seq, body, key))


def make_row(seq: int, body: bytes, key: str | None) -> Row:
    return Row(
        seq=seq,
        kind="result",
        source="spool",
        key=key,
        count=1,
        time=TIME,
        clock_quality="synced",
        latency_us=12.5,
        model="digits@1.0.0",
        digest="0" * 64,
        engine="onnxruntime",
        result=msgspec.Raw(body),
    )


def event(**changes: Any) -> dict[str, Any]:
    gap = Gap(first=3, last=5, reason="shed")
    packed = pack(ORIGIN, Part(1, 6, (row(1), row(2), row(6)), (gap,), TIME), historical=True)
    decoded: dict[str, Any] = json.loads(packed)
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        inner = decoded
        for parent in parents:
            inner = inner[parent]
        inner[leaf] = value
    return decoded


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: Message) -> None:
    assert decode(type(message), encode(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@given(garbage=st.binary(max_size=60))
def test_garbage_is_refused_with_a_clear_error(message: Message, garbage: bytes) -> None:
    with pytest.raises(ContractError, match=type(message).__name__):
        decode(type(message), garbage)


def test_an_unknown_field_or_state_is_refused_by_name() -> None:
    with pytest.raises(ContractError, match="surprise"):
        decode(Ack, b'{"store":"db","epoch":"e","acks":{},"surprise":1}')
    with pytest.raises(ContractError, match="state"):
        decode(Presence, b'{"device":"d","session":"s","state":"asleep","reason":"lost","version":"1"}')
    with pytest.raises(ContractError, match="acks"):
        decode(Ack, b'{"store":"db","epoch":"e","acks":{"digits":-1}}')


def test_an_event_is_one_cloudevent_that_json_tools_can_read() -> None:
    read = event()
    assert {
        key: read[key] for key in ("specversion", "type", "id", "source", "subject", "time", "datacontenttype")
    } == {
        "specversion": "1.0",
        "type": "edged.results.v1",
        "id": "e1/digits/1-6",
        "source": "/edged/yard/cam-1",
        "subject": "digits",
        "time": TIME,
        "datacontenttype": "application/json",
    }
    data = read["data"]
    assert data["predecessor"] == {"epoch": "e0", "last": 7, "reason": "restored"}
    assert data["gaps"] == [{"first": 3, "last": 5, "reason": "shed", "upper_bound": False}]
    assert [r["seq"] for r in data["rows"]] == [1, 2, 6]
    assert data["rows"][0]["result"] == {"label": "7"}, "the body is JSON, not a string"
    assert data["historical"] is True


def test_the_digest_can_be_checked_without_knowing_json() -> None:
    part = Part(1, 1, (row(1, b'{"rows":"}}", "x": [1e-5, 1.0]}', key='"rows":[]}}'),), ())
    payload = pack(ORIGIN, part, historical=False)
    assert unpack(payload).data.rows[0].key == '"rows":[]}}'
    cut = payload[payload.index(b'"rows":') + 7 : -2]
    assert hashlib.sha256(cut).hexdigest() == json.loads(payload)["data"]["digest"]


def test_the_digest_can_be_checked_in_a_shell_as_the_documentation_says() -> None:
    text = (Path(__file__).parents[2] / "docs" / "mqtt.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"`(x=.*sha256sum)`", text)
    payload = pack(ORIGIN, Part(1, 2, (row(1), row(2)), ()), historical=False)
    done = subprocess.run(["bash", "-c", f"event=$1; {snippet}", "-", payload], capture_output=True, check=True)
    assert done.stdout.split()[0].decode() == json.loads(payload)["data"]["digest"]


def test_the_same_rows_have_the_same_id_whenever_they_are_sent() -> None:
    part = Part(4, 4, (row(4),), ())
    live, later = (json.loads(pack(ORIGIN, part, historical=flag)) for flag in (False, True))
    assert live["id"] == later["id"]
    assert live["data"]["digest"] == later["data"]["digest"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"type": "edged.results.v2"}, "type"),
        ({"specversion": "0.3"}, "specversion"),
        ({"subject": "other"}, "subject"),
        ({"id": "e1/digits/1-7"}, "id"),
        ({"id": "e1/digits/1-7", "data__last": 7}, "covers up to 6, not 7"),
        ({"id": "e1/digits/2-6", "data__first": 2}, "2 is expected where 1"),
        ({"data__gaps": []}, "3 is expected where 6"),
        ({"data__gaps": [{"first": 2, "last": 5, "reason": "shed"}]}, "3 is expected where 2"),
        ({"data__rows": event()["data"]["rows"][::-1]}, "not in order"),
        ({"data__surprise": 1}, "surprise"),
        ({"data__digest": "0" * 64}, "digest"),
        ({"data__digest": "none"}, "digest"),
    ],
)
def test_an_event_that_does_not_hold_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        unpack(json.dumps(event(**changes), separators=(",", ":")).encode())


def test_a_changed_row_does_not_pass_its_digest() -> None:
    payload = pack(ORIGIN, Part(1, 1, (row(1),), ()), historical=False)
    assert unpack(payload)
    with pytest.raises(ContractError, match="digest differs"):
        unpack(payload.replace(b'"label":"7"', b'"label":"1"'))


def test_a_bridge_may_add_an_extension_attribute_to_the_envelope() -> None:
    payload = pack(ORIGIN, Part(1, 1, (row(1),), ()), historical=False)
    assert unpack(b'{"traceparent":"00-1",' + payload[1:]).data.first == 1


def test_a_row_whose_body_is_no_json_is_delivered_with_the_hash_of_the_body() -> None:
    body = b'{"scores":[NaN'
    read = unpack(pack(ORIGIN, Part(1, 1, (row(1, body),), ()), historical=False))
    omitted = json.loads(bytes(read.data.rows[0].result))
    assert omitted == {"omitted": "unreadable", "size_bytes": 14, "sha256": hashlib.sha256(body).hexdigest()}


@pytest.mark.parametrize("key", ["frame-1", None, "k" * 200_000, "é" * 70_000])
def test_a_row_of_any_size_fits_into_an_event(key: str | None) -> None:
    body = json.dumps({"scores": [0.5] * 40_000}).encode()
    encoded = row(1, body, key)
    part = Part(1, 1, (encoded,), ())
    assert len(pack(ORIGIN, part, historical=False)) <= part.size_bytes <= PAYLOAD_LIMIT_BYTES
    omitted = json.loads(encoded)["result"]
    assert (omitted["omitted"], omitted["size_bytes"]) == ("too large", len(body))


@given(st.integers(0, 4_102_444_800_000_000_000))
def test_times_are_rfc_3339_in_utc(wall_ns: int) -> None:
    message = Presence(device="d", session="s", state="online", reason="connected", version="1", time=rfc3339(wall_ns))
    assert decode(Presence, encode(message)) == message
