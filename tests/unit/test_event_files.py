"""Event recordings of every format: the good, the damaged, the hostile and the fuzzed, from the bytes to the frames."""

from __future__ import annotations

import itertools
import struct
import time
import tracemalloc
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.bundle.encoding import bin_events
from edged.bundle.manifest import EventFrames
from edged.domain import Events, Payload
from edged.errors import FrameRejected
from edged.sources.decode import MAX_BYTES, decode
from edged.sources.events import AEDAT_END, HEADER_BYTES, decode_aedat, decode_dat, decode_saccade
from tests.support.event_files import AEDAT_FIRST, DAT_HEADER, Row, aedat, dat, davis, dvs128, saccade
from tests.support.recordings import data

ROWS: list[Row] = [(3, 5, 1, 10), (100, 90, 0, 10), (7, 1, 1, 2500), (0, 0, 0, 70_000)]


def rows(events: Payload) -> list[Row]:
    assert isinstance(events, Events)
    columns = (events.x, events.y, events.polarity, events.t_us)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def frames_of(*, width: int, height: int, tail: Literal["drop", "clip"] = "drop") -> EventFrames:
    return EventFrames(
        width=width, height=height, polarities=2, dt_us=1000, t0="first_event", polarity_order="off,on",
        accumulate="count", tail=tail,
    )  # fmt: skip


def test_every_format_brings_the_same_events() -> None:
    assert rows(decode_saccade(saccade(ROWS))) == ROWS
    assert rows(decode("a.dat", dat(ROWS))) == ROWS
    assert rows(decode("a.aedat", aedat([(davis(*row[:3]), row[3] + 7) for row in ROWS]))) == [
        (*row[:3], row[3] - 10) for row in ROWS
    ]
    assert rows(decode("A.AEDAT", aedat([(dvs128(*row[:3]), row[3] - 10) for row in ROWS], "DVS128"))) == [
        (*row[:3], row[3] - 10) for row in ROWS
    ]


def test_the_largest_coordinates_of_each_format_come_through() -> None:
    assert rows(decode_dat(dat([((1 << 14) - 1, (1 << 14) - 1, 1, (1 << 32) - 1)], b"% Version 2\n", kind=0))) == [
        (16383, 16383, 1, 4294967295)
    ]
    assert rows(decode_aedat(aedat([(davis(1023, 511, 1), 5)]))) == [(1023, 511, 1, 0)]
    assert rows(decode_aedat(aedat([(dvs128(127, 127, 1), 5)], ""))) == [(127, 127, 1, 0)]


def test_an_aedat_keeps_pixels_only_and_counts_time_from_its_first_record() -> None:
    frame, signal = 1 << 31 | davis(1, 1, 1), davis(2, 2, 1) | 1 << 10
    found = decode_aedat(aedat([(frame, 100), (davis(9, 8, 0), 130), (signal, 140), (frame, 3), (davis(1, 2, 1), 150)]))
    assert rows(found) == [(9, 8, 0, 30), (1, 2, 1, 50)]
    late = decode_aedat(aedat([(frame, 500), (davis(9, 8, 0), 130)]))
    assert rows(late) == [(9, 8, 0, 0)]  # an image is stamped with its end: no event lies before the start


def test_the_clock_of_an_aedat_may_pass_the_sign_of_its_word() -> None:
    found = decode_aedat(aedat([(davis(0, 0, 1), (1 << 31) - 1), (davis(0, 0, 1), 1 << 31)]))
    assert found.t_us.tolist() == [0, 1]


