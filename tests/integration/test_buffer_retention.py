"""The cap, acknowledgements, readers in the way and disks that are full."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from edged.buffer.cursor import AckCursor, write_cursor
from edged.buffer.files import BALLAST, segment_numbers, segment_path, tree_bytes
from edged.buffer.reader import BufferReader
from edged.buffer.segment import open_reading
from edged.buffer.store import SegmentStore, StoreSettings
from edged.buffer.upkeep import Upkeep
from edged.domain import FrameId, Kind, Totals
from edged.errors import StoreError
from tests.support.buffer import (
    MIB,
    commit,
    entries,
    entry,
    gaps_of,
    read_all,
    read_everything,
    rows_of,
    store_settings,
    with_store,
)
from tests.support.parts import require

# a child that only reads or writes a buffer and then ends does not touch what other threads hold
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

SIZE = 1000


def small(tmp_path: Path, **changes: object) -> StoreSettings:
    return store_settings(tmp_path, **{"cap_bytes": MIB, "segment_bytes": 128 << 10, **changes})


def tidy(store: SegmentStore) -> None:
    """What the writer does every few seconds, now. Only while it has nothing to do."""
    Upkeep(store._journal).tidy()


def acknowledge(settings: StoreSettings, epoch: str, **seqs: int) -> None:
    write_cursor(settings.ack_file, AckCursor({(epoch, stream): seq for stream, seq in seqs.items()}))


def test_at_the_cap_the_oldest_become_one_gap_and_the_size_stays_below(tmp_path: Path) -> None:
    settings = small(tmp_path)

    async def act(store: SegmentStore) -> None:
        for first in range(0, 2000, 20):
            await store.commit(entries(first, 20, size=SIZE))
            assert tree_bytes(settings.directory) <= settings.cap_bytes

    with_store(settings, act)
    [((_, _), items)] = read_everything(settings.directory).items()
    [gap] = gaps_of(items)
    assert (gap.first, gap.reason, gap.upper_bound) == (1, "cap", False)
    assert [row.seq for row in rows_of(items)] == list(range(gap.last + 1, 2001))
    assert len(rows_of(items)) > 200


def test_the_lowest_priority_goes_first_and_alone(tmp_path: Path) -> None:
    settings = small(tmp_path, priorities={"low": 1, "high": 9})

    async def act(store: SegmentStore) -> dict[str, Totals]:
        for first in range(0, 2000, 20):
            await store.commit([*entries(first, 20, "low", SIZE), entry(f"h{first}", "high", size=SIZE)])
            assert tree_bytes(settings.directory) <= settings.cap_bytes
        return store.totals()

    totals = with_store(settings, act)
    everything = {stream: items for (_, stream), items in read_everything(settings.directory).items()}
    assert len(rows_of(everything["high"])) == 100
    assert gaps_of(everything["high"]) == []
    assert [gap.reason for gap in gaps_of(everything["low"])] == ["cap"]
    assert totals["low-spool"] == Totals(received=2000, committed=2000)
    positions = {p.stream: p.priority for p in BufferReader(settings.directory).streams(_epoch(settings))}
    assert positions == {"low": 1, "high": 9}


def test_with_nothing_of_lower_priority_left_the_higher_goes(tmp_path: Path) -> None:
    settings = small(tmp_path, priorities={"low": 1, "high": 9})
    batches = [[*entries(first, 20, "high", SIZE), entry(f"l{first}", "low", size=10)] for first in range(0, 2000, 20)]
    commit(settings, *batches)
    everything = {stream: items for (_, stream), items in read_everything(settings.directory).items()}
    assert [gap.reason for gap in gaps_of(everything["high"])] == ["cap"]
    assert len(rows_of(everything["low"])) > 50  # a trickle keeps its active segment
    assert tree_bytes(settings.directory) <= settings.cap_bytes


def test_what_is_acknowledged_goes_first(tmp_path: Path) -> None:
    settings = small(tmp_path)
    epoch = commit(settings, *(entries(first, 20, size=SIZE) for first in range(0, 400, 20)))[0].epoch
    acknowledge(settings, epoch, digits=350)
    commit(settings, *(entries(first, 20, size=SIZE) for first in range(400, 620, 20)))
    items = read_all(settings.directory, epoch, "digits")
    assert {gap.reason for gap in gaps_of(items)} == {"acked"}
    assert max(gap.last for gap in gaps_of(items)) <= 350
    assert tree_bytes(settings.directory) <= settings.cap_bytes


def test_acknowledged_segments_stay_until_they_are_old(tmp_path: Path) -> None:
    settings = small(tmp_path, keep_s=3600.0)
    receipts = commit(settings, *(entries(first, 20, size=SIZE) for first in range(0, 300, 20)))
    acknowledge(settings, receipts[0].epoch, digits=300)

    async def act(store: SegmentStore) -> int:
        tidy(store)
        return store.facts().unsent_rows

    assert with_store(settings, act) == 0
    assert len(rows_of(read_all(settings.directory, receipts[0].epoch, "digits"))) == 300


def test_old_acknowledged_rows_go_and_their_frames_are_still_known(tmp_path: Path) -> None:
    settings = small(tmp_path, keep_s=0.0)
    receipts = commit(settings, *(entries(first, 20, size=SIZE) for first in range(0, 300, 20)))
    acknowledge(settings, receipts[0].epoch, digits=300)

    async def act(store: SegmentStore) -> None:
        tidy(store)
        assert store.facts().rows == 0
        [found] = store.find([FrameId("digits-spool", "f7")])
        assert found is not None
        assert (found.seq, found.kind, found.duplicate) == (8, Kind.RESULT, True)
        [again] = await store.commit(entries(299, 1))
        assert (again.seq, again.duplicate) == (300, True)
        [new] = await store.commit(entries(300, 1))
        assert new.seq == 301

    with_store(settings, act)
    items = read_all(settings.directory, receipts[0].epoch, "digits")
    assert [(gap.first, gap.last, gap.reason) for gap in gaps_of(items)] == [(1, 300, "acked")]
    with_store(settings, act_known)


async def act_known(store: SegmentStore) -> None:
    assert store.find([FrameId("digits-spool", "f7")])[0] is not None
    assert store.totals()["digits-spool"] == Totals(received=301, committed=301)


def test_an_acknowledgement_of_what_does_not_exist_yet_counts_up_to_what_does(tmp_path: Path) -> None:
    settings = small(tmp_path, keep_s=0.0)

    async def act(store: SegmentStore) -> None:
        await store.commit(entries(0, 50, size=SIZE))
        acknowledge(settings, store.epoch, digits=10**9)
        tidy(store)
        await store.commit(entries(50, 50, size=SIZE))
        tidy(store)
        assert store.facts().rows == 50

    with_store(settings, act)


def test_a_store_older_than_what_was_acknowledged_begins_a_new_epoch(tmp_path: Path) -> None:
    settings = small(tmp_path)
    epoch = commit(settings, entries(0, 50))[0].epoch
    acknowledge(settings, epoch, digits=80)
    [receipt] = commit(settings, entries(50, 1))
    assert (receipt.seq, receipt.epoch != epoch) == (1, True)
    old, new = BufferReader(settings.directory).epochs()
    assert (new.reason, new.predecessor, dict(new.predecessor_last)) == ("restored", old.id, {"digits": 50})
    [gap] = gaps_of(read_all(settings.directory, epoch, "digits"))
    assert (gap.first, gap.last, gap.upper_bound) == (51, 80, True)


def test_a_cloned_store_begins_a_new_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small(tmp_path)
    epoch = commit(settings, entries(0, 50))[0].epoch
    monkeypatch.setattr("edged.buffer.clock.machine_id", lambda: "another machine")
    [receipt] = commit(settings, entries(50, 1))
    assert (receipt.seq, receipt.epoch != epoch) == (1, True)
    assert BufferReader(settings.directory).epochs()[-1].reason == "cloned"
    assert gaps_of(read_all(settings.directory, epoch, "digits")) == []


def test_a_damaged_cursor_is_no_acknowledgement(tmp_path: Path) -> None:
    settings = small(tmp_path, keep_s=0.0)
    epoch = commit(settings, entries(0, 50))[0].epoch
    settings.ack_file.write_text('{"format": 1, "acks": [{"epoch"')

    async def act(store: SegmentStore) -> str:
        tidy(store)
        return store.facts().reason

    assert "ack.json" in with_store(settings, act)
    assert len(rows_of(read_all(settings.directory, epoch, "digits"))) == 50


def test_a_reader_that_stands_still_does_not_grow_the_log_without_bound(tmp_path: Path) -> None:
    settings = small(tmp_path, cap_bytes=3 * MIB)

    async def act(store: SegmentStore) -> None:
        await store.commit(entries(0, 1))
        with contextlib.closing(open_reading(segment_path(settings.directory, 1))) as stuck:
            stuck.execute("BEGIN")
            stuck.execute("SELECT * FROM entry").fetchone()
            for first in range(1, 1501):
                await store.commit(entries(first, 1))
            assert tree_bytes(settings.directory) <= settings.cap_bytes
            assert store.facts().state == "ok"
        tidy(store)
        assert not segment_path(settings.directory, 1).with_name("segment-00000001.db-wal").exists()

    with_store(settings, act)
    [((_, _), items)] = read_everything(settings.directory).items()
    assert len(rows_of(items)) == 1501


def fill(disk: Path, leave_bytes: int) -> Path:
    """Somebody else's file that takes almost all that is free."""
    free = os.statvfs(disk)
    path = disk / "somebody-elses"
    path.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - leave_bytes)))
    return path


