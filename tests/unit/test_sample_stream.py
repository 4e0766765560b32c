"""Streams of samples: what comes out of blocks on a bad line, and how runs are cut into windows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edged.sources.sample_stream import CRC, HEAD, MAGIC, MOST_BYTES, NUMBERS, Blocks, Framing, Raw, Run, Windows, block

PAYLOADS = [bytes([number]) * (4 * (1 + number % 5)) for number in range(1, 30)]
STREAM = b"".join(block(number, payload) for number, payload in enumerate(PAYLOADS))


def fed(framing: Framing, stream: bytes, size: int = 7) -> list[Run]:
    return [run for at in range(0, len(stream), size) for run in framing.feed(stream[at : at + size])]


@pytest.mark.parametrize("size", [1, 3, 64, 10_000])
def test_blocks_come_out_whole_however_the_stream_is_cut(size: int) -> None:
    framing = Blocks(4)
    runs = fed(framing, STREAM, size)
    assert [run.data for run in runs] == PAYLOADS
    assert [run.follows for run in runs] == [False] + [True] * (len(PAYLOADS) - 1)
    assert (framing.lost, framing.damaged) == (0, 0)


def test_a_stream_may_begin_anywhere_and_holds_its_magic_as_samples() -> None:
    payload = MAGIC * 6
    framing = Blocks(4)
    runs = fed(framing, block(7, payload)[5:] + block(8, payload) + block(9, payload))
    assert [run.data for run in runs] == [payload, payload]


def test_a_missing_block_ends_the_run_and_is_counted() -> None:
    framing = Blocks(4)
    runs = fed(framing, block(5, b"aaaa") + block(9, b"bbbb") + block(10, b"cccc"))
    assert [(run.data, run.follows) for run in runs] == [(b"aaaa", False), (b"bbbb", False), (b"cccc", True)]
    assert framing.lost == 3


def test_a_damaged_block_is_counted_and_costs_no_other() -> None:
    for at in range(len(MAGIC + bytes(HEAD.size)), len(block(0, PAYLOADS[0]))):
        framing = Blocks(4)
        spoiled = bytearray(STREAM)
        start = len(block(0, PAYLOADS[0]))
        spoiled[start + at] ^= 0x40
        assert [run.data for run in fed(framing, bytes(spoiled))] == PAYLOADS[:1] + PAYLOADS[2:], at
        assert framing.lost == 1
        assert framing.damaged >= 1


def test_numbers_wrap_a_block_sent_twice_counts_once_and_a_sender_may_begin_anew() -> None:
    framing = Blocks(4)
    runs = fed(framing, block(NUMBERS - 1, b"aaaa") + block(NUMBERS, b"bbbb") + block(0, b"bbbb"))
    assert [(run.data, run.follows) for run in runs] == [(b"aaaa", False), (b"bbbb", True)]
    framing = Blocks(4)
    assert [run.follows for run in fed(framing, block(500, b"aaaa") + block(0, b"bbbb"))] == [False, False]
    assert framing.lost == 0


def test_a_line_that_returns_goes_on_where_the_numbers_do() -> None:
    framing = Blocks(4)
    assert len(fed(framing, block(0, b"aaaa") + block(1, b"bbbb")[:9])) == 1
    framing.opened()
    (run,) = fed(framing, block(1, b"bbbb"))
    assert (run.data, run.follows, framing.lost) == (b"bbbb", True, 0)


def test_raw_scans_are_cut_whole_and_each_opening_is_a_run_of_its_own() -> None:
    framing = Raw(4)
    runs = list(framing.feed(b"aaaabb")) + list(framing.feed(b"bb")) + list(framing.feed(b"c"))
    assert [(run.data, run.follows) for run in runs] == [(b"aaaa", False), (b"bbbb", True)]
    framing.opened()
    assert [(run.data, run.follows) for run in framing.feed(b"dddd")] == [(b"dddd", False)]


def test_without_numbers_one_lost_byte_spoils_everything_behind_it() -> None:
    """The control of the blocks: the same loss on a raw line."""
    samples = np.arange(1000, dtype="<f4").tobytes()
    raw = np.frombuffer(b"".join(run.data for run in fed(Raw(4), samples[:10] + samples[11:])), "<f4")
    assert (raw[3:] != np.arange(3, 999)).all()
    blocks = b"".join(block(n, samples[40 * n : 40 * n + 40]) for n in range(100))
    kept = np.frombuffer(b"".join(run.data for run in fed(Blocks(4), blocks[:20] + blocks[21:])), "<f4")
    np.testing.assert_array_equal(kept, np.arange(10, 1000))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(draw=st.data())
def test_whatever_a_line_does_only_whole_blocks_come_out_in_order_and_memory_stays_bounded(draw: st.DataObject) -> None:
    spoiled = bytearray(STREAM)
    for _ in range(draw.draw(st.integers(1, 6))):
        at = draw.draw(st.integers(0, len(spoiled)))
        spoiled[at : at + draw.draw(st.integers(0, 20))] = draw.draw(st.binary(max_size=12))
    framing = Blocks(4)
    got = [run.data for run in fed(framing, bytes(spoiled), draw.draw(st.integers(1, 200)))]
    rest: Iterator[bytes] = iter(PAYLOADS)
    assert all(any(payload == one for one in rest) for payload in got)  # a subsequence: nothing else, nothing twice
    numbers = [PAYLOADS.index(payload) for payload in got]
    assert framing.lost == (numbers[-1] - numbers[0] + 1 - len(numbers) if numbers else 0)


def test_garbage_without_end_takes_no_memory() -> None:
    framing = Blocks(4)
    random = np.random.default_rng(0)
    for _ in range(200):
        assert all(len(run.data) <= MOST_BYTES for run in framing.feed(random.bytes(4096)))
        assert len(framing._kept) <= 4096 + MOST_BYTES + len(MAGIC) + HEAD.size + CRC.size


def cut(samples: NDArray[np.float32], window: int, hop: int) -> list[NDArray[np.float32]]:
    """Windows (channels, window) of scans (N, channels), one after the other."""
    return [samples[at : at + window].T for at in range(0, len(samples) - window + 1, hop)]


@pytest.mark.parametrize(
    ("dtype", "wire"), [("s16le", "<i2"), ("s16be", ">i2"), ("s32le", "<i4"), ("s32be", ">i4"), ("f32le", "<f4")]
)
@pytest.mark.parametrize(("window", "hop", "piece"), [(16, 16, 5), (16, 4, 33), (7, 1, 1), (5, 3, 100)])
def test_a_run_is_cut_into_windows(dtype: str, wire: str, window: int, hop: int, piece: int) -> None:
    scans = np.arange(-100, 100).reshape(100, 2)
    windows = Windows(dtype, 2, window, hop, 0.5)
    assert windows.scan_bytes == 2 * np.dtype(wire).itemsize
    stored = scans.astype(wire)
    runs = [Run(stored[at : at + piece].tobytes(), at > 0) for at in range(0, 100, piece)]
    found = [one for run in runs for one in windows.push(run)]
    expected = cut(scans.astype(np.float32) * np.float32(0.5), window, hop)
    assert len(found) == len(expected) > 3
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)


def test_no_window_reaches_over_the_end_of_a_run_and_what_is_left_over_is_counted() -> None:
    windows = Windows("s16le", 1, 4, 2, 1.0)
    first, second = np.arange(7, dtype="<i2"), np.arange(50, 55, dtype="<i2")
    found = [one for run in (Run(first.tobytes(), False), Run(second.tobytes(), False)) for one in windows.push(run)]
    assert [one.tolist() for one in found] == [[[0, 1, 2, 3]], [[2, 3, 4, 5]], [[50, 51, 52, 53]]]
    assert windows.unused == 1  # sample 6; what is left of the second run may still be used