def test_an_event_that_begins_like_a_line_of_the_header_is_an_event() -> None:
    word = davis(0, 0, 0) | 0x23 << 24  # "#" is 0x23
    assert len(decode_aedat(aedat([(word, 1), (word, 10)])).t_us) == 2
    plain = AEDAT_FIRST + b"# AEChip: DAVIS240C\r\n" + AEDAT_END
    assert len(decode_aedat(plain + b"#ABC000\n" + b"#ABC0000").t_us) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.dat", b"", "version 2"),
        ("a.dat", DAT_HEADER, "type -1"),
        ("a.dat", dat([]), "whole number"),
        ("a.dat", dat(ROWS)[:-3], "whole number"),
        ("a.dat", dat(ROWS, b"% Version 1\n"), "version 2"),
        ("a.dat", dat(ROWS, b""), "version 2"),
        ("a.dat", dat(ROWS, kind=14), "type 14"),
        ("a.dat", dat(ROWS, b"% Version 2\n% Width 50\n"), "beyond the width 50"),
        ("a.dat", dat(ROWS, b"% Version 2\n% Height 50\n"), "beyond the height 50"),
        ("a.dat", dat([(1, 1, 3, 0)]), "polarity is 3"),
        ("a.dat", dat(ROWS[::-1]), "backwards at event 1"),
        ("a.dat", b"%" * (HEADER_BYTES + 5), "longer than"),
        ("a.dat", b"% Version 2\n" + b"%\n" * HEADER_BYTES, "longer than"),
        ("a.aedat", b"", "first line"),
        ("a.aedat", b"#!AER-DAT3.1\r\n", "write it again as AEDAT 2.0"),
        ("a.aedat", aedat([]), "whole number"),
        ("a.aedat", aedat([(davis(1, 1, 1), 5)])[:-1], "whole number"),
        ("a.aedat", aedat([(davis(1, 1, 1), 5)], "chips.Cochlea"), "'Cochlea' of the recording is not known"),
        ("a.aedat", aedat([(davis(1, 1, 1), 5)], ""), "names no chip"),
        ("a.aedat", aedat([(1 << 31, 5)]), "no events of pixels"),
        ("a.aedat", aedat([(davis(1, 1, 1), 9), (davis(1, 1, 1), 5)]), "backwards at event 1"),
        ("a.aedat", AEDAT_FIRST + b"#" * (HEADER_BYTES + 5), "longer than"),
        ("a.bs2", saccade([(1, 1, 1, 9), (1, 1, 1, 3)]), "backwards at event 1"),
    ],
)  # fmt: skip
def test_damaged_recordings_are_rejected_with_their_reason(name: str, content: bytes, said: str) -> None:
    with pytest.raises(FrameRejected, match=said):
        decode(name, content)


