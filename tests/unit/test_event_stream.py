"""Live bytes of an event camera: split anywhere they are what a whole recording is, and windows keep every event."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.domain import Events
from edged.errors import FrameRejected
from edged.feeders import event_stream
from edged.feeders.daemon import EventRule
from edged.feeders.event_stream import LiveEvents, Piece, Window, Windows, dat_bytes
from edged.sources.decode import decode
from edged.sources.events import AEDAT_END, CARRY_Y, HEADER_BYTES
from tests.support.event_files import DAT_HEADER, Row, aedat, dat, davis, saccade
from tests.support.recordings import data

ROWS: list[Row] = [(3, 5, 1, 10), (100, 90, 0, 10), (7, 1, 1, 2500), (35, 35, 0, 70_000), (1, 2, 0, 70_000)]
FIRST = EventRule(1000, "first_event")
GRID = EventRule(1000, "recording")


def davis_words(rows: Sequence[Row]) -> list[tuple[int, int]]:
    return [(davis(*row[:3]), row[3]) for row in rows]


STREAMS = {
    "bs2": saccade(ROWS),
    "dat": dat(ROWS),
    "aedat": aedat(davis_words(ROWS)),
    "aedat, marked end": aedat([]) + AEDAT_END + aedat(davis_words(ROWS), "")[14:],
    "aedat, an event like a line": aedat([(0x23 << 24 | 0x414141, 10), *davis_words(ROWS)]),
}


def rows(events: Events) -> list[Row]:
    columns = (events.x, events.y, events.polarity, events.t_us)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def fed(name: str, content: bytes, cuts: Sequence[int]) -> tuple[list[Row], LiveEvents]:
    """The events of a stream whose bytes come in parts."""
    stream = LiveEvents(name.partition(",")[0])
    edges = [0, *sorted(cuts), len(content)]
    found: list[Row] = []
    for begin, end in itertools.pairwise(edges):
        for piece in stream.feed(content[begin:end]):
            found += rows(piece.events)
    return found, stream


def whole(name: str, content: bytes) -> list[Row]:
    """The same by the decoder of recordings, whose time begins with 0 for ``.aedat``."""
    events = decode(f"a.{name.partition(',')[0]}", content)
    assert isinstance(events, Events)
    return rows(events)


def from_first(found: list[Row]) -> list[Row]:
    return [(*row[:3], row[3] - found[0][3]) for row in found]


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_split_at_every_byte_is_the_recording(name: str) -> None:
    content = STREAMS[name]
    expected = from_first(whole(name, content))
    assert len(expected) == len(ROWS) + ("like a line" in name)
    for cut in range(len(content) + 1):
        found, stream = fed(name, content, [cut])
        assert from_first(found) == expected, cut
        assert stream.holes == 0
    assert from_first(fed(name, content, range(len(content)))[0]) == expected


@pytest.mark.parametrize("name", ["sample_nmnist.bin", "sample_ncars.dat", "IMU_translBoxes.aedat"])
def test_a_real_recording_in_random_parts_is_the_recording(name: str) -> None:
    content = data(f"event_samples/{name}").read_bytes()
    cuts = random.Random(7).sample(range(len(content)), 300)
    found, stream = fed(name.rpartition(".")[2].replace("bin", "bs2"), content, cuts)
    assert from_first(found) == from_first(whole(name, content))
    assert stream.holes == 0


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(STREAMS)), st.binary(max_size=400), st.lists(st.integers(0, 600), max_size=8))
def test_fuzzed_bytes_behind_a_header_do_not_depend_on_how_they_are_split(
    name: str, noise: bytes, cuts: list[int]
) -> None:
    content = STREAMS[name] + noise

    def outcome(where: Sequence[int]) -> object:
        try:
            found, stream = fed(name, content, [min(cut, len(content)) for cut in where])
        except FrameRejected as error:
            return error.message
        return found, stream.holes

    assert outcome(cuts) == outcome([]) or name == "dat"  # a refused polarity names the largest of its part
    if name == "dat":
        assert type(outcome(cuts)) is type(outcome([]))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["bs2", "dat", "aedat"]), st.lists(st.binary(max_size=300), max_size=6))
def test_pure_noise_is_events_or_refused_and_nothing_else(name: str, parts: list[bytes]) -> None:
    stream, windows = LiveEvents(name), Windows(FIRST)
    try:
        for part in parts:
            for piece in stream.feed(part):
                assert (np.diff(piece.events.t_us) >= 0).all()
                assert all((window.events.t_us < 1000).all() for window in windows.push(piece))
    except FrameRejected:
        pass


def test_the_clock_of_a_sensor_comes_round() -> None:
    for name, bits, write in (("bs2", 23, saccade), ("dat", 32, dat)):
        last = (1 << bits) - 5
        content = (
            write([(1, 1, 1, last), (1, 1, 0, 3), (1, 1, 1, 3)])
            + write([(2, 2, 0, last), (1, 1, 0, 1)])[len(DAT_HEADER) + 2 if name == "dat" else 0 :]
        )
        every: list[Sequence[int]] = [[], range(len(content))]
        for cuts in every:
            found, stream = fed(name, content, cuts)
            assert [t - last for *_, t in found] == [0, 8, 8, 1 << bits, (1 << bits) + 6]
            assert stream.holes == 0


def test_a_carried_clock_goes_on_across_parts() -> None:
    content = saccade(
        [(1, 1, 1, 8000), (0, CARRY_Y, 0, 0), (1, 1, 1, 5), (0, CARRY_Y, 0, 0), (0, CARRY_Y, 0, 0), (1, 1, 0, 9)]
    )
    expected = [8000, 8192 + 5, 3 * 8192 + 9]
    for cut in range(len(content)):
        assert [t for *_, t in fed("bs2", content, [cut])[0]] == expected
    assert [row[3] for row in whole("bs2", content)] == expected


def test_time_that_runs_backwards_is_a_hole() -> None:
    stream = LiveEvents("bs2")
    pieces = list(stream.feed(saccade([(1, 1, 1, 5000), (1, 1, 1, 6000), (1, 1, 1, 5500), (1, 1, 1, 5600)])))
    assert [(piece.events.t_us.tolist(), piece.follows) for piece in pieces] == [
        ([5000, 6000], False),
        ([5500, 5600], False),
    ]
    assert stream.holes == 1
    assert [piece.follows for piece in stream.feed(saccade([(1, 1, 1, 5700)]))] == [True]
    assert [piece.follows for piece in stream.feed(saccade([(1, 1, 1, 5000)]))] == [False]
    assert stream.holes == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("dat", b"% Version 1\n\x0c\x08", "version 2"),
        ("dat", b"\x00\x00\x00", "version 2"),
        ("dat", b"% Version 2\n\x0e\x08", "no events of a camera"),
        ("dat", b"%" + b"x" * HEADER_BYTES, "longer than"),
        ("aedat", b"#!AER-DAT3", "not an AEDAT 2.0"),
        ("aedat", b"nothing", "not an AEDAT 2.0"),
        ("aedat", aedat(davis_words(ROWS), ""), "names no chip"),
        ("aedat", aedat(davis_words(ROWS), "Other"), "'Other'"),
        ("aedat", b"#!AER-DAT2.0\r\n" + b"#" + b"x" * HEADER_BYTES, "longer than"),
    ],
)
def test_a_stream_of_another_kind_is_refused(name: str, content: bytes, said: str) -> None:
    with pytest.raises(FrameRejected, match=said):
        fed(name, content, range(0, len(content), 99_991))


def piece(times: Sequence[int], *, follows: bool = True) -> Piece:
    ones = np.ones(len(times))
    return Piece(
        Events(ones.astype(np.uint16), ones.astype(np.uint16), ones.astype(np.uint8), np.array(times)), follows
    )


def cut(rule: EventRule, *pieces: Piece, origin_us: int | None = None) -> list[tuple[int, list[int]]]:
    windows = Windows(rule, origin_us)

    def all_windows() -> Iterator[Window]:
        for one in pieces:
            yield from windows.push(one)
        yield from windows.flush()

    return [(window.start_us, window.events.t_us.tolist()) for window in all_windows()]


def test_windows_begin_at_their_first_event() -> None:
    found = cut(FIRST, piece([5, 900]), piece([1004, 1005, 4000]), piece([4999, 5000]))
    assert found == [(5, [0, 895, 999]), (1005, [0]), (4000, [0, 999]), (5000, [0])]


def test_windows_of_a_recording_follow_one_another_from_its_beginning() -> None:
    assert cut(GRID, piece([1005, 1100]), piece([4000, 4999]), origin_us=0) == [(1000, [5, 100]), (4000, [0, 999])]


def test_windows_of_live_bytes_follow_one_another_from_the_first_event() -> None:
    assert cut(GRID, piece([1005, 2004]), piece([2005, 4200])) == [(1005, [0, 999]), (2005, [0]), (4005, [195])]


def test_no_window_reaches_over_a_hole() -> None:
    windows = Windows(FIRST)
    assert list(windows.push(piece([0, 10]))) == []
    assert list(windows.push(piece([5, 20], follows=False))) == []
    assert [(w.start_us, w.events.t_us.tolist()) for w in windows.flush()] == [(5, [0, 15])]
    assert (windows.broken, windows.is_open) == (1, False)
    assert list(windows.flush()) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 900), min_size=1, max_size=20), max_size=8), st.sampled_from([FIRST, GRID]))
def test_every_event_is_in_exactly_one_window(steps: list[list[int]], rule: EventRule) -> None:
    times = np.cumsum([step for part in steps for step in part]).tolist()
    edges = np.cumsum([0, *(len(part) for part in steps)]).tolist()
    parts = [piece(times[begin:end]) for begin, end in itertools.pairwise(edges)]
    found = cut(rule, *parts)
    assert [start + t for start, events in found for t in events] == times
    assert all(0 <= t < rule.window_us for _, events in found for t in events)
    assert all(later - former >= rule.window_us for (former, _), (later, _) in itertools.pairwise(found))


def test_a_window_beyond_the_limit_is_counted_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "MOST_EVENTS", 3)
    windows = Windows(FIRST)
    found = [w for one in (piece([0, 1]), piece([2, 3]), piece([4, 2000, 2001])) for w in windows.push(one)]
    found += windows.flush()
    assert [window.start_us for window in found] == [2000]
    assert windows.overfull == 1


def test_a_window_travels_as_a_recording() -> None:
    events = Events(
        np.array([0, 16383], np.uint16),
        np.array([16383, 1], np.uint16),
        np.array([1, 0], np.uint8),
        np.array([0, (1 << 32) - 1]),
    )
    again = decode("a.dat", dat_bytes(events))
    assert isinstance(again, Events)
    assert rows(again) == rows(events)
