"""Rows and gaps of the buffer become parts of a stream without a hole and of bounded size."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_sync.contract.results import PAYLOAD_LIMIT_BYTES, Origin, Part, pack, unpack
from cloud_sync.device.batch import Item, take
from edged.buffer.reader import Gap, StoredRow
from edged.domain import Kind

ORIGIN = Origin("f", "d", "e", None, "s")
WALL_NS = 1_763_886_600_000_000_000


def row(seq: int, body: bytes = b'{"label":"7"}', wall_ns: int = WALL_NS, kind: Kind = Kind.RESULT) -> StoredRow:
    return StoredRow(
        seq=seq,
        kind=kind,
        source="spool",
        key="" if kind is Kind.DROPPED else f"frame-{seq}",
        count=3 if kind is Kind.DROPPED else 1,
        wall_ns=wall_ns,
        received_ns=1,
        latency_ns=1_234_500,
        boot_id="b",
        clock_quality="synchronized",
        model="digits@1",
        digest="0" * 64,
        engine="onnxruntime",
        body=body,
    )


def covered(part: Part | None) -> tuple[int, int, list[int], list[tuple[int, int]]]:
    """Check the part through the contract's own eyes."""
    assert part is not None
    data = unpack(pack(ORIGIN, part, historical=False)).data
    return data.first, data.last, [r.seq for r in data.rows], [(g.first, g.last) for g in data.gaps]


def test_a_row_keeps_everything_that_the_buffer_knows_of_it() -> None:
    part = take(6, 7, [row(7)], PAYLOAD_LIMIT_BYTES)
    assert part is not None
    assert json.loads(part.rows[0]) == {
        "seq": 7,
        "kind": "result",
        "source": "spool",
        "key": "frame-7",
        "count": 1,
        "time": "2025-11-23T08:30:00.000000Z",
        "clock_quality": "synchronized",
        "latency_us": 1234.5,
        "model": "digits@1",
        "digest": "0" * 64,
        "engine": "onnxruntime",
        "result": {"label": "7"},
    }
    assert part.time == "2025-11-23T08:30:00.000000Z"


def test_dropped_frames_have_no_key_and_a_clock_that_nobody_set_has_no_time() -> None:
    part = take(0, 1, [row(1, kind=Kind.DROPPED, wall_ns=5_000_000_000)], PAYLOAD_LIMIT_BYTES)
    assert part is not None
    read = json.loads(part.rows[0])
    assert (read["key"], read["count"], read["time"], part.time) == (None, 3, None, None)


def test_rows_and_gaps_follow_each_other() -> None:
    items: list[Item] = [row(1), Gap(2, 4, "shed", False), row(5)]
    assert covered(take(0, 5, items, PAYLOAD_LIMIT_BYTES)) == (1, 5, [1, 5], [(2, 4)])


def test_a_gap_that_began_before_or_ends_behind_is_cut() -> None:
    items: list[Item] = [Gap(1, 9, "shed", True)]
    assert covered(take(3, 7, items, PAYLOAD_LIMIT_BYTES)) == (4, 7, [], [(4, 7)])


def test_a_part_ends_before_a_hole_and_none_begins_with_one() -> None:
    assert covered(take(0, 4, [row(1), row(3), row(4)], PAYLOAD_LIMIT_BYTES)) == (1, 1, [1], [])
    assert take(1, 4, [row(3), row(4)], PAYLOAD_LIMIT_BYTES) is None
    assert take(1, 4, [], PAYLOAD_LIMIT_BYTES) is None


def test_nothing_behind_the_limit_of_the_turn_is_taken() -> None:
    assert covered(take(0, 2, [row(1), row(2), row(3)], PAYLOAD_LIMIT_BYTES)) == (1, 2, [1, 2], [])


@pytest.mark.parametrize("size", [100, 10_000, 60_000, 119_000, 200_000])
def test_a_part_is_never_larger_than_the_limit_and_never_empty(size: int) -> None:
    rows = [row(n, json.dumps({"scores": "x" * size}).encode()) for n in range(1, 51)]
    part = take(0, 50, rows, PAYLOAD_LIMIT_BYTES)
    assert covered(part)[1] >= 1
    assert part is not None
    assert len(pack(ORIGIN, part, historical=True)) <= PAYLOAD_LIMIT_BYTES


@given(st.lists(st.sampled_from(["row", "gap"]), min_size=1, max_size=30), st.integers(5_000, 9_000))
def test_parts_in_a_row_cover_a_stream_exactly(kinds: list[str], limit: int) -> None:
    items: list[Item] = [row(n) if kind == "row" else Gap(n, n, "shed", False) for n, kind in enumerate(kinds, start=1)]
    after = 0
    rows: list[int] = []
    gaps: list[tuple[int, int]] = []
    while after < len(kinds):
        first, last, part_rows, part_gaps = covered(take(after, len(kinds), items[after:], limit))
        assert first == after + 1
        rows, gaps, after = rows + part_rows, gaps + part_gaps, last
    assert rows == [n for n, kind in enumerate(kinds, start=1) if kind == "row"]
    assert gaps == [(n, n) for n, kind in enumerate(kinds, start=1) if kind == "gap"]
