"""What every ResultStore promises."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edged.buffer.store import SegmentStore
from edged.domain import FrameId, Kind, Receipt, Totals
from edged.errors import StoreError
from edged.ports import ResultStore
from tests.support.buffer import commit, entries, entry, store_settings, with_store


def test_a_stream_counts_from_one_without_a_hole(tmp_path: Path) -> None:
    receipts = commit(store_settings(tmp_path), entries(0, 3), entries(3, 4))
    assert [receipt.seq for receipt in receipts] == [1, 2, 3, 4, 5, 6, 7]
    assert not any(receipt.duplicate for receipt in receipts)


def test_each_stream_has_its_own_counter(tmp_path: Path) -> None:
    both = [*entries(0, 2, "a"), *entries(0, 2, "b"), *entries(2, 1, "a")]
    receipts = commit(store_settings(tmp_path), both)
    assert [(receipt.stream, receipt.seq) for receipt in receipts] == [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("a", 3)]


def test_the_counter_goes_on_after_a_restart(tmp_path: Path) -> None:
    settings = store_settings(tmp_path)
    first, second = commit(settings, entries(0, 5)), commit(settings, entries(5, 5))
    assert [receipt.seq for receipt in second] == [6, 7, 8, 9, 10]
    assert {receipt.epoch for receipt in [*first, *second]} == {first[0].epoch}


def test_a_frame_is_stored_once_whoever_asks_again(tmp_path: Path) -> None:
    settings = store_settings(tmp_path)
    batch = entries(0, 3)
    [first, again, in_one] = (
        commit(settings, [batch[0]]),
        commit(settings, [batch[0]]),
        commit(settings, [batch[1]] * 2),
    )
    assert again == [Receipt(first[0].epoch, "digits", 1, Kind.RESULT, batch[0].body, duplicate=True)]
    assert [(receipt.seq, receipt.duplicate) for receipt in in_one] == [(2, False), (2, True)]


def test_a_duplicate_returns_the_first_result_and_its_kind(tmp_path: Path) -> None:
    settings = store_settings(tmp_path)
    [first] = commit(settings, [entry("same", kind=Kind.ERROR, size=50)])
    [again] = commit(settings, [entry("same", kind=Kind.RESULT, size=70)])
    assert (again.kind, again.body) == (Kind.ERROR, first.body)


def test_the_same_key_of_another_source_is_another_frame(tmp_path: Path) -> None:
    receipts = commit(store_settings(tmp_path), [entry("k", "a"), entry("k", "b")])
    assert not any(receipt.duplicate for receipt in receipts)


def test_find_tells_stored_frames_from_new_ones(tmp_path: Path) -> None:
    async def act(store: SegmentStore) -> list[Receipt | None]:
        await store.commit(entries(0, 3))
        return store.find([FrameId("digits-spool", "f1"), FrameId("digits-spool", "f9"), FrameId("other", "f1")])

    found, *missing = with_store(store_settings(tmp_path), act)
    assert found is not None
    assert (found.seq, found.duplicate) == (2, True)
    assert missing == [None, None]


def test_without_frame_identity_nothing_is_recognised(tmp_path: Path) -> None:
    """The control: what protects from doubles is the identity of frames."""
    settings = store_settings(tmp_path, frame_identity=False)
    receipts = commit(settings, entries(0, 2), entries(0, 2))
    assert [receipt.seq for receipt in receipts] == [1, 2, 3, 4]


def test_totals_account_for_every_frame_and_survive(tmp_path: Path) -> None:
    settings = store_settings(tmp_path)
    mixed = [
        *entries(0, 3),
        entry("bad", kind=Kind.REJECTED),
        entry("poison", kind=Kind.ERROR),
        entry("", kind=Kind.DROPPED, count=17),
    ]

    async def act(store: SegmentStore) -> dict[str, Totals]:
        await store.commit(mixed)
        return store.totals()

    async def look(store: SegmentStore) -> dict[str, Totals]:
        return store.totals()

    expected = {"digits-spool": Totals(received=22, committed=4, rejected=1, dropped=17)}
    assert with_store(settings, act) == expected
    assert with_store(settings, look) == expected


def test_calls_at_the_same_time_share_commits_and_all_are_answered(tmp_path: Path) -> None:
    async def act(store: SegmentStore) -> tuple[list[int], int]:
        answers = await asyncio.gather(*(store.commit(entries(index, 1)) for index in range(200)))
        return [receipt.seq for [receipt] in answers], store.facts().rows

    seqs, rows = with_store(store_settings(tmp_path), act)
    assert sorted(seqs) == list(range(1, 201))
    assert rows == 200


def test_nothing_in_nothing_out(tmp_path: Path) -> None:
    assert commit(store_settings(tmp_path), []) == []


def test_an_entry_that_can_never_be_stored_is_refused_and_spoils_nobody(tmp_path: Path) -> None:
    async def act(store: SegmentStore) -> list[object]:
        bad = entry("bad", size=5_000_000)
        return [*await asyncio.gather(store.commit(entries(0, 1)), store.commit([bad]), return_exceptions=True)]

    good, error = with_store(store_settings(tmp_path), act)
    assert isinstance(good, list)
    assert getattr(error, "code", "") == "entry"


def test_a_key_that_is_no_text_is_stored_and_known_again(tmp_path: Path) -> None:
    key = b"caf\xe9.npy".decode("utf-8", "surrogateescape")
    settings = store_settings(tmp_path)
    first, again = commit(settings, [entry(key)]), commit(settings, [entry(key)])
    assert (first[0].duplicate, again[0].duplicate) == (False, True)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    settings = store_settings(tmp_path)

    async def act(_: SegmentStore) -> str:
        with pytest.raises(Exception, match="another daemon") as refused:
            await SegmentStore(settings, "test").open()
        return str(getattr(refused.value, "code", ""))

    assert with_store(settings, act) == "busy"


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SegmentStore(store_settings(tmp_path), "test")

    async def run() -> None:
        await store.open()
        await store.close()
        with pytest.raises(Exception, match="closed"):
            await store.commit(entries(0, 1))

    asyncio.run(run())


def test_when_the_writer_breaks_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[str] = []
    monkeypatch.setattr("threading.excepthook", lambda failure: failures.append(str(failure.exc_value)))

    async def run() -> list[object]:
        store = SegmentStore(store_settings(tmp_path), "test")
        await store.open()
        monkeypatch.setattr(store._journal, "append", lambda _: 1 // 0)
        answers = await asyncio.gather(*(store.commit(entries(i, 1)) for i in range(3)), return_exceptions=True)
        await store.close()
        return [*answers]

    answers = asyncio.run(run())
    assert [type(answer) for answer in answers] == [StoreError] * 3
    assert failures == ["integer division or modulo by zero"]


def test_it_is_a_result_store(tmp_path: Path) -> None:
    async def act(store: ResultStore) -> str:  # mypy checks the port
        return store.epoch

    assert len(with_store(store_settings(tmp_path), act)) == 36
