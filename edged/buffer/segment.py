"""One segment file: made whole, appended to while it is the active one of its lane, sealed when it is full.

Life: written under a temporary name, fsynced and renamed; then write-ahead logging with ``synchronous=FULL``; at last
checkpointed and turned back to a single plain file. A kill at any instant leaves either no segment or a readable one.
Every method belongs to the writer thread. Raises sqlite3.Error and OSError; the journal decides what they mean.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edged.buffer import schema
from edged.buffer.errors import cause, store_error
from edged.buffer.files import FILE_MODE, TEMPORARY, companions, segment_path, sync_directory, wal_path
from edged.buffer.files import size_bytes as file_bytes
from edged.buffer.schema import Head, Summary

T = TypeVar("T")

BUSY_MS = 200  # a reader holds a segment for a few milliseconds
CACHE_KIB = 512  # only the last pages are written to; SQLite's default of 2 MiB a lane is for others

Context = tuple[str, str, str, str, str]  # boot id, clock quality, model, digest, engine
Counts = tuple[int, int, int]  # committed, rejected, dropped


@dataclass(slots=True)
class Extent:
    """What a segment holds, kept up while it grows."""

    rows: int = 0
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)
    last_wall_ns: int = 0

    def add(self, stream: str, seq: int, source: str, counts: Counts, wall_ns: int) -> None:
        """Count one row."""
        held = self.ranges.get(stream)
        self.ranges[stream] = (held[0] if held else seq, seq)
        self.counts[source] = schema.add(self.counts.get(source, (0, 0, 0)), counts)
        self.rows += 1
        if wall_ns > self.last_wall_ns:
            self.last_wall_ns = wall_ns


OnRow = Callable[[str, int, int, str, bytes], None]  # stream, seq, kind number, source, key


class Segment:
    """An active segment. ``extent`` says what it holds; strings are interned in the transaction that needs them."""

    def __init__(self, path: Path, connection: sqlite3.Connection, head: Head) -> None:
        self.path = path
        self.head = head
        self.extent = Extent()
        self.pages_logged = 0  # pages that are only in the log, about
        self._connection = connection
        self._names: dict[str, int] = {}
        self._contexts: dict[Context, int] = {}
        self._load_strings()

    @property
    def number(self) -> int:
        """The number in the file's name."""
        return self.head.number

    def totals(self) -> dict[str, Counts]:
        """The account of each source of this lane: what the segment began with and its own rows."""
        totals = dict(self.head.totals)
        for source, counts in tuple(self.extent.counts.items()):  # other threads ask
            totals[source] = schema.add(totals.get(source, (0, 0, 0)), counts)
        return totals

    def size_bytes(self) -> int:
        """What the segment takes on the disk, log included."""
        return sum(file_bytes(path) for path in companions(self.path))

    def fill_bytes(self) -> int:
        """How far the segment is full. What a reader keeps from being folded in counts: it must not grow for ever."""
        return file_bytes(self.path) + self.pages_logged * schema.PAGE_BYTES

    def log_bytes(self) -> int:
        """Size of the write-ahead log."""
        return file_bytes(wal_path(self.path))

    def scan(self, on_row: OnRow) -> None:
        """Read every row and fill ``extent``. Raises StoreError (code "corrupt") at the first damage."""
        extent = Extent()
        names = {number: name for name, number in self._names.items()}
        rows = self._connection.execute(schema.SELECT_ROWS, (0, (1 << 63) - 1, -1))
        for row in rows:
            stream, source, kind = names.get(row[0] >> schema.SEQ_BITS), row[11], row[1]
            seq = row[0] & schema.SEQ_MASK
            if stream is None or source is None or schema.checksum(row, row[9], row[10]) != row[8]:
                raise store_error("corrupt", f"{self.path.name}: row {row[0]:#x} is damaged")
            if stream in extent.ranges and seq != extent.ranges[stream][1] + 1:
                raise store_error("corrupt", f"{self.path.name}: {stream} lacks rows before {seq}")
            extent.add(stream, seq, source, schema.counted(schema.KINDS[kind], row[4]), row[6])
            on_row(stream, seq, kind, source, row[9])
        self.extent = extent

    def begin(self) -> None:
        """Start the transaction of a commit."""
        self._connection.execute("BEGIN IMMEDIATE")

    def name(self, text: str) -> int:
        """Number of a stream or source, interned when it is new."""
        number = self._names.get(text)
        if number is None:
            number = self._names[text] = len(self._names) + 1
            self._connection.execute("INSERT INTO name VALUES(?,?)", (number, text))
        return number

    def context(self, context: Context) -> int:
        """Number of a context, interned when it is new."""
        number = self._contexts.get(context)
        if number is None:
            number = self._contexts[context] = len(self._contexts) + 1
            self._connection.execute("INSERT INTO context VALUES(?,?,?,?,?,?)", (number, *context))
        return number

    def commit(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows and return when they are on the medium."""
        self._connection.executemany(schema.INSERT, rows)
        self._connection.execute("COMMIT")
        self.pages_logged += 1 + sum(len(row[10]) for row in rows) // schema.PAGE_BYTES

    def roll_back(self) -> None:
        """Give up the transaction, strings included."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("ROLLBACK")
        with contextlib.suppress(sqlite3.Error):
            self._load_strings()

    def checkpoint(self, mode: str = "PASSIVE") -> None:
        """Move the log into the file as far as readers allow."""
        _, logged, moved = self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        self.pages_logged = logged - moved

    def has(self, stream: str, seq: int) -> bool:
        """Whether a row is there."""
        number = self._names.get(stream)
        if number is None:
            return False
        found = self._connection.execute("SELECT 1 FROM entry WHERE id = ?", (schema.row_id(number, seq),))
        return found.fetchone() is not None

    def summary(self) -> Summary:
        """What the segment holds, as it will stand in the sealed file."""
        extent = self.extent
        return Summary(rows=extent.rows, ranges=dict(extent.ranges), totals=self.totals(),
                       last_wall_ns=extent.last_wall_ns)  # fmt: skip

    def seal(self, summary: Summary) -> None:
        """Write the summary, fold the log in and close. Raises sqlite3.OperationalError (busy) while it is read."""
        text = msgspec.json.encode(summary).decode()
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES('summary', ?)", (text,))
        self.close()

    def close(self) -> None:
        """Fold the log into the file, so that it is one plain file, and close. A busy reader keeps the log alive."""
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            _set_journal(self._connection, self.path, "delete")
        finally:
            self._connection.close()

    def abandon(self) -> None:
        """Close without another write, as far as SQLite allows."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def _load_strings(self) -> None:
        execute = self._connection.execute
        self._names = {text: number for number, text in execute("SELECT id, text FROM name")}
        self._contexts = {row[1:]: row[0] for row in execute("SELECT * FROM context")}


def create_segment(directory: Path, head: Head) -> Path:
    """Make an empty segment on the medium; it appears under its name whole or not at all."""
    path = segment_path(directory, head.number)
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        write_segment(temporary, head)
        temporary.rename(path)
    except (OSError, sqlite3.Error):
        for leftover in companions(temporary):
            leftover.unlink(missing_ok=True)
        raise
    sync_directory(directory)
    return path


def write_segment(path: Path, head: Head, fill: Callable[[sqlite3.Connection], None] | None = None) -> None:
    """Write a new segment file, let ``fill`` add to it, and fsync it."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE)
    os.fchmod(handle, FILE_MODE)  # before SQLite opens it: its log takes the same mode
    os.close(handle)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={schema.PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode=MEMORY")
        connection.execute("PRAGMA synchronous=OFF")  # nobody knows the file yet; it is fsynced once, below
        connection.executescript(f"BEGIN; {schema.TABLES} PRAGMA application_id={schema.APPLICATION_ID};"
                                 f"PRAGMA user_version={schema.FORMAT};")  # fmt: skip
        meta = [("epoch", head.epoch), ("device", head.device), ("head", msgspec.json.encode(head).decode())]
        connection.executemany("INSERT INTO meta VALUES(?,?)", meta)
        if fill is not None:
            fill(connection)
        connection.execute("COMMIT")
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_segment(path: Path) -> Segment:
    """Open a segment to append to it."""
    connection = sqlite3.connect(path.as_uri() + "?mode=rw", uri=True, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        _set_journal(connection, path, "wal")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=0")  # ours runs after the answer, and its errors are seen
        return Segment(path, connection, read_head(connection, path))
    except BaseException:  # a cancellation too: what was begun is undone, and it goes on
        connection.close()
        raise


def roll_back_hot_journal(path: Path) -> None:
    """Finish what a kill left half done while a segment was made one plain file. Raises sqlite3.Error."""
    if path.with_name(path.name + "-journal").exists():
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("SELECT count(*) FROM meta").fetchone()


def open_reading(path: Path) -> sqlite3.Connection:
    """Open a segment for a few short statements. Never writes to it."""
    connection = sqlite3.connect(path.as_uri() + "?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    return connection


def read_head(connection: sqlite3.Connection, path: Path) -> Head:
    """The head of a segment. Raises StoreError (code "corrupt")."""
    head = _meta(connection, path, "head", Head)
    if head is None:
        raise store_error("corrupt", f"{path.name}: it has no head")
    if head.format != schema.FORMAT:
        raise store_error("corrupt", f"{path.name}: format {head.format} is not known here")
    return head


def read_summary(connection: sqlite3.Connection, path: Path) -> Summary | None:
    """The summary of a segment; None unless it is sealed. Raises StoreError (code "corrupt")."""
    return _meta(connection, path, "summary", Summary)


def _set_journal(connection: sqlite3.Connection, path: Path, mode: str) -> None:
    (now,) = connection.execute(f"PRAGMA journal_mode={mode}").fetchone()
    if now != mode:  # after an I/O error SQLite keeps the old mode without a word
        raise store_error("io", f"{path.name}: its journal mode stays {now}")


def _meta(connection: sqlite3.Connection, path: Path, key: str, kind: type[T]) -> T | None:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    try:
        return msgspec.json.decode(row[0], type=kind)
    except (msgspec.DecodeError, TypeError) as error:
        raise store_error("corrupt", f"{path.name}: its {key} is damaged: {error}") from None


def is_intact(path: Path, rows: int, *, thorough: bool) -> bool:
    """Whether a sealed segment reads whole: its pages; if ``thorough``, every checksum and the number of rows too."""
    try:
        with contextlib.closing(open_reading(path)) as connection:
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                return False
            if not thorough:
                return True
            found = connection.execute(schema.SELECT_ROWS, (0, (1 << 63) - 1, -1))
            good = [schema.checksum(row, row[9], row[10]) == row[8] for row in found]
            return all(good) and len(good) == rows
    except sqlite3.DatabaseError as error:
        if cause(error) == "corrupt":
            return False
        raise