async def commit_until_full(store: SegmentStore, first: int) -> int:
    """Commit one by one until the store refuses. Returns the first key that was not stored."""
    for index in range(first, first + 100_000):
        try:
            await store.commit(entries(index, 1, size=SIZE))
        except StoreError as error:
            assert error.code == "full"
            return index
    raise AssertionError("it never was full")


def test_a_full_disk_is_said_and_heals_when_there_is_space(small_disk: Path) -> None:
    settings = store_settings(small_disk, cap_bytes=64 * MIB, segment_bytes=MIB)

    async def act(store: SegmentStore) -> int:
        await store.commit(entries(0, 10, size=SIZE))
        assert (settings.directory / BALLAST).exists()
        other = fill(small_disk, leave_bytes=64 << 10)
        refused = await commit_until_full(store, 10)
        assert not (settings.directory / BALLAST).exists()
        assert refused > 100  # what the ballast gave
        assert store.facts().state == "full"
        with pytest.raises(StoreError):
            await store.commit(entries(refused, 1, size=SIZE))
        other.unlink()
        tidy(store)
        assert store.facts().state == "ok"
        [receipt] = await store.commit(entries(refused, 1, size=SIZE))
        assert receipt.seq == refused + 1
        return refused

    refused = with_store(settings, act)
    [((_, _), items)] = read_everything(settings.directory).items()
    assert [row.key for row in rows_of(items)] == [f"f{index}" for index in range(refused + 1)]


