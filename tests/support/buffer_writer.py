"""A process that fills a small buffer and tells every receipt, to be killed or fed with errors by strace.

``python -m tests.support.buffer_writer DIRECTORY ENTRIES``: commits ENTRIES results in batches and tries a batch
again when it failed. Prints a line for each receipt (epoch, seq, key, "again" for a duplicate) and each failure
("error", its code).
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from edged.buffer.store import SegmentStore, StoreSettings
from edged.errors import StoreError
from tests.support.buffer import entries, store_settings

BATCH = 10
BODY_BYTES = 2000
ATTEMPTS = 5


def small_settings(directory: Path) -> StoreSettings:
    """Room for a handful of segments, each full after a few dozen rows."""
    return store_settings(directory, cap_bytes=1 << 20, segment_bytes=96 << 10)


async def write(directory: Path, count: int) -> int:
    """Commit, retry and tell. Returns the number of batches that could not be stored."""
    lost = 0
    async with SegmentStore(small_settings(directory), "test") as store:
        tell("open")
        for first in range(0, count, BATCH):
            lost += not await write_batch(store, first)
    return lost


async def write_batch(store: SegmentStore, first: int) -> bool:
    batch = entries(first, BATCH, size=BODY_BYTES)
    for _ in range(ATTEMPTS):
        try:
            receipts = await store.commit(batch)
        except StoreError as error:
            tell(f"error {error.code} {error}")
            await asyncio.sleep(0.01)
            continue
        for item, receipt in zip(batch, receipts, strict=True):
            assert item.frame is not None
            tell(f"{receipt.epoch} {receipt.seq} {item.frame.key}{' again' if receipt.duplicate else ''}")
        return True
    return False


def tell(line: str) -> None:
    """One line, at once."""
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    sys.exit(min(asyncio.run(write(Path(sys.argv[1]), int(sys.argv[2]))), 1))
