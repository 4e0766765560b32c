"""Damaged files: whatever is hit, the daemon starts, keeps what reads, and says which numbers are gone."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.buffer.files import LEDGER, QUARANTINE, segment_numbers, segment_path, wal_path
from edged.buffer.reader import BufferReader
from edged.buffer.schema import PAGE_BYTES
from edged.buffer.store import SegmentStore, StoreSettings
from edged.buffer.upkeep import Upkeep
from edged.domain import FrameId, Receipt
from edged.status import BufferFacts
from tests.support.buffer import (
    commit,
    entries,
    fork_writer,
    gaps_of,
    read_all,
    read_everything,
    rows_of,
    store_settings,
    with_store,
)

ROWS = 1100
SIZE = 1000  # bytes a row: two sealed segments and a started one
LOG_HEADER, FRAME_HEADER = 32, 24  # of a write-ahead log
IN_SECOND_FRAME = LOG_HEADER + (FRAME_HEADER + PAGE_BYTES) + FRAME_HEADER + 100


@pytest.fixture
def settings(tmp_path: Path) -> StoreSettings:
    return store_settings(tmp_path, cap_bytes=64 << 20, segment_bytes=600_000)


@pytest.fixture
def filled(settings: StoreSettings) -> StoreSettings:
    """A buffer after a clean stop."""
    commit(settings, *(entries(first, 50, size=SIZE) for first in range(0, ROWS, 50)))
    assert len(segment_numbers(settings.directory)) == 3
    return settings


@pytest.fixture
def killed(settings: StoreSettings) -> StoreSettings:
    """A buffer after a kill: the last rows are only in the log."""

    async def write(store: SegmentStore, tell: Callable[[str], None]) -> None:
        for first in range(0, ROWS, 50):
            await store.commit(entries(first, 50, size=SIZE))
        tell("done")
        os.kill(os.getpid(), 9)

    pid, pipe = fork_writer(settings, write)
    os.waitpid(pid, 0)
    assert os.read(pipe, 5) == b"done\n"
    os.close(pipe)
    return settings


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def open_once(settings: StoreSettings) -> BufferFacts:
    async def look(store: SegmentStore) -> BufferFacts:
        return store.facts()

    return with_store(settings, look)


def kept_and_lost(settings: StoreSettings) -> tuple[int, int]:
    """How many rows of all epochs read, and how many numbers up to the last row are covered by gaps instead."""
    kept = lost = 0
    for items in read_everything(settings.directory).values():
        rows = rows_of(items)
        kept += len(rows)
        last = max((row.seq for row in rows), default=0)
        lost += sum(min(gap.last, last) - gap.first + 1 for gap in gaps_of(items) if gap.first <= last)
    return kept, lost


def test_a_lost_page_in_a_sealed_segment_costs_the_rows_on_it(filled: StoreSettings) -> None:
    path = segment_path(filled.directory, 1)
    overwrite(path, 60 * PAGE_BYTES, bytes(PAGE_BYTES))
    before = kept_and_lost(filled)
    assert open_once(filled).state == "ok"
    assert before[0] + before[1] == ROWS
    assert 0 < before[1] <= 8
    assert kept_and_lost(filled) == before


def test_a_lost_first_page_costs_no_row(filled: StoreSettings) -> None:
    overwrite(segment_path(filled.directory, 2), 0, bytes(PAGE_BYTES))
    assert kept_and_lost(filled) == (ROWS, 0)  # the reader alone
    facts = open_once(filled)
    assert "segment-00000002.db is damaged" in facts.reason
    assert kept_and_lost(filled) == (ROWS, 0)
    assert len(list((filled.directory / QUARANTINE).iterdir())) == 1
    assert len(BufferReader(filled.directory).epochs()) == 1


def test_control_sqlite_alone_reads_nothing_without_its_first_page(filled: StoreSettings) -> None:
    path = segment_path(filled.directory, 2)
    overwrite(path, 0, bytes(PAGE_BYTES))
    with contextlib.closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.DatabaseError):
        connection.execute("SELECT count(*) FROM entry").fetchone()


def test_a_flipped_byte_in_a_body_is_seen_and_costs_one_row(filled: StoreSettings) -> None:
    path = segment_path(filled.directory, 1)
    at = path.read_bytes().index(b"f77{") + 40
    overwrite(path, at, b"?")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)  # the control: SQLite sees nothing
    [gap] = gaps_of(read_all(filled.directory, BufferReader(filled.directory).epochs()[0].id, "digits"))
    assert (gap.first, gap.last, gap.reason) == (78, 78, "corrupt")


def test_a_damaged_active_segment_begins_a_new_epoch_and_no_number_is_used_again(filled: StoreSettings) -> None:
    path = segment_path(filled.directory, 3)
    pages = path.stat().st_size // PAGE_BYTES
    overwrite(path, (pages - 1) * PAGE_BYTES, bytes(PAGE_BYTES))
    facts = open_once(filled)
    assert "is damaged" in facts.reason
    old, new = BufferReader(filled.directory).epochs()
    assert (new.predecessor, new.reason) == (old.id, "corrupt")
    items = read_all(filled.directory, old.id, "digits")
    assert items[-1] == gaps_of(items)[-1]
    assert gaps_of(items)[-1].upper_bound
    assert gaps_of(items)[-1].last >= ROWS
    assert len(rows_of(items)) >= ROWS - 8
    [receipt] = commit(filled, entries(9_000_000, 1))
    assert (receipt.epoch, receipt.seq) == (new.id, 1)


def test_salvaged_frames_are_still_known(filled: StoreSettings) -> None:
    overwrite(segment_path(filled.directory, 2), 0, bytes(PAGE_BYTES))

    async def ask(store: SegmentStore) -> list[Receipt | None]:
        return store.find([FrameId("digits-spool", f"f{index}") for index in range(0, ROWS, 100)])

    assert all(receipt is not None and len(receipt.body) == SIZE for receipt in with_store(filled, ask))


def test_damage_in_the_middle_of_the_log_does_not_take_numbers_back(killed: StoreSettings) -> None:
    overwrite(wal_path(segment_path(killed.directory, 3)), IN_SECOND_FRAME, b"\xff" * 8)
    facts = open_once(killed)
    assert "is damaged" in facts.reason
    old, new = BufferReader(killed.directory).epochs()
    items = read_all(killed.directory, old.id, "digits")
    assert new.predecessor_last["digits"] >= ROWS - 8
    assert len(rows_of(items)) >= ROWS - 8


def test_control_sqlite_drops_what_follows_damage_in_the_log_without_a_word(killed: StoreSettings) -> None:
    path = segment_path(killed.directory, 3)
    query = "SELECT count(*) FROM entry"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        whole = connection.execute(query).fetchone()
    overwrite(wal_path(path), IN_SECOND_FRAME, b"\xff" * 8)
    path.with_name(path.name + "-shm").unlink()
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        assert connection.execute(query).fetchone() < whole


def test_a_kill_alone_is_no_damage(killed: StoreSettings) -> None:
    assert open_once(killed).reason == ""
    assert kept_and_lost(killed) == (ROWS, 0)
    assert len(BufferReader(killed.directory).epochs()) == 1


def tear(log: Path, commits: int) -> None:
    """What a kill between a frame's header and its page leaves in a log that is written over: another page's bytes."""
    data = log.read_bytes()
    size = FRAME_HEADER + PAGE_BYTES
    frames = [data[at : at + size] for at in range(LOG_HEADER, len(data), size)]
    now = [frame for frame in frames if frame[8:16] == data[16:24]]  # behind them lies what was there before
    last, older = now[-1], now[0][FRAME_HEADER:]
    assert last[4:8] != bytes(4), "the last frame ends a commit"
    assert last[FRAME_HEADER:] != older
    overwrite(log, LOG_HEADER + len(now) * size, (last[:FRAME_HEADER] + older) * commits)


def test_a_last_commit_that_was_torn_is_no_damage(killed: StoreSettings) -> None:
    tear(wal_path(segment_path(killed.directory, 3)), 1)
    assert open_once(killed).reason == ""
    assert kept_and_lost(killed) == (ROWS, 0)
    assert len(BufferReader(killed.directory).epochs()) == 1


def test_a_torn_page_takes_no_row_of_its_earlier_versions(killed: StoreSettings) -> None:
    tear(wal_path(segment_path(killed.directory, 3)), 2)  # so much that it could be damage
    assert "is damaged" in open_once(killed).reason
    assert kept_and_lost(killed) == (ROWS, 0)


def test_lost_segments_end_their_epoch_in_an_upper_bound(filled: StoreSettings) -> None:
    for number in segment_numbers(filled.directory):
        segment_path(filled.directory, number).unlink()
    open_once(filled)
    old, new = BufferReader(filled.directory).epochs()
    [gap] = read_all(filled.directory, old.id, "digits")
    assert gap == gaps_of([gap])[0]
    assert (gaps_of([gap])[0].first, gaps_of([gap])[0].upper_bound) == (1, True)
    assert gaps_of([gap])[0].last >= ROWS
    assert new.reason == "lost"


def test_a_lost_segment_in_the_middle_is_one_gap(filled: StoreSettings) -> None:
    shutil.rmtree(filled.directory / QUARANTINE, ignore_errors=True)
    segment_path(filled.directory, 2).unlink()
    for _ in range(2):  # the reader infers what the daemon records later
        [(_, items)] = read_everything(filled.directory).items()
        [gap] = gaps_of(items)
        assert (gap.reason, gap.upper_bound) == ("lost", False)
        assert len(rows_of(items)) + gap.last - gap.first + 1 == ROWS
        open_once(filled)


def test_a_damaged_ledger_is_rebuilt_from_the_segments(filled: StoreSettings) -> None:
    [before] = BufferReader(filled.directory).epochs()
    overwrite(filled.directory / LEDGER, 0, b"\0\0\0\0")
    assert "ledger.json" in open_once(filled).reason
    [after] = BufferReader(filled.directory).epochs()
    assert after.id == before.id
    assert kept_and_lost(filled) == (ROWS, 0)
    assert [receipt.seq for receipt in commit(filled, entries(9_000_000, 1))] == [ROWS + 1]


def test_a_damaged_frames_file_is_rebuilt_from_its_segment(filled: StoreSettings) -> None:
    [first, *_] = sorted(filled.directory.glob("*.frames"))
    overwrite(first, 300, b"\xff" * 64)
    assert all(receipt.duplicate for receipt in commit(filled, entries(0, 100)))


def test_damage_that_a_reader_meets_is_put_aside_while_the_daemon_runs(filled: StoreSettings) -> None:
    path = segment_path(filled.directory, 1)
    at = path.read_bytes().index(b"f77{") + 40
    overwrite(path, at, b"?")

    async def tidy(store: SegmentStore) -> BufferFacts:
        journal = store._journal
        journal.suspects.add(1)
        Upkeep(journal).tidy()
        return store.facts()

    assert "segment-00000001.db is damaged: " in with_store(filled, tidy).reason
    assert kept_and_lost(filled) == (ROWS - 1, 1)


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_never_stops_the_daemon_and_every_number_is_accounted_for(
    killed: StoreSettings, seed: int
) -> None:
    chance = random.Random(seed)
    victims = [path for path in sorted(killed.directory.glob("segment-*")) if path.stat().st_size]
    for path in chance.sample(victims, 2):
        for _ in range(chance.choice((1, 20))):
            size = chance.choice((1, 16, PAGE_BYTES))
            overwrite(path, chance.randrange(path.stat().st_size), chance.randbytes(size))
    open_once(killed)
    kept, lost = kept_and_lost(killed)
    assert kept + lost >= ROWS - 600  # what one active segment may hold beyond the last row that reads
    again = commit(killed, entries(9_000_000, 5))
    assert not any(receipt.duplicate for receipt in again)
    assert open_once(killed).state == "ok"
    bodies = {row.body for items in read_everything(killed.directory).values() for row in rows_of(items)}
    assert bodies == {entries(0, 1, size=SIZE)[0].body, entries(0, 1)[0].body}
