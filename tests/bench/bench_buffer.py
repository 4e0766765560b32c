"""Segments or one file, and what the buffer costs: prints tables, decides nothing.

``python -m tests.bench.bench_buffer``. Bytes are those that the kernel charged to this process (``write_bytes`` in
/proc/self/io), so TMPDIR must lie on a real disk. Layouts, all in WAL with synchronous=FULL and bodies of 250 bytes:

one file   one table, a unique index on the frame, counters and totals as rows; acknowledged rows are deleted
segments   the same tables, but a new file every 16 MB; acknowledged files are unlinked
lean       a segment as we write it: the insert is the counter, the total and the identity; no second table changes
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from edged.buffer import schema
from edged.buffer.reader import BufferReader, StoredRow
from edged.buffer.store import SegmentStore, StoreSettings
from edged.domain import Entry, FrameId, Kind

BODY = '{"label":"7","index":7,"scores":[' + ",".join(["0.123456"] * 23) + "]}"
BODY = BODY[:248].ljust(250)
SEGMENT_BYTES = 16 << 20
KEPT = 5000  # rows that are not acknowledged yet, in the layout that deletes
DELAY_US = 20_000  # a slow SD card
ROWS = {1: 1000, 10: 5000, 100: 20_000}

NAIVE = """
CREATE TABLE entry(id INTEGER PRIMARY KEY AUTOINCREMENT, stream TEXT, seq INTEGER, kind TEXT, source TEXT, key TEXT,
    received INTEGER, wall INTEGER, boot TEXT, model TEXT, digest TEXT, engine TEXT, body TEXT);
