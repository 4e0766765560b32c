"""kill -9 of a writer at random moments: what was answered is there, once, and the accounts are right.

A kill ends a process, not the kernel: what was written stays in the page cache. So these tests prove the order of our
acts and the recovery, and nothing about fsync; that is for the tests with injected I/O errors.
"""

from __future__ import annotations

import asyncio
import collections
import os
import random
import signal
import time
from pathlib import Path

import pytest

from edged.buffer.reader import BufferReader
from edged.buffer.store import SegmentStore, StoreSettings
from edged.domain import Totals
from tests.support.buffer import (
    Tell,
    entries,
    fork_writer,
    gaps_of,
    read_all,
    rows_of,
    store_settings,
    with_store,
)

# a child that only reads or writes a buffer and then ends does not touch what other threads hold
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

STREAMS = ("a", "b", "c")
PRIORITIES = {"a": 7, "b": 7, "c": 2}
BATCH = 8
AWAITED = 6  # calls in flight for each stream


async def write_for_ever(store: SegmentStore, tell: Tell, first: dict[str, int]) -> None:
    """Commit frames of every stream from ``first`` on and tell what was answered, in order."""

    async def one_stream(stream: str) -> None:
        flying: collections.deque[tuple[int, asyncio.Task[None]]] = collections.deque()
        index = first[stream]

        async def call(at: int) -> None:
            batch = entries(at, BATCH, stream)
            for item, receipt in zip(batch, await store.commit(batch), strict=True):
                assert item.frame is not None
                tell(f"{receipt.epoch} {stream} {receipt.seq} {item.frame.key}")

        while True:
            flying.append((index, asyncio.create_task(call(index))))
            index += BATCH
            if len(flying) >= AWAITED:
                await flying.popleft()[1]

    tell("open")
    await asyncio.gather(*(one_stream(stream) for stream in STREAMS))


def run_and_kill(settings: StoreSettings, first: dict[str, int], after_s: float) -> list[str]:
    """Let a writer work for a while, kill it, and return what it told."""
    pid, pipe = fork_writer(settings, lambda store, tell: write_for_ever(store, tell, first))
    told = b""
    try:
        deadline_s = None
        os.set_blocking(pipe, False)
        while deadline_s is None or time.monotonic() < deadline_s:
            try:
                told += os.read(pipe, 1 << 16)
            except BlockingIOError:
                time.sleep(0.001)
            if deadline_s is None and told:
                deadline_s = time.monotonic() + after_s
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.set_blocking(pipe, True)
        while more := os.read(pipe, 1 << 16):
            told += more
        os.close(pipe)
    return told.decode().rpartition("\n")[0].splitlines()[1:]


def first_unanswered(keys: set[str]) -> int:
    """Where a source that retries what it got no answer for begins again."""
    index = 0
    while f"f{index}" in keys:
        index += 1
    return index


def kill_often(settings: StoreSettings, rounds: int, seed: int) -> dict[tuple[str, str, int], str]:
    """Kill a writer again and again; each one retries what its predecessor had no answer for."""
    chance = random.Random(seed)
    answered: dict[tuple[str, str, int], str] = {}
    for _ in range(rounds):
        keys = {stream: {key for (_, of, _), key in answered.items() if of == stream} for stream in STREAMS}
        first = {stream: first_unanswered(keys[stream]) for stream in STREAMS}
        for line in run_and_kill(settings, first, chance.uniform(0.0, 0.25)):
            epoch, stream, seq, key = line.split(" ")
            answered.setdefault((epoch, stream, int(seq)), key)
            assert answered[epoch, stream, int(seq)] == key
    return answered


def check_accounts(settings: StoreSettings, answered: dict[tuple[str, str, int], str]) -> collections.Counter[str]:
    """Every answered row is there, every stream is contiguous, the totals are those of the rows. Returns the keys."""

    async def look(store: SegmentStore) -> dict[str, Totals]:
        return store.totals()

    totals = with_store(settings, look)
    reader = BufferReader(settings.directory)
    [epoch] = reader.epochs()
    keys: collections.Counter[str] = collections.Counter()
    stored: dict[tuple[str, str, int], str] = {}
    for stream in STREAMS:
        items = read_all(settings.directory, epoch.id, stream)
        assert gaps_of(items) == []
        rows = rows_of(items)
        stored |= {(epoch.id, stream, row.seq): row.key for row in rows}
        keys.update(f"{stream} {row.key}" for row in rows)
        assert totals[f"{stream}-spool"] == Totals(received=len(rows), committed=len(rows))
    assert answered.items() <= stored.items()
    return keys


def test_after_every_kill_what_was_answered_is_there_once(tmp_path: Path) -> None:
    settings = store_settings(tmp_path, priorities=PRIORITIES, cap_bytes=256 << 20)
    answered = kill_often(settings, rounds=8, seed=1)
    keys = check_accounts(settings, answered)
    assert len(answered) > 100
    assert set(keys.values()) == {1}


@pytest.mark.slow
def test_control_without_frame_identity_a_retry_is_stored_twice(tmp_path: Path) -> None:
    settings = store_settings(tmp_path, priorities=PRIORITIES, cap_bytes=256 << 20, frame_identity=False)
    keys = check_accounts(settings, kill_often(settings, rounds=24, seed=2))
    assert max(keys.values()) > 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_kills(tmp_path: Path) -> None:
    settings = store_settings(tmp_path, priorities=PRIORITIES, cap_bytes=1 << 30)
    keys = check_accounts(settings, kill_often(settings, rounds=100, seed=3))
    assert set(keys.values()) == {1}