def hostile() -> dict[str, bytes]:
    """The largest files that are taken, each made to cost the most."""
    many = MAX_BYTES - 4096
    words = np.zeros((many // 8, 2), "<u4")
    words[:, 0] = np.arange(len(words))
    return {
        "lines.dat": b"%\n" * (many // 2),
        "spaces.dat": b"% Version 2" + b" " * many,
        "zeros.dat": b"% Version 2\n\x0c\x08" + bytes(many // 8 * 8),
        "events.dat": b"% Version 2\n\x0c\x08" + words.tobytes(),
        "lines.aedat": AEDAT_FIRST + b"#\n" * (many // 2),
        "chips.aedat": AEDAT_FIRST + b"# AEChip:\n" * 90_000 + bytes(many // 8 * 8),
        "zeros.aedat": AEDAT_FIRST + bytes(many // 8 * 8),
        "carries.bs2": b"\0\xf0\0\0\0" * (many // 5),
        "zeros.bin": bytes(many // 5 * 5),
    }


@pytest.mark.slow
def test_the_largest_files_cost_a_bounded_time_and_memory() -> None:
    encoding = frames_of(width=128, height=128)
    for name, content in hostile().items():
        tracemalloc.start()
        start = time.process_time()
        try:
            found = decode(name, content)
            assert isinstance(found, Events)
            bin_events(encoding, 16, found)
        except FrameRejected:
            pass
        took_s, most = time.process_time() - start, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(f"{name}: {took_s:.2f} s, {most / len(content):.1f} times the file")
        assert took_s < 15, name
        assert most < 8 * MAX_BYTES, name


GOOD: dict[str, bytes] = {
    ".bs2": saccade(ROWS),
    ".bin": saccade(ROWS),
    ".dat": dat(ROWS),
    ".aedat": aedat([(davis(*row[:3]), row[3]) for row in ROWS]),
}
ENCODING = frames_of(width=128, height=128, tail="clip")


def end(name: str, content: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | FrameRejected:
    """The frames of a recording, or why there are none; another exception is a defect."""
    try:
        found = decode(name, content)
        assert isinstance(found, Events)
        return bin_events(ENCODING, 4, found)
    except FrameRejected as error:
        assert error.message
        return error


@settings(max_examples=800, deadline=None)
@given(draw=st.data(), suffix=st.sampled_from(sorted(GOOD)))
def test_fuzzed_recordings_become_frames_or_are_rejected_and_nothing_else(draw: st.DataObject, suffix: str) -> None:
    mutant = bytearray(GOOD[suffix])
    for _ in range(draw.draw(st.integers(1, 8))):
        at = draw.draw(st.integers(0, max(0, len(mutant) - 1)))
        mutant[at : at + draw.draw(st.integers(0, 9))] = draw.draw(st.binary(max_size=9))
    made = end(f"f{suffix}", bytes(mutant))
    if not isinstance(made, FrameRejected):
        assert made.shape == (4, 2, 128, 128)
        assert made.sum() == len(getattr(decode(f"f{suffix}", bytes(mutant)), "t_us", ()))  # clipped: none is left out


@settings(max_examples=400, deadline=None)
@given(
    body=st.binary(max_size=400),
    suffix=st.sampled_from(sorted(GOOD)),
    head=st.sampled_from([b"", DAT_HEADER + b"\x0c\x08", b"% Version 2\n\x00\x08", AEDAT_FIRST, aedat([])]),
)
def test_garbage_becomes_frames_or_is_rejected_and_nothing_else(body: bytes, suffix: str, head: bytes) -> None:
    end(f"f{suffix}", head + body)


@pytest.mark.parametrize("suffix", sorted(GOOD))
def test_a_recording_that_is_cut_anywhere_is_rejected_or_shorter(suffix: str) -> None:
    whole = decode(f"f{suffix}", GOOD[suffix])
    assert isinstance(whole, Events)
    for size in range(len(GOOD[suffix])):
        try:
            found = decode(f"f{suffix}", GOOD[suffix][:size])
        except FrameRejected:
            continue
        assert isinstance(found, Events)
        assert rows(found) == rows(whole)[: len(found.t_us)]
        assert len(found.t_us) < len(whole.t_us)


def test_a_long_recording_is_binned_in_parts_as_it_is_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    given = Events(
        x=random.integers(0, 6, 1000).astype(np.uint16),
        y=random.integers(0, 6, 1000).astype(np.uint16),
        polarity=random.integers(0, 2, 1000).astype(np.uint8),
        t_us=np.sort(random.integers(50, 9000, 1000)),
    )
    whole = bin_events(frames_of(width=6, height=6), 5, given)
    monkeypatch.setattr("edged.bundle.encoding.EVENTS_AT_ONCE", 7)
    np.testing.assert_array_equal(bin_events(frames_of(width=6, height=6), 5, given), whole)
    assert 0 < whole.sum() < 1000


def dat_rows(content: bytes) -> list[Row]:
    """A second reader, one event after the other, as the format is described."""
    at = 0
    while content[at : at + 1] == b"%":
        at = content.index(b"\n", at) + 1
    pairs = struct.iter_unpack("<II", content[at + 2 :])
    return [(w & 0x3FFF, w >> 14 & 0x3FFF, w >> 28, t) for t, w in pairs]


def aedat_rows(content: bytes) -> list[Row]:
    """As above."""
    pairs = list(struct.iter_unpack(">II", content[content.index(b"#End of Preferences for this AEChip\r\n") + 37 :]))
    kept = [(a, t) for a, t in pairs if not a >> 31 and not a >> 10 & 1]
    return [(a >> 12 & 0x3FF, a >> 22 & 0x1FF, a >> 11 & 1, t - pairs[0][1]) for a, t in kept]


@pytest.mark.parametrize(
    ("name", "reader", "width", "height", "count"),
    [
        ("sample_ncars.dat", dat_rows, 120, 100, 2009),
        ("IMU_translBoxes.aedat", aedat_rows, 240, 180, 162771),
    ],
)  # fmt: skip
def test_real_recordings_agree_with_a_second_reader_and_fill_their_sensor(
    name: str, reader: Callable[[bytes], list[Row]], width: int, height: int, count: int
) -> None:
    content = data(f"event_samples/{name}").read_bytes()
    found = decode(name, content)
    assert isinstance(found, Events)
    assert len(found.t_us) == count
    expected = reader(content)
    assert rows(found) == expected
    binned = bin_events(frames_of(width=width, height=height, tail="clip"), 8, found)
    assert binned.sum() == count
    by_hand = np.zeros_like(binned)
    for x, y, on, t in itertools.islice(expected, 20_000):
        by_hand[min(7, (t - expected[0][3]) // 1000), on, y, x] += 1
    if count <= 20_000:
        np.testing.assert_array_equal(binned, by_hand)
    assert (binned[:7] >= by_hand[:7]).all()
    with pytest.raises(FrameRejected, match="this model takes a sensor of 34 x 34"):
        bin_events(frames_of(width=34, height=34), 8, found)
