"""Ranges, gaps, cursors and the ledger: pure arithmetic and small files."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.buffer.cursor import AckCursor, read_cursor, write_cursor
from edged.buffer.ledger import EPOCHS_KEPT, GAPS_KEPT, first_ledger, read_ledger, write_ledger
from edged.buffer.records import Gap, Range, holes, merge, subtract
from edged.errors import StoreError

RANGES = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1])))


def numbers(ranges: list[Range]) -> set[int]:
    return {number for first, last in ranges for number in range(first, last + 1)}


@given(RANGES, st.integers(1, 80), st.integers(0, 40))
def test_holes_are_exactly_what_is_not_covered(covered: list[Range], first: int, size: int) -> None:
    wanted = set(range(first, first + size)) - numbers(covered)
    found = holes(covered, first, first + size - 1)
    assert numbers(found) == wanted
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(found))


@given(RANGES, st.lists(st.sampled_from(["cap", "acked"]), min_size=100, max_size=100))
def test_merged_gaps_cover_the_same_numbers_once_and_in_order(ranges: list[Range], reasons: list[str]) -> None:
    gaps = [Gap(*extent, reason, upper_bound=False) for extent, reason in zip(ranges, reasons, strict=False)]
    merged = merge(gaps)
    assert numbers([(gap.first, gap.last) for gap in merged]) == numbers(ranges)
    for gap, following in itertools.pairwise(merged):
        assert gap.last < following.first
        assert gap.last + 1 < following.first or gap.reason != following.reason


def test_neighbours_of_one_reason_become_one() -> None:
    gaps = [Gap(11, 20, "cap", upper_bound=False), Gap(1, 10, "cap", upper_bound=False)]
    assert merge(gaps) == [Gap(1, 20, "cap", upper_bound=False)]


def test_an_upper_bound_stays_one() -> None:
    gaps = [Gap(1, 10, "lost", upper_bound=False), Gap(11, 20, "lost", upper_bound=True)]
    assert merge(gaps) == gaps


def test_a_gap_is_cut_where_rows_are() -> None:
    gap = Gap(1, 10, "cap", upper_bound=False)
    assert [(part.first, part.last) for part in subtract(gap, [(3, 4), (8, 20)])] == [(1, 2), (5, 7)]


def test_a_cursor_comes_back_as_it_was_written(tmp_path: Path) -> None:
    cursor = AckCursor({("e1", "a"): 7, ("e1", "b"): 0, ("e2", "a"): 2**40})
    write_cursor(tmp_path / "ack.json", cursor)
    assert read_cursor(tmp_path / "ack.json") == cursor
    assert cursor.of("e1", "a") == 7
    assert cursor.of("e9", "a") == 0


def test_no_cursor_is_an_empty_one(tmp_path: Path) -> None:
    assert read_cursor(tmp_path / "ack.json") == AckCursor()


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"format":1}', b'{"format":2,"acks":[]}', b'{"format":1,"acks":[{"epoch":1}]}',
     b'{"format":1,"acks":[{"epoch":"e","stream":"s","seq":-1}]}'],
)  # fmt: skip
def test_a_damaged_cursor_is_a_clear_error(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "ack.json"
    path.write_bytes(damaged)
    with pytest.raises(StoreError, match=r"ack\.json") as raised:
        read_cursor(path)
    assert raised.value.code == "cursor"


def test_a_cursor_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "ack.json"
    write_cursor(path, AckCursor({("e", "s"): 1}))
    with pytest.raises(StoreError):
        write_cursor(tmp_path / "absent" / "ack.json", AckCursor())
    assert read_cursor(path).of("e", "s") == 1
    assert [item.name for item in tmp_path.iterdir()] == ["ack.json"]


def test_a_ledger_comes_back_as_it_was_written(tmp_path: Path) -> None:
    ledger = first_ledger("device", "machine", 1)
    ledger = ledger.with_gaps(ledger.epoch, {"a": [Gap(1, 5, "cap", upper_bound=False)]}).with_epoch(
        "lost", {"a": 9}, 2
    )
    write_ledger(tmp_path, ledger)
    assert read_ledger(tmp_path) == ledger
    assert ledger.epochs[1].predecessor == ledger.epochs[0].id


def test_a_ledger_forgets_epochs_of_which_nothing_is_left() -> None:
    ledger = first_ledger("device", "machine", 1)
    oldest = ledger.epoch
    ledger = ledger.with_gaps(oldest, {"a": [Gap(1, 5, "acked", upper_bound=False)]})
    for number in range(EPOCHS_KEPT):
        ledger = ledger.with_epoch("lost", {}, number)
    assert ledger.without_epochs({oldest}) == ledger
    shorter = ledger.without_epochs(set())
    assert len(shorter.epochs) == EPOCHS_KEPT
    assert shorter.gaps == ()


def test_years_of_outages_do_not_grow_the_ledger() -> None:
    ledger = first_ledger("device", "machine", 1)
    for number in range(500):
        reason = "cap" if number % 2 else "acked"
        ledger = ledger.with_gaps(
            ledger.epoch, {"a": [Gap(number * 10 + 1, number * 10 + 10, reason, upper_bound=False)]}
        )
    gaps = ledger.gaps_of(ledger.epoch, "a")
    assert len(gaps) == GAPS_KEPT
    assert holes([(gap.first, gap.last) for gap in gaps], 1, 5000) == []
    assert (gaps[0].reason, gaps[-1]) == ("gone", Gap(4991, 5000, "cap", upper_bound=False))
