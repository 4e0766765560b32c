"""Puts damaged segments aside: the file goes to ``quarantine/``, what reads of it comes back as a sealed segment.

The new segment has a number of its own and names the one that it replaces, so a kill at any instant leaves either the
damaged file to be found again or both. What does not read becomes a gap.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from pathlib import Path

import msgspec

from edged.buffer import files, schema
from edged.buffer.errors import cause
from edged.buffer.files import QUARANTINE, TEMPORARY
from edged.buffer.identity import index_rows
from edged.buffer.records import Gap
from edged.buffer.salvage import Salvaged, salvage
from edged.buffer.schema import SEQ_BITS, SEQ_MASK, Head, Summary
from edged.buffer.segment import Counts, Extent, write_segment
from edged.buffer.shelf import Sealed, Shelf

CORRUPT = "corrupt"


def put_aside(shelf: Shelf, path: Path, number: int, notes: list[str]) -> None:
    """Move a damaged segment to the quarantine; what reads of it comes back as a sealed segment. Raises OSError."""
    found = salvage(path)
    notes.append(f"{path.name} is damaged: {len(found.rows)} rows of it could be read")
    shelf.index.drop(number)
    shelf.sealed = tuple(each for each in shelf.sealed if each.number != number)
    head = found.head() or _guess_head(shelf, number)
    if found.rows and head is not None:
        try:
            _replace(shelf, found, head, number)
        except (OSError, sqlite3.Error) as error:
            if cause(error) != "full":
                raise
            notes.append(f"{path.name}: there is no room for what could be read; it stays in {QUARANTINE}")
    move_aside(shelf.directory, path)
    files.frames_path(shelf.directory, number).unlink(missing_ok=True)
    shelf.measure()


def move_aside(directory: Path, path: Path) -> None:
    """Move a file and what SQLite keeps beside it to the quarantine, under a name of its own. Raises OSError."""
    target = directory / QUARANTINE
    files.make_directory(target)
    stamp = time.time_ns()
    for each in files.companions(path):
        if each.name.endswith("-shm"):
            each.unlink(missing_ok=True)
        elif each.exists():
            shutil.move(each, target / f"{stamp}-{each.name}")
    files.sync_directory(directory)
    files.sync_directory(target)


def _replace(shelf: Shelf, found: Salvaged, head: Head, number: int) -> None:
    extent = Extent()
    lost: dict[str, list[Gap]] = {}
    for rowid in sorted(found.rows):
        row, seq, stream = found.rows[rowid], rowid & SEQ_MASK, found.names.get(rowid >> SEQ_BITS)
        if stream is None:
            continue
        before = extent.ranges.get(stream)
        if before is not None and seq > before[1] + 1:
            lost.setdefault(stream, []).append(Gap(before[1] + 1, seq - 1, CORRUPT, upper_bound=False))
        source = found.names.get(row[2], "")
        extent.add(stream, seq, source, schema.counted(schema.KINDS[row[1]], row[4]), row[6])
    totals: dict[str, Counts] = dict(head.totals)
    for source, counts in extent.counts.items():
        totals[source] = schema.add(totals.get(source, (0, 0, 0)), counts)
    new = msgspec.structs.replace(head, number=shelf.next_number, replaces=number)
    summary = Summary(rows=extent.rows, ranges=extent.ranges, totals=totals, last_wall_ns=extent.last_wall_ns)
    path = files.segment_path(shelf.directory, new.number)
    temporary = path.with_name(path.name + TEMPORARY)
    write_segment(temporary, new, lambda connection: _fill(connection, found, summary))
    temporary.rename(path)
    files.sync_directory(shelf.directory)
    shelf.next_number += 1
    shelf.save(shelf.ledger.with_gaps(head.epoch, lost))
    sealed = Sealed(path, new, summary)
    if shelf.settings.frame_identity:
        index_rows(shelf, sealed)
    shelf.shelve(new, summary, path)


def _fill(connection: sqlite3.Connection, found: Salvaged, summary: Summary) -> None:
    connection.executemany("INSERT INTO name VALUES(?,?)", found.names.items())
    connection.executemany("INSERT INTO context VALUES(?,?,?,?,?,?)", ((i, *c) for i, c in found.contexts.items()))
    named = (row for i, row in sorted(found.rows.items()) if i >> SEQ_BITS in found.names)
    texts = ((*row[:9], schema.as_text(row[9]), row[10].decode()) for row in named)
    connection.executemany(schema.INSERT, texts)
    connection.execute("INSERT INTO meta VALUES('summary', ?)", (msgspec.json.encode(summary).decode(),))


def _guess_head(shelf: Shelf, number: int) -> Head | None:
    """A head for a segment that lost its own, from its neighbour before it; else the newest epoch is assumed."""
    before = [each for each in shelf.sealed if each.number < number]
    near = before[-1].head if before else None
    return Head(
        format=schema.FORMAT, number=number, epoch=near.epoch if near else shelf.ledger.epoch,
        lane=near.lane if near else next(iter(shelf.ledger.lanes), 0), device=shelf.device,
        began_wall_ns=near.began_wall_ns if near else 0, next_seq={},
        totals=before[-1].summary.totals if before else {},
    )  # fmt: skip
