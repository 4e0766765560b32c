"""Reads the buffer from another process: edged-sync, ``edged results``, a person's script.

Never writes and holds nothing between calls: each call opens the segments that it needs, runs short statements with a
limit, and closes them. The daemon may append, seal and unlink meanwhile, or be down. What SQLite cannot read in a
sealed segment is read page by page; the rest of it is a gap. Raises StoreError: ``busy`` and ``io`` are worth
another try later, ``corrupt`` goes away when the daemon has put the damaged file aside.

Numbers that hold neither a row nor a recorded gap were lost: they are handed out as a gap, so what is read is
contiguous whatever happened. A recorded gap wins over a row: its segment is about to go.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.buffer import schema
from edged.buffer.errors import cause, store_error, translate
from edged.buffer.files import segment_numbers, segment_path, wal_path
from edged.buffer.ledger import Ledger, read_ledger
from edged.buffer.records import Epoch, Gap, Range, StoredRow, StreamPosition, holes, merge, subtract
from edged.buffer.salvage import Salvaged, salvage
from edged.buffer.segment import open_reading, read_head
from edged.errors import StoreError

__all__ = ["BufferReader", "Epoch", "Gap", "StoredRow", "StreamPosition"]

ATTEMPTS = 5  # a segment can vanish between two looks; after so many there is another reason
CORRUPT, LOST = "corrupt", "lost"


@dataclass(frozen=True, slots=True)
class SegmentExtent:
    """What a segment holds: its range of each stream, by name, with the number under which the rows are stored."""

    number: int
    epoch: str
    lane: int
    streams: dict[str, tuple[int, Range]]


@dataclass(frozen=True, slots=True)
class _Cached:
    identity: tuple[int, int, int]
    extent: SegmentExtent


class _Vanished(Exception):
    """A segment went away between two looks: look again."""


class BufferReader:
    """The results in a buffer directory. Not for use by two threads at once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        self._extents: dict[int, _Cached] = {}
        self._salvaged: tuple[int, Salvaged] | None = None

    def epochs(self) -> list[Epoch]:
        """All epochs of which something is known, oldest first. Raises StoreError."""
        ledger = self._ledger()
        return list(ledger.epochs) if ledger else []

    def streams(self, epoch: str) -> list[StreamPosition]:
        """The extent of every stream of an epoch, by name. Raises StoreError."""
        extents, ledger = self._look()
        positions = []
        for stream in sorted(_streams(extents, ledger, epoch)):
            held = [extent for extent in extents if extent.epoch == epoch and stream in extent.streams]
            ranges = [extent.streams[stream][1] for extent in held]
            ranges += [(gap.first, gap.last) for gap in ledger.gaps_of(epoch, stream)]
            lane = max(held, key=lambda extent: extent.number).lane if held else 0
            if ranges:
                first, last = min(r[0] for r in ranges), max(r[1] for r in ranges)
                positions.append(StreamPosition(stream, first, last, lane))
        return positions

    def read(self, epoch: str, stream: str, after: int, limit: int) -> list[StoredRow | Gap]:
        """At most ``limit`` rows and gaps of a stream, in order and contiguous from ``after`` + 1. Raises StoreError.

        A gap may stand for any number of rows. An empty list: there is nothing beyond ``after`` yet.
        """
        for _ in range(ATTEMPTS):
            with contextlib.suppress(_Vanished):
                return self._read(epoch, stream, after, limit)
        raise store_error("busy", f"{self._directory}: segments vanish faster than they are read", "try again")

    def _read(self, epoch: str, stream: str, after: int, limit: int) -> list[StoredRow | Gap]:
        extents = [e for e in self._list() if e.epoch == epoch and stream in e.streams]
        extents.sort(key=lambda extent: extent.streams[stream][1])
        rows: list[StoredRow] = []
        damage: list[Gap] = []
        for extent in extents:
            if len(rows) >= limit:
                break
            position = max(after, rows[-1].seq if rows else 0)
            if extent.streams[stream][1][1] > position:
                rows += self._rows(extent, stream, position, limit - len(rows), damage)
        ledger = self._ledger()  # after the segments: whatever went away meanwhile stands in it by now
        gaps = merge([*(ledger.gaps_of(epoch, stream) if ledger else ()), *damage])
        last = max([e.streams[stream][1][1] for e in extents] + [gap.last for gap in gaps], default=0)
        complete = len(rows) < limit
        end = last if complete else rows[-1].seq
        return _weave(rows, gaps, after, max(end, after), limit)

    def _rows(self, extent: SegmentExtent, stream: str, after: int, limit: int, damage: list[Gap]) -> list[StoredRow]:
        number, (_, last) = extent.streams[stream]
        bounds = (schema.row_id(number, after + 1), schema.row_id(number, last), limit)
        path = segment_path(self._directory, extent.number)
        try:
            with self._open(path) as connection:
                found = connection.execute(schema.SELECT_ROWS, bounds).fetchall()
            if all(schema.checksum(row, row[9], row[10]) == row[8] for row in found):
                return [stored_row(row) for row in found]
        except sqlite3.Error as error:
            if cause(error) != "corrupt":
                raise translate(error, path.name) from error
        if wal_path(path).exists():
            raise store_error("corrupt", f"{path.name} is damaged", "the daemon puts it aside when it starts")
        return self._salvaged_rows(extent.number, bounds, damage)

    def _salvaged_rows(self, number: int, bounds: tuple[int, int, int], damage: list[Gap]) -> list[StoredRow]:
        """The rows that read page by page; what is missing between them goes to ``damage``."""
        first, last, limit = bounds
        found = self._salvage(number)
        ids = sorted(i for i in found.rows if first <= i <= last)[:limit]
        until = ids[-1] if len(ids) == limit else last
        missing = holes([(i, i) for i in ids], first, until)
        damage += [Gap(a & schema.SEQ_MASK, b & schema.SEQ_MASK, CORRUPT, upper_bound=False) for a, b in missing]
        return [salvaged_row(found, i) for i in ids]

    def _salvaged_extent(self, number: int) -> SegmentExtent:
        found = self._salvage(number)
        head = found.head()
        if head is None:
            hint = "the daemon puts it aside when it looks at it next"
            raise store_error("corrupt", f"{segment_path(self._directory, number).name} has lost its head", hint)
        streams = {stream: (name, extent) for stream, (name, extent) in found.ranges().items()}
        return SegmentExtent(number, head.epoch, head.lane, streams)

    def _salvage(self, number: int) -> Salvaged:
        if self._salvaged is None or self._salvaged[0] != number:
            try:
                self._salvaged = (number, salvage(segment_path(self._directory, number)))
            except OSError as error:
                raise _Vanished from error
        return self._salvaged[1]

    def _look(self) -> tuple[list[SegmentExtent], Ledger]:
        for _ in range(ATTEMPTS):
            with contextlib.suppress(_Vanished):
                extents = self._list()
                ledger = self._ledger()
                if ledger is None:
                    break
                return extents, ledger
        raise store_error("busy", f"{self._directory}: there is no buffer here yet", "is the daemon running?")

    def _ledger(self) -> Ledger | None:
        try:
            return read_ledger(self._directory)
        except OSError as error:
            raise translate(error, str(self._directory)) from error

    def _list(self) -> list[SegmentExtent]:
        try:
            numbers = segment_numbers(self._directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise translate(error, str(self._directory)) from error
        self._extents = {number: self._extents[number] for number in numbers if number in self._extents}
        return [self._extent(number) for number in numbers]

    def _extent(self, number: int) -> SegmentExtent:
        path = segment_path(self._directory, number)
        identity = _settled(path)
        cached = self._extents.get(number)
        if cached is not None and identity is not None and cached.identity == identity:
            return cached.extent
        try:
            with self._open(path) as connection:
                extent = read_extent(connection, path)
        except (sqlite3.Error, StoreError) as error:
            if cause(error) != "corrupt" or wal_path(path).exists():
                raise translate(error, path.name) from error
            extent = self._salvaged_extent(number)
        if identity is not None and _settled(path) == identity:
            self._extents[number] = _Cached(identity, extent)
        return extent

    @contextlib.contextmanager
    def _open(self, path: Path) -> Iterator[sqlite3.Connection]:
        try:
            connection = open_reading(path)
            connection.execute("SELECT 1 FROM meta LIMIT 1").fetchone()
        except sqlite3.OperationalError as error:
            if not path.exists():
                raise _Vanished from error
            raise
        try:
            yield connection
        finally:
            connection.close()


def read_extent(connection: sqlite3.Connection, path: Path) -> SegmentExtent:
    """The ranges that a segment holds, by a few seeks for each stream. Raises StoreError, sqlite3.Error."""
    head = read_head(connection, path)
    streams: dict[str, tuple[int, Range]] = {}
    names = connection.execute("SELECT id, text FROM name").fetchall()
    for number, name in names:
        bounds = (schema.row_id(number, 0), schema.row_id(number, schema.SEQ_MASK))
        query = "SELECT min(id) FROM entry WHERE id BETWEEN ? AND ?"
        (first,) = connection.execute(query, bounds).fetchone()
        if first is not None:
            (last,) = connection.execute(query.replace("min", "max"), bounds).fetchone()
            streams[name] = (number, (first & schema.SEQ_MASK, last & schema.SEQ_MASK))
    return SegmentExtent(head.number, head.epoch, head.lane, streams)


def stored_row(row: tuple[Any, ...]) -> StoredRow:
    """A row of ``schema.SELECT_ROWS`` as a value."""
    source, boot_id, clock, model, digest, engine = (value or "" for value in row[11:17])
    key = row[9].decode("utf-8", "replace")  # a file name need not be text; the exact bytes stay in the file
    return StoredRow(
        seq=row[0] & schema.SEQ_MASK, kind=schema.KINDS[row[1]], source=source, key=key, count=row[4],
        wall_ns=row[6], received_ns=row[5], latency_ns=row[7], boot_id=boot_id, clock_quality=clock, model=model,
        digest=digest, engine=engine, body=row[10],
    )  # fmt: skip


def salvaged_row(found: Salvaged, rowid: int) -> StoredRow:
    """A salvaged row as a value; strings that were lost are empty."""
    row = found.rows[rowid]
    context = found.contexts.get(row[3], ("",) * 5)
    return stored_row((*row, found.names.get(row[2], ""), *context))


def _settled(path: Path) -> tuple[int, int, int] | None:
    """What tells one state of a file from another; None while a log lies beside it."""
    try:
        if wal_path(path).exists():
            return None
        stat = path.stat()
    except OSError:
        return None
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _streams(extents: list[SegmentExtent], ledger: Ledger, epoch: str) -> set[str]:
    names = {stream for extent in extents if extent.epoch == epoch for stream in extent.streams}
    return names | {each.stream for each in ledger.gaps if each.epoch == epoch}


def _weave(rows: list[StoredRow], gaps: Sequence[Gap], after: int, end: int, limit: int) -> list[StoredRow | Gap]:
    """Rows, recorded gaps and what neither covers, in order from ``after`` + 1 to ``end``."""
    kept = {row.seq: row for row in rows if not any(gap.first <= row.seq <= gap.last for gap in gaps)}
    covered = [(seq, seq) for seq in kept] + [(gap.first, gap.last) for gap in gaps]
    parts = [part for gap in gaps for part in subtract(gap, [(0, after), (end + 1, max(end + 1, gap.last))])]
    parts += [Gap(first, last, LOST, upper_bound=False) for first, last in holes(covered, after + 1, end)]
    items: list[StoredRow | Gap] = [*kept.values(), *merge(parts)]
    return sorted(items, key=lambda item: item.seq if isinstance(item, StoredRow) else item.first)[:limit]
