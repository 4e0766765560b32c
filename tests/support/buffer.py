"""Entries, settings and the account of a buffer, for its tests."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edged.buffer.reader import BufferReader, Gap, StoredRow
from edged.buffer.store import SegmentStore, StoreSettings
from edged.domain import Entry, FrameId, Kind, Receipt

T = TypeVar("T")
MIB = 1 << 20
Tell = Callable[[str], None]


def store_settings(directory: Path, **changes: Any) -> StoreSettings:
    """A small buffer below ``directory``."""
    plain: dict[str, Any] = {
        "directory": directory / "buffer",
        "cap_bytes": 8 * MIB,
        "segment_bytes": MIB,
        "keep_s": 3600.0,
        "ack_file": directory / "ack.json",
    }
    return StoreSettings(**{**plain, **changes})


def entry(key: str, stream: str = "digits", kind: Kind = Kind.RESULT, size: int = 100, count: int = 1) -> Entry:
    """One entry; for a dropped one ``key`` is not used."""
    body = b'{"label":"7","pad":"' + b"x" * max(0, size - 22) + b'"}'
    source = f"{stream}-spool"
    frame = None if kind is Kind.DROPPED else FrameId(source, key)
    received_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return Entry(stream, kind, source, frame, received_ns, body, "digits@1", "d" * 64, "onnxruntime", count)


def entries(first: int, count: int, stream: str = "digits", size: int = 100) -> list[Entry]:
    """Results with keys f<first>, f<first + 1> …"""
    return [entry(f"f{index}", stream, size=size) for index in range(first, first + count)]


def with_store(settings: StoreSettings, act: Callable[[SegmentStore], Awaitable[T]], device: str = "test") -> T:
    """Open a store, act on it and close it."""

    async def run() -> T:
        async with SegmentStore(settings, device) as store:
            return await act(store)

    return asyncio.run(run())


def commit(settings: StoreSettings, *batches: Sequence[Entry]) -> list[Receipt]:
    """Open a store, commit batches one after the other and close it."""

    async def act(store: SegmentStore) -> list[Receipt]:
        return [receipt for batch in batches for receipt in await store.commit(batch)]

    return with_store(settings, act)


def read_all(directory: Path, epoch: str, stream: str, limit: int = 100) -> list[StoredRow | Gap]:
    """Everything in a stream from its beginning. Fails unless every number comes once, as a row or within a gap."""
    reader, items, after = BufferReader(directory), [], 0
    while found := reader.read(epoch, stream, after, limit):
        for item in found:
            first, last = (item.seq, item.seq) if isinstance(item, StoredRow) else (item.first, item.last)
            assert first == after + 1, f"{item} does not follow {after}"
            assert last >= first
            after = last
        items += found
    return items


def rows_of(items: Sequence[StoredRow | Gap]) -> list[StoredRow]:
    """The rows among what was read."""
    return [item for item in items if isinstance(item, StoredRow)]


def gaps_of(items: Sequence[StoredRow | Gap]) -> list[Gap]:
    """The gaps among what was read."""
    return [item for item in items if isinstance(item, Gap)]


def read_everything(directory: Path) -> dict[tuple[str, str], list[StoredRow | Gap]]:
    """Every stream of every epoch, checked for continuity."""
    reader = BufferReader(directory)
    places = [(epoch.id, position.stream) for epoch in reader.epochs() for position in reader.streams(epoch.id)]
    return {place: read_all(directory, *place) for place in places}


def fork_writer(settings: StoreSettings, write: Callable[[SegmentStore, Tell], Awaitable[None]]) -> tuple[int, int]:
    """Run ``write`` with a store in a forked process. Returns its pid and a pipe with the lines that it tells."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        os.close(reading)

        async def act(store: SegmentStore) -> None:
            await write(store, lambda line: (os.write(writing, f"{line}\n".encode()), None)[1])

        with_store(settings, act)
    finally:
        os._exit(0)
