"""The durable result store of the daemon: ``edged.ports.ResultStore`` over segments, with one writer thread.

Rules: a receipt exists only after its row is on the medium. There is no timer: a commit takes whatever queued during
the previous fsync, and one call into the event loop resolves the whole group. The queue has no bound of its own:
whoever awaits ``commit`` holds at most one batch in it, so the bounds of the pipelines' queues are its bound.

Does not decide what happens to a frame whose commit failed: StoreError says why, the pipeline decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import fcntl
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar

import msgspec
import numpy as np

from edged.buffer import files, schema
from edged.buffer.errors import store_error, translate
from edged.buffer.journal import Journal
from edged.buffer.records import Kept
from edged.buffer.recovery import recover
from edged.buffer.settings import StoreSettings
from edged.buffer.upkeep import Upkeep
from edged.domain import Entry, FrameId, Receipt, Totals
from edged.errors import StoreError
from edged.status import BufferFacts, LatestResult

__all__ = ["SegmentStore", "StoreSettings"]

TIDY_S = 2.0  # how soon an acknowledgement is seen; one wake-up of the process in so many seconds
GROUP_ENTRIES = 512  # one transaction; 64 frames a batch, eight batches that wait

Outcome = Receipt | StoreError
T = TypeVar("T")


class _Call:
    """One ``commit`` that waits for its group."""

    __slots__ = ("entries", "future")

    def __init__(self, entries: Sequence[Entry], future: asyncio.Future[list[Receipt]]) -> None:
        self.entries = entries
        self.future = future


class SegmentStore:
    """The result store. Between ``open`` and ``close``, from one event loop; ``async with`` does both."""

    def __init__(self, settings: StoreSettings, device: str) -> None:
        self.settings = settings
        self._device = device
        self._journal_: Journal | None = None
        self._lock_handle = -1
        self._waiting: deque[_Call] = deque()
        self._current: list[_Call] = []
        self._wake = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Bring the directory in order and start the writer. Raises StoreError."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        self._closing = False
        self._thread = threading.Thread(target=self._run, args=(loop, ready), name="buffer-writer", daemon=True)
        self._thread.start()
        await ready

    async def close(self) -> None:
        """Commit what waits, leave plain files and stop the writer."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._wake:
            self._closing = True
            self._wake.notify()
        while thread.is_alive():
            await asyncio.sleep(0.005)

    @property
    def epoch(self) -> str:
        """UUID under which sequence numbers are counted now."""
        return self._journal.shelf.ledger.epoch

    def find(self, frames: Sequence[FrameId]) -> list[Receipt | None]:
        """The receipts of frames that were stored before, in order; None where the frame is new."""
        if not self.settings.frame_identity:
            return [None] * len(frames)
        lookup = self._journal.lookup
        return [lookup(frame) for frame in frames]

    async def commit(self, entries: Sequence[Entry]) -> list[Receipt]:
        """Store entries and return once they are on the medium. Raises StoreError: then call again or give up.

        Entries of one call and one priority are stored together or not at all.
        """
        if not entries:
            return []
        self._check(entries)
        future: asyncio.Future[list[Receipt]] = asyncio.get_running_loop().create_future()
        with self._wake:
            if self._closing or self._thread is None:
                raise store_error("closed", "the buffer is closed")
            self._waiting.append(_Call(entries, future))
            self._wake.notify()
        return await future

    def totals(self) -> dict[str, Totals]:
        """The durable account of each source."""
        return {source: schema.as_totals(counts) for source, counts in self._journal.shelf.totals().items()}

    def last_seq(self, stream: str) -> int:
        """The newest number of a stream in this epoch; 0 before the first."""
        return self._journal.shelf.next_seq.get(stream, 1) - 1

    def facts(self) -> BufferFacts:
        """What ``edged status`` shows. Cheap: looks at the active files only."""
        journal, settings = self._journal, self.settings
        shelf = journal.shelf
        sealed, active = shelf.sealed, tuple(shelf.active.values())
        extents = [(each.head.epoch, each.summary.rows, each.summary.ranges) for each in sealed]
        extents += [(each.head.epoch, each.extent.rows, dict(each.extent.ranges)) for each in active]
        unsent = sum(
            max(0, last - max(first - 1, journal.acked.get((epoch, stream), 0)))
            for epoch, _, ranges in extents
            for stream, (first, last) in ranges.items()
        )
        micros = np.array(tuple(journal.commit_ns)) / 1000 if journal.commit_ns else None
        return BufferFacts(
            epoch=shelf.ledger.epoch, state=journal.state.value, reason=journal.reason,
            rows=sum(rows for _, rows, _ in extents), segments=len(extents), bytes=shelf.size_bytes(),
            cap_bytes=settings.cap_bytes, unsent_rows=unsent,
            commit_p50_us=None if micros is None else float(np.percentile(micros, 50)),
            commit_p99_us=None if micros is None else float(np.percentile(micros, 99)),
        )  # fmt: skip

    def latest(self, count: int) -> list[LatestResult]:
        """The newest entries of this run, newest first, from memory."""
        kept = tuple(self._journal.latest)
        return [_shown(each) for each in reversed(kept[-count:])] if count > 0 else []

    def _check(self, entries: Sequence[Entry]) -> None:
        """Refuse what can never be stored, before it spoils a group."""
        limit = self._journal.shelf.segment_limit // 4
        for entry in entries:
            if len(entry.body) > limit:
                hint = f"at most {limit} bytes fit in this buffer; raise buffer.segment_mb"
                raise store_error("entry", f"{entry.stream}: a result of {len(entry.body)} bytes is too large", hint)
            try:
                entry.body.decode()
                key = entry.frame.key.encode(*schema.KEY_ENCODING) if entry.frame is not None else b""
            except UnicodeError as error:
                raise store_error("entry", f"{entry.stream}: {error}", "bodies and keys are text") from None
            if len(key) > limit:
                raise store_error("entry", f"{entry.stream}: a key of {len(key)} bytes is too large")

    @property
    def _journal(self) -> Journal:
        if self._journal_ is None:
            raise store_error("closed", "the buffer is not open")
        return self._journal_

    # the writer thread

    def _run(self, loop: asyncio.AbstractEventLoop, ready: asyncio.Future[None]) -> None:
        try:
            journal = self._start()
        except (StoreError, OSError, sqlite3.Error) as error:
            self._unlock()
            loop.call_soon_threadsafe(_fail, ready, translate(error, str(self.settings.directory)))
            return
        loop.call_soon_threadsafe(_succeed, ready, None)
        try:
            self._serve(journal, Upkeep(journal), loop)
        finally:  # also after an error of our own: nobody may wait for ever, the loop's supervisor hears of it
            self._abandon(loop)
            journal.close()
            self._unlock()

    def _start(self) -> Journal:
        files.make_directory(self.settings.directory)
        self._lock()
        shelf, notes = recover(self.settings, self._device)
        self._journal_ = Journal(shelf, notes)
        return self._journal_

    def _serve(self, journal: Journal, upkeep: Upkeep, loop: asyncio.AbstractEventLoop) -> None:
        tidied_s = time.monotonic()
        while True:
            calls = self._take(tidied_s + TIDY_S)
            if calls is None:
                return
            self._current = calls
            if calls:
                results = journal.append([entry for call in calls for entry in call.entries])
                loop.call_soon_threadsafe(_resolve, calls, results)
                self._current = []
                upkeep.tend()
            if time.monotonic() - tidied_s >= TIDY_S:
                upkeep.tidy()
                tidied_s = time.monotonic()

    def _abandon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Refuse what still waits; after a regular end nothing does."""
        with self._wake:
            self._closing = True
            calls = [*self._current, *self._waiting]
            self._waiting.clear()
        error = store_error("internal", "the writer of the buffer ended", "its error is in the log; restart the daemon")
        for call in calls:
            loop.call_soon_threadsafe(_fail, call.future, error)

    def _take(self, until_s: float) -> list[_Call] | None:
        """The next group: all that waits, up to a bound. Empty when it is time to tidy, None when all is done."""
        with self._wake:
            while not self._waiting and not self._closing:
                timeout_s = until_s - time.monotonic()
                if timeout_s <= 0 or not self._wake.wait(timeout_s):
                    return []
            if not self._waiting:
                return None
            calls = [self._waiting.popleft()]
            size = len(calls[0].entries)
            while self._waiting and size + len(self._waiting[0].entries) <= GROUP_ENTRIES:
                calls.append(self._waiting.popleft())
                size += len(calls[-1].entries)
            return calls

    def _lock(self) -> None:
        path = self.settings.directory / files.LOCK
        self._lock_handle = os.open(path, os.O_RDWR | os.O_CREAT, files.FILE_MODE)
        try:
            fcntl.flock(self._lock_handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise store_error("busy", f"{path} is locked", "another daemon writes to this buffer") from None

    def _unlock(self) -> None:
        handle, self._lock_handle = self._lock_handle, -1
        if handle >= 0:
            os.close(handle)


def _resolve(calls: Sequence[_Call], results: Sequence[Outcome]) -> None:
    """Answer a whole group, in the event loop."""
    at = 0
    for call in calls:
        mine = results[at : at + len(call.entries)]
        at += len(call.entries)
        receipts = [outcome for outcome in mine if isinstance(outcome, Receipt)]
        if len(receipts) == len(mine):
            _succeed(call.future, receipts)
        else:
            _fail(call.future, next(outcome for outcome in mine if isinstance(outcome, StoreError)))


def _succeed(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[T], error: StoreError) -> None:
    if not future.done():
        future.set_exception(error)


class _Body(msgspec.Struct):
    label: object = ""


def _shown(kept: Kept) -> LatestResult:
    entry = kept.entry
    label = ""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        label = str(msgspec.json.decode(entry.body, type=_Body).label)
    wall = datetime.datetime.fromtimestamp(kept.wall_ns / 1e9, datetime.UTC)
    return LatestResult(
        stream=entry.stream, seq=kept.seq, kind=entry.kind.value, source=entry.source,
        key=entry.frame.key if entry.frame is not None else "", label=label, engine=entry.engine,
        wall_time=wall.isoformat(timespec="milliseconds").replace("+00:00", "Z"), latency_us=kept.latency_ns / 1000,
    )  # fmt: skip
