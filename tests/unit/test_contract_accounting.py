"""The account of a stream says exactly what arrived, whatever the network did to the events."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_sync.contract.accounting import EpochReport, StreamAccount
from cloud_sync.contract.messages import Predecessor
from cloud_sync.contract.ranges import Ranges
from cloud_sync.contract.topics import ContractError

SPANS = st.lists(
    st.tuples(st.integers(1, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=12
)


def numbers(ranges: Ranges) -> set[int]:
    return {number for first, last in ranges for number in range(first, last + 1)}


def spread(spans: Iterable[tuple[int, int]]) -> set[int]:
    return {number for first, last in spans for number in range(first, last + 1)}


def only(account: StreamAccount) -> EpochReport:
    (report,) = account.report()
    return report


@given(SPANS, SPANS, st.integers(1, 40), st.integers(0, 60))
def test_ranges_do_what_sets_do(
    left: list[tuple[int, int]], right: list[tuple[int, int]], first: int, size: int
) -> None:
    a, b, window = Ranges(left), Ranges(right), set(range(first, first + size))
    assert numbers(a) == spread(left)
    assert numbers(a | b) == spread(left) | spread(right)
    assert numbers(a & b) == spread(left) & spread(right)
    assert numbers(a - b) == spread(left) - spread(right)
    assert numbers(a.within(first, first + size - 1)) == spread(left) & window
    assert numbers(a.missing(first, first + size - 1)) == window - spread(left)
    assert len(a) == len(spread(left))
    assert a.last == max(spread(left), default=0)
    assert all(n in a for n in spread(left))
    assert 0 not in a
    pairs = list(a)
    assert all(end + 1 < begin for (_, end), (begin, _) in itertools.pairwise(pairs)), "ranges must not touch"


EVENTS = st.lists(st.sampled_from(["row", "gap"]), min_size=1, max_size=40).flatmap(
    lambda kinds: st.tuples(st.just(kinds), st.sets(st.integers(1, len(kinds)), max_size=6))
)


@given(EVENTS, st.data())
def test_the_account_equals_a_model_of_plain_sets(drawn: tuple[list[str], set[int]], data: st.DataObject) -> None:
    """Cut a stream into events, lose some, repeat and shuffle the rest: the account must say exactly that."""
    kinds, cuts = drawn
    bounds = sorted({0, len(kinds)} | cuts)
    events = [(first + 1, last) for first, last in itertools.pairwise(bounds)]
    sent = data.draw(st.lists(st.sampled_from(events), max_size=2 * len(events)))
    account = StreamAccount("s")
    seen: dict[int, int] = {}
    for first, last in sent:
        rows = [n for n in range(first, last + 1) if kinds[n - 1] == "row"]
        fed = account.feed("e", "s", first, last, rows, [(n, n) for n in range(first, last + 1) if n not in rows])
        assert numbers(fed.new) == {n for n in rows if n not in seen}
        assert numbers(fed.repeated) == {n for n in rows if n in seen}
        for n in rows:
            seen[n] = seen.get(n, 0) + 1
    if not sent:
        assert account.report() == []
        return
    report, covered = only(account), spread(sent)
    assert numbers(report.delivered) == set(seen)
    assert numbers(report.doubled) == {n for n, times in seen.items() if times > 1}
    assert numbers(report.gaps) == covered - set(seen)
    assert numbers(report.missing) == set(range(1, max(covered) + 1)) - covered
    assert report.complete == (not report.missing)


def test_a_row_that_an_event_claims_but_does_not_bring_is_missing_until_it_comes() -> None:
    account = StreamAccount("s")
    account.feed("e", "s", 1, 3, [1, 3])
    assert list(only(account).missing) == [(2, 2)]
    account.feed("e", "s", 2, 2, [2])
    assert account.complete


def test_a_row_that_was_delivered_is_not_taken_back_by_a_later_gap() -> None:
    account = StreamAccount("s")
    account.feed("e", "s", 1, 2, [1, 2])
    account.feed("e", "s", 1, 3, [], [(1, 3)])
    report = only(account)
    assert (list(report.delivered), list(report.gaps), report.complete) == ([(1, 2)], [(3, 3)], True)


def test_a_new_epoch_tells_what_of_the_old_one_is_lost_for_ever() -> None:
    account = StreamAccount("s")
    account.feed("old", "s", 1, 4, range(1, 5))
    account.feed("old", "s", 6, 6, [6])
    account.feed("new", "s", 1, 1, [1], predecessor=Predecessor(epoch="old", last=9))
    old, new = account.report()
    assert list(old.missing) == []
    assert list(old.lost) == [(5, 5), (7, 9)]
    assert new.complete
    assert not account.complete


def test_a_salvaged_row_of_an_old_epoch_is_no_longer_lost() -> None:
    account = StreamAccount("s")
    account.feed("new", "s", 1, 1, [1], predecessor=Predecessor(epoch="old", last=2))
    assert list(account.report()[0].lost) == [(1, 2)]
    account.feed("old", "s", 1, 2, [2], [(1, 1)])
    assert account.complete


def test_an_epoch_that_ended_nobody_knows_where_is_never_complete() -> None:
    account = StreamAccount("s")
    account.feed("old", "s", 1, 3, [1, 2, 3])
    account.feed("new", "s", 1, 1, [1], predecessor=Predecessor(epoch="old", last=None))
    old, _ = account.report()
    assert old.end_unknown
    assert not old.complete


def test_a_consumer_that_comes_late_may_begin_with_what_comes() -> None:
    account = StreamAccount("s", from_start=False)
    account.feed("e", "s", 40, 41, [40, 41], predecessor=Predecessor(epoch="before", last=7))
    assert account.complete
    account.feed("e", "s", 43, 43, [43])
    assert list(only(account).missing) == [(42, 42)]
    account.feed("next", "s", 2, 2, [2], predecessor=Predecessor(epoch="e", last=44))
    e, following = account.report()
    assert list(e.lost) == [(42, 42), (44, 44)]
    assert list(following.missing) == [(1, 1)]


@pytest.mark.parametrize(
    ("stream", "first", "last", "rows", "gaps"),
    [
        ("other", 1, 1, [1], []),
        ("s", 0, 1, [1], []),
        ("s", 3, 2, [], []),
        ("s", 1, 2, [3], []),
        ("s", 1, 2, [1], [(2, 3)]),
        ("s", 1, 2, [1], [(2, 1)]),
    ],
)
def test_an_event_that_contradicts_itself_is_refused_and_changes_nothing(
    stream: str, first: int, last: int, rows: list[int], gaps: list[tuple[int, int]]
) -> None:
    account = StreamAccount("s")
    with pytest.raises(ContractError):
        account.feed("e", stream, first, last, rows, gaps)
    assert account.report() == []