CREATE UNIQUE INDEX identity ON entry(source, key);
CREATE TABLE counter(stream TEXT PRIMARY KEY, seq INTEGER);
CREATE TABLE totals(source TEXT PRIMARY KEY, received INTEGER, committed INTEGER);
"""

Commit = Callable[[sqlite3.Connection, int, int], None]


def naive_commit(connection: sqlite3.Connection, first: int, count: int) -> None:
    for index in range(first, first + count):
        connection.execute("INSERT INTO counter VALUES('s', 1) ON CONFLICT DO UPDATE SET seq = seq + 1")
        row = ("s", index, "result", "spool", f"{random.getrandbits(64):016x}", index, index, "b" * 36, "m@1", "d" * 64)
        connection.execute("INSERT INTO entry VALUES(NULL,?,?,?,?,?,?,?,?,?,?,?,?)", (*row, "onnxruntime", BODY))
        totals = "INSERT INTO totals VALUES('spool',1,1) ON CONFLICT DO UPDATE SET received=received+1"
        connection.execute(f"{totals}, committed=committed+1")


def lean_commit(connection: sqlite3.Connection, first: int, count: int) -> None:
    now = time.time_ns()
    rows = [
        (schema.row_id(1, index), 0, 2, 1, 1, now, now, 99, random.getrandbits(32), f"{random.getrandbits(64):x}", BODY)
        for index in range(first, first + count)
    ]
    connection.executemany(schema.INSERT, rows)


LAYOUTS: dict[str, tuple[str, Commit]] = {
    "one file": (NAIVE, naive_commit),
    "segments": (NAIVE, naive_commit),
    "lean": (schema.TABLES, lean_commit),
}


def open_file(path: Path, tables: str, segment_bytes: int) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint={segment_bytes // 4 // schema.PAGE_BYTES}")
    connection.executescript(tables)
    return connection


def fill(directory: Path, layout: str, rows: int, batch: int, segment_bytes: int = SEGMENT_BYTES) -> list[float]:
    """Commit rows in batches. Returns the seconds of each commit."""
    tables, commit = LAYOUTS[layout]
    number = 1
    connection = open_file(directory / f"{number}.db", tables, segment_bytes)
    seconds = []
    for first in range(1, rows + 1, batch):
        started = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        commit(connection, first, batch)
        connection.execute("COMMIT")
        if layout == "one file" and first > KEPT and first % 1000 < batch:
            connection.execute("DELETE FROM entry WHERE id <= ?", (first - KEPT,))
        seconds.append(time.perf_counter() - started)
        if layout != "one file" and (directory / f"{number}.db").stat().st_size >= segment_bytes:
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.close()
            number += 1
            connection = open_file(directory / f"{number}.db", tables, segment_bytes)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return seconds


def written_bytes() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])


@contextlib.contextmanager
def fresh() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="bench-buffer-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def percentiles(values: list[float]) -> str:
    return "  ".join(f"p{at} {np.percentile(values, at) * 1e6:9.0f}" for at in (50, 99))


def bench_bytes() -> None:
    print("\nbytes written for 1,000 results of 250 bytes, and the commit (us)")
    for batch, rows in ROWS.items():
        for layout in LAYOUTS:
            with fresh() as directory:
                before = written_bytes()
                seconds = fill(directory, layout, rows, batch)
                mega = (written_bytes() - before) / rows / 1000
                factor = mega * 1e6 / 250_000
                print(f"  {batch:4} a commit  {layout:9} {mega:7.2f} MB  {factor:6.1f}x  {percentiles(seconds)}")


def bench_slow_fsync() -> None:
    print(f"\ncommits of 10 with {DELAY_US // 1000} ms more for every fdatasync (us)")
    if shutil.which("strace") is None:
        print("  strace is missing")
        return
    for layout in LAYOUTS:
        with fresh() as directory:
            command = [sys.executable, "-m", "tests.bench.bench_buffer", "fill", str(directory), layout]
            trace = ["strace", "-f", "-qq", "-o", "/dev/null", "--seccomp-bpf", "-e", "trace=fdatasync"]
            delay = ["-e", f"inject=fdatasync:delay_enter={DELAY_US}"]
            done = subprocess.run([*trace, *delay, *command], capture_output=True, text=True, check=True)
            print(f"  {layout:9} {done.stdout.strip()}")


def readable_rows(path: Path) -> int:
    """Rows that SQLite hands out before it gives up."""
    count = 0
    with contextlib.suppress(sqlite3.DatabaseError), contextlib.closing(sqlite3.connect(path)) as connection:
        for _ in connection.execute("SELECT id, length(body) FROM entry ORDER BY id"):
            count += 1
    return count


def bench_damage(rows: int = 8000) -> None:
    print(f"\none zeroed page in {rows} rows: rows lost (the first page, a page in the middle), time to be ready")
    for layout in LAYOUTS:
        with fresh() as directory:
            fill(directory, layout, rows, 100, segment_bytes=1 << 20)
            print(f"  {layout:9} {_damage(directory, rows, 0)}   {_damage(directory, rows, None)}")
    for name, page in (("first page", 0), ("a page in the middle", None)):
        with fresh() as directory:
            settings = store_settings(directory, segment_bytes=1 << 20)
            asyncio.run(_commit(settings, rows, 64))
            path = sorted(settings.directory.glob("segment-*.db"))[1]
            _zero(path, page)
            started = time.perf_counter()
            epoch = asyncio.run(_epoch(settings))
            ready_ms = (time.perf_counter() - started) * 1000
            kept = _count(settings.directory, epoch)
            print(f"  the store {rows - kept:6} lost by {name}, ready after {ready_ms:.0f} ms")


def _zero(path: Path, page: int | None) -> None:
    number = path.stat().st_size // schema.PAGE_BYTES // 2 if page is None else page
    with path.open("r+b") as file:
        file.seek(number * schema.PAGE_BYTES)
        file.write(bytes(schema.PAGE_BYTES))


def _damage(directory: Path, rows: int, page: int | None) -> str:
    """Lost rows among those that are not deleted on purpose."""
    files = sorted(directory.glob("*.db"))
    whole = sum(readable_rows(path) for path in files)
    victim = files[len(files) // 2]
    saved = victim.read_bytes()
    _zero(victim, page)
    lost = whole - sum(readable_rows(path) for path in files)
    victim.write_bytes(saved)
    return f"{lost:6} of {whole}"


def store_settings(directory: Path, segment_bytes: int = SEGMENT_BYTES, cap_bytes: int = 256 << 20) -> StoreSettings:
    return StoreSettings(directory / "buffer", cap_bytes, segment_bytes, 3600.0, directory / "ack.json")


def entries(first: int, count: int) -> list[Entry]:
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    body = BODY.encode()
    return [
        Entry(
            "s", Kind.RESULT, "spool", FrameId("spool", f"{index:08x}.npy"), now, body, "m@1", "d" * 64, "onnxruntime"
        )
        for index in range(first, first + count)
    ]


async def _commit(settings: StoreSettings, rows: int, batch: int) -> tuple[list[float], float]:
    seconds = []
    async with SegmentStore(settings, "bench") as store:
        batches = [entries(first, batch) for first in range(0, rows, batch)]
        cpu = time.process_time()
        for batch_entries in batches:
            started = time.perf_counter()
            await store.commit(batch_entries)
            seconds.append(time.perf_counter() - started)
        cpu = time.process_time() - cpu
    return seconds, cpu / rows


async def _epoch(settings: StoreSettings) -> str:
    async with SegmentStore(settings, "bench") as store:
        return store.epoch


def _count(directory: Path, epoch: str) -> int:
    reader, after, rows = BufferReader(directory), 0, 0
    epochs = [each.id for each in reader.epochs()]
    for each in epochs:
        after = 0
        while found := reader.read(each, "s", after, 500):
            rows += sum(isinstance(item, StoredRow) for item in found)
            last = found[-1]
            after = last.seq if isinstance(last, StoredRow) else last.last
    assert epoch in epochs
    return rows


def bench_store() -> None:
    print("\nthe store: commit (us), CPU of the process for a row (us, with the kernel's share), bytes")
    for where in (None, "/dev/shm"):
        for batch, rows in {1: 2000, 10: 10_000, 64: 32_000}.items():
            with _place(where) as directory:
                settings = store_settings(directory)
                before = written_bytes()
                seconds, cpu = asyncio.run(_commit(settings, rows, batch))
                written = (written_bytes() - before) / rows
                size = sum(path.stat().st_size for path in settings.directory.glob("segment-*.db")) / rows
                medium = where or tempfile.gettempdir()
                print(f"  {medium:9} {batch:3} a commit  {percentiles(seconds)}  cpu {cpu * 1e6:6.1f}"
                      f"  written {written:6.0f} B a row, size {size:4.0f} B a row")  # fmt: skip


@contextlib.contextmanager
def _place(where: str | None) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="bench-buffer-", dir=where))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def bench_find(rows: int = 100_000) -> None:
    with fresh() as directory:
        settings = store_settings(directory, segment_bytes=1 << 20)

        async def act() -> tuple[float, int, float]:
            async with SegmentStore(settings, "bench") as store:
                for first in range(0, rows, 500):
                    await store.commit(entries(first, 500))
                unknown = [FrameId("spool", f"new-{index}") for index in range(20_000)]
                started = time.perf_counter()
                for at in range(0, len(unknown), 8):
                    store.find(unknown[at : at + 8])
                new = (time.perf_counter() - started) / len(unknown)
                started = time.perf_counter()
                store.find([FrameId("spool", f"{index:08x}.npy") for index in range(0, rows, 500)])
                return new, store.facts().segments, (time.perf_counter() - started) / (rows // 500)

        new, segments, known = asyncio.run(act())
        started = time.perf_counter()
        asyncio.run(_epoch(settings))
        opened = time.perf_counter() - started
        print(f"\nfind among {rows} frames in {segments} segments: {new * 1e6:.1f} us a new frame, "
              f"{known * 1e6:.0f} us a known one; open and close {opened * 1e3:.0f} ms")  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["fill"]:
        seconds = fill(Path(sys.argv[2]), sys.argv[3], 6000, 10)
        print(f"{percentiles(seconds)}  max {max(seconds) * 1e6:.0f}")
        return
    print(f"SQLite {sqlite3.sqlite_version}, Python {sys.version.split()[0]}, {os.cpu_count()} cores")
    bench_bytes()
    bench_store()
    bench_find()
    bench_damage()
    bench_slow_fsync()


if __name__ == "__main__":
    main()
