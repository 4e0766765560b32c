"""The wire protocol without a wire: packets, their order, versions, messages, layouts, and all that is not legal."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.engines.layout import DTYPES, PAGE, SLOTS, Layout, Role, Tensor, lay_out, parse_layout
from edged.engines.wire import (
    DONE,
    HEADER,
    MAGIC,
    MAX_PACKET,
    ORDER,
    RUN,
    Conversation,
    Error,
    Exit,
    Hello,
    Kind,
    Load,
    Loaded,
    Phase,
    Progress,
    Refuse,
    Side,
    Welcome,
    common_version,
    diagram,
    parse_done,
    parse_run,
)
from edged.engines.wire_json import WireError, encode_object

LAYOUT = lay_out(
    4, 8,
    [
        (Role.INPUT, Tensor("image", "float32", (1, 8, 8))),
        (Role.INPUT, Tensor("events", "uint8", (2, 5), sequence=True)),
        (Role.READOUT, Tensor("readout", "float32", (10,))),
        (Role.STATE, Tensor("v", "float32", (16,))),
        (Role.NEXT_STATE, Tensor("v", "float32", (16,))),
    ],
)  # fmt: skip
LOAD = Load("m@1", "ab" * 32, "/bundle", "/plans", "/cache", 60.0, LAYOUT)


def ready() -> tuple[Conversation, Conversation]:
    daemon, worker = Conversation(Side.DAEMON), Conversation(Side.WORKER)
    for sender, receiver, kind in [
        (worker, daemon, Kind.HELLO), (daemon, worker, Kind.WELCOME), (daemon, worker, Kind.LOAD),
        (worker, daemon, Kind.LOADED),
    ]:  # fmt: skip
        receiver.unpack(sender.pack(kind))
        if kind is Kind.WELCOME:
            daemon.version = worker.version = 1
    return daemon, worker


def test_a_packet_comes_out_as_it_went_in() -> None:
    daemon, worker = ready()
    message = worker.unpack(daemon.pack(Kind.INFER, 0xFFFFFFFF, RUN.pack(1, 8)))
    assert message == (Kind.INFER, 0xFFFFFFFF, RUN.pack(1, 8))
    assert parse_run(message.body, LAYOUT) == (1, 8)
    answer = daemon.unpack(memoryview(worker.pack(Kind.DONE, 7, DONE.pack(1 << 40))))
    assert (answer.call, parse_done(answer.body)) == (7, 1 << 40)


def packet(magic: bytes = MAGIC, version: int = 1, kind: int = Kind.DONE, length: int = 0, body: bytes = b"") -> bytes:
    return HEADER.pack(magic, version, kind, 0, length) + body


@pytest.mark.parametrize(
    ("received", "complaint"),
    [
        (b"", "a packet of 0 bytes"),
        (b"edgw", "a packet of 4 bytes"),
        (packet(length=MAX_PACKET, body=bytes(MAX_PACKET)), f"a packet of {MAX_PACKET + HEADER.size} bytes"),
        (packet(magic=b"HTTP"), "begins with b'HTTP'"),
        (packet(kind=99), "unknown kind 99"),
        (packet(version=2), "protocol version 2, not 1"),
        (packet(length=8), "says 8 bytes and has 0"),
        (packet(length=0, body=b"x"), "says 0 bytes and has 1"),
        (packet(version=0, kind=Kind.HELLO), "HELLO from the worker while the conversation is ready"),
        (packet(kind=Kind.LOADED), "LOADED from the worker while the conversation is ready"),
        (packet(kind=Kind.INFER), "INFER from the worker"),
    ],
)
def test_garbage_is_named(received: bytes, complaint: str) -> None:
    daemon, _ = ready()
    with pytest.raises(WireError, match=complaint):
        daemon.unpack(received)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(received: bytes) -> None:
    for side in (0, 1):
        try:
            ready()[side].unpack(received)
        except WireError:
            continue


@given(st.data())
def test_a_flipped_header_is_noticed_or_changes_only_the_call(data: st.DataObject) -> None:
    daemon, worker = ready()
    good = bytearray(worker.pack(Kind.DONE, 5, DONE.pack(9)))
    position = data.draw(st.integers(0, HEADER.size - 1))
    good[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        message = daemon.unpack(bytes(good))
    except WireError:
        return
    assert 8 <= position < 12 or message.kind in (Kind.ERROR, Kind.PONG)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("sender", Side)
def test_only_what_the_table_allows_can_be_sent_and_received(phase: Phase, sender: Side) -> None:
    for kind in Kind:
        source = Conversation(sender)
        target = Conversation(Side.DAEMON if sender is Side.WORKER else Side.WORKER)
        source.phase = target.phase = phase
        expected = ORDER.get((phase, sender, kind))
        if expected is None:
            with pytest.raises(WireError, match=f"{kind.name} from the {sender.value}"):
                source.pack(kind)
            with pytest.raises(WireError):
                target.unpack(HEADER.pack(MAGIC, 0, kind, 0, 0))
        else:
            target.unpack(source.pack(kind))
            assert source.phase is target.phase is expected


def test_a_body_that_is_too_long_is_not_sent() -> None:
    daemon = Conversation(Side.DAEMON)
    daemon.phase = Phase.IDLE
    with pytest.raises(WireError, match="too long"):
        daemon.pack(Kind.LOAD, body=bytes(MAX_PACKET))


@pytest.mark.parametrize(
    ("theirs", "ours", "common"),
    [((1, 1), (1, 1), 1), ((1, 3), (2, 5), 3), ((4, 9), (1, 4), 4), ((2, 2), (1, 1), None), ((1, 1), (2, 4), None)],
)
def test_the_newest_common_version_is_chosen(
    theirs: tuple[int, int], ours: tuple[int, int], common: int | None
) -> None:
    assert common_version(theirs, ours) == common


MESSAGES = [
    Hello((1, 2), "onnxruntime", "1.32.0", "3.11.7", 42), Welcome(1), Refuse("no"), Progress("building"),
    Loaded("window-scan", {"load_s": 0.5}), Error("frame", "it broke", "frame"),
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_control_message_comes_out_as_it_went_in(message: Any) -> None:
    assert type(message).parse(encode_object(message._asdict())) == message


def test_a_load_of_six_hundred_tensors_fits_a_packet() -> None:
    some = [(Role.STATE, Tensor(f"a/long/path/to/neuron_{index}", "float32", (64, 16, 16))) for index in range(600)]
    load = LOAD._replace(layout=lay_out(4, 8, some))
    conversation = Conversation(Side.DAEMON)
    conversation.phase = Phase.IDLE
    packet = conversation.pack(Kind.LOAD, body=load.encode())
    daemon, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with daemon, worker:
        daemon.setblocking(False)
        assert daemon.send(packet) == len(packet)
    assert Load.parse(packet[HEADER.size :]) == load


def test_load_comes_out_as_it_went_in() -> None:
    assert Load.parse(LOAD.encode()) == LOAD


ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 1 << 70, 1.5, float("nan"), float("inf"), "", "x", "\x00", "x" * 9000, [], [1],
    [[]], [1, 2], [-1, 1], [1, "2"], {}, {"a": 1}, {"a": "b"}, {"regions": []},
]  # fmt: skip


@pytest.mark.parametrize("message", [*MESSAGES, LOAD], ids=lambda message: type(message).__name__)
def test_a_control_message_with_any_other_value_is_a_message_or_an_error(message: Any) -> None:
    good = json.loads(LOAD.encode() if message is LOAD else encode_object(message._asdict()))
    for field in good:
        without = {name: value for name, value in good.items() if name != field}
        with pytest.raises(WireError):
            type(message).parse(json.dumps(without).encode())
        for odd in ODD:
            with contextlib.suppress(WireError):
                parsed = type(message).parse(json.dumps({**without, field: odd}).encode())
                assert all(type(new) is type(old) for new, old in zip(parsed, message, strict=True))


@given(data=st.data())
def test_a_layout_with_any_other_number_is_sound_or_an_error(data: st.DataObject) -> None:
    table = LAYOUT.table()
    number = st.integers(-2, 1 << 70) | st.sampled_from([0, 1, 63, 64, PAGE, 1 << 32]) | st.sampled_from(ODD)
    place = data.draw(st.sampled_from(["timesteps", "max_batch", "slot_bytes", "offset", "shape", "dtype", "role"]))
    region = data.draw(st.sampled_from(table["regions"]))
    if place == "offset":
        region[5] = data.draw(number)
    elif place == "shape":
        region[3] = data.draw(st.lists(number, max_size=3))
    elif place == "dtype":
        region[2] = data.draw(st.text(max_size=8) | st.sampled_from(["object", "float128", "V8", "<f4", *DTYPES]))
    elif place == "role":
        region[0] = data.draw(st.sampled_from(ODD))
    else:
        table[place] = data.draw(number)
    try:
        layout = parse_layout(table)
    except WireError:
        return
    assert_sound(layout)


def assert_sound(layout: Layout) -> None:
    taken = []
    for region in layout.regions:
        size = DTYPES[region.tensor.dtype]
        for extent in layout.shape(region, layout.max_batch):
            assert extent >= 1
            size *= extent
        assert region.offset % 64 == 0
        taken.append((region.offset, region.offset + size))
    for (_, end), (start, _) in itertools.pairwise(taken):
        assert 0 <= end <= start
    assert taken[-1][1] <= layout.slot_bytes
    assert layout.size == SLOTS * layout.slot_bytes


tensors = st.builds(
    Tensor,
    st.text(min_size=1, max_size=3),
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.integers(1, 40), max_size=3).map(tuple),
    st.booleans(),
)


@given(st.integers(1, 50), st.integers(1, 64), st.lists(tensors, min_size=1, max_size=6, unique_by=lambda t: t.name))
def test_whatever_is_laid_out_is_sound_and_reads_back(timesteps: int, max_batch: int, some: list[Tensor]) -> None:
    layout = lay_out(timesteps, max_batch, [(Role.INPUT, tensor) for tensor in some])
    assert_sound(layout)
    assert parse_layout(json.loads(json.dumps(layout.table()))) == layout


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        (Tensor("x", "object", (1,)), "type 'object'"),
        (Tensor("x", "float32", (0,)), "shape"),
        (Tensor("x", "float32", (1 << 30,)), "may take"),
        (Tensor("x", "float32", (-1, -1)), "shape"),
    ],
)
def test_what_cannot_be_shared_is_refused(tensor: Tensor, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        lay_out(1, 1, [(Role.INPUT, tensor)])


@pytest.mark.parametrize("body", [b"", b"\x00" * 3, RUN.pack(SLOTS, 1), RUN.pack(0, 0), RUN.pack(0, 9)])
def test_a_call_outside_the_layout_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        parse_run(body, LAYOUT)


def test_done_of_another_length_is_refused() -> None:
    with pytest.raises(WireError, match="DONE of 4 bytes"):
        parse_done(struct.pack("<I", 1))


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"\xff", b"{", b"[" * 100_000, b'{"stage": 5}'])
def test_a_body_that_is_not_the_object_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        Progress.parse(body)


def test_the_documentation_shows_the_present_protocol() -> None:
    text = (Path(__file__).parents[2] / "docs" / "wire-protocol.md").read_text()
    assert f"```mermaid\n{diagram()}\n```" in text
    for kind in Kind:
        assert f"| {kind.value} | {kind.name} |" in text
    for code in Exit:
        assert f"| {code.value} | {code.name} |" in text
    for role in Role:
        assert f"| `{role.value}` |" in text