def test_on_a_full_disk_an_acknowledgement_makes_room(small_disk: Path) -> None:
    settings = store_settings(small_disk, cap_bytes=64 * MIB, segment_bytes=512 << 10, keep_s=0.0)

    async def act(store: SegmentStore) -> None:
        refused = await commit_until_full(store, 0)
        write_cursor(Path("/dev/shm") / f"ack-{os.getpid()}.json", AckCursor({(store.epoch, "digits"): refused}))
        with contextlib.suppress(OSError):
            settings.ack_file.unlink()
        settings.ack_file.symlink_to(f"/dev/shm/ack-{os.getpid()}.json")
        tidy(store)
        await store.commit(entries(refused, 1, size=SIZE))
        assert store.facts().state == "ok"

    require("/dev/shm")
    try:
        with_store(settings, act)
    finally:
        Path(f"/dev/shm/ack-{os.getpid()}.json").unlink(missing_ok=True)


def test_a_kill_on_a_full_disk_starts_again(small_disk: Path) -> None:
    settings = store_settings(small_disk, cap_bytes=64 * MIB, segment_bytes=MIB)
    refused = 0
    pid = os.fork()
    if pid == 0:

        async def act(store: SegmentStore) -> None:
            await commit_until_full(store, 0)
            os._exit(0)

        with contextlib.suppress(BaseException):
            with_store(settings, act)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    async def look(store: SegmentStore) -> int:
        return store.facts().rows

    refused = with_store(settings, look)
    [((_, _), items)] = read_everything(settings.directory).items()
    assert [row.key for row in rows_of(items)] == [f"f{index}" for index in range(refused)]
    assert refused > 1000


def _epoch(settings: StoreSettings) -> str:
    return BufferReader(settings.directory).epochs()[-1].id


def test_many_segments_are_found_fast_and_forgotten_in_order(tmp_path: Path) -> None:
    settings = small(tmp_path, frame_window=500, cap_bytes=2 * MIB)
    batches = [entries(first, 50, size=SIZE) for first in range(0, 3000, 50)]

    async def act(store: SegmentStore) -> None:
        for batch in batches:
            await store.commit(batch)
        tidy(store)
        await asyncio.sleep(0)
        assert len(store._journal.shelf.index) < 1200
        assert all(store.find([FrameId("digits-spool", f"f{index}") for index in range(2500, 3000)]))
        assert store.find([FrameId("digits-spool", "f3")]) == [None]

    with_store(settings, act)
    assert len(segment_numbers(settings.directory)) > 3
