"""A consistent copy of a buffer while the daemon writes it: all that was committed before is in it, and it says so.

Rules: a sealed segment is a plain file that never changes, so its bytes are taken. Any other is read through SQLite's
online backup, which sees one instant of it and holds the writer up for nothing. The ledger comes last: whatever went
away meanwhile stands in it as a gap by then. It is marked as a copy, so that whoever opens it begins a new epoch: the
numbers after it were, or will be, given out by the original too.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edged.buffer import files
from edged.buffer.errors import cause, store_error, translate
from edged.buffer.ledger import RESERVE, Ledger, read_ledger
from edged.buffer.segment import open_reading, read_summary

ATTEMPTS = 10  # a segment that is being sealed is shut for some milliseconds
WAIT_S = 0.2


def snapshot(directory: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """Name and file of everything in a buffer, the ledger last; a file in ``scratch`` is gone after its turn.

    Nothing where there is no buffer. Raises StoreError, OSError.
    """
    if not directory.is_dir():
        return
    names = [files.segment_path(directory, number) for number in files.segment_numbers(directory)]
    for path in [*names, *sorted(directory.glob("segment-*.frames"))]:
        copy = scratch / path.name
        try:
            if path.suffix == ".frames" or _is_sealed(path):
                _take(path, copy)
            else:
                _read_through(path, copy)
        except FileNotFoundError:
            continue  # acknowledged and gone meanwhile: a gap in the ledger says so
        yield path.name, copy
        copy.unlink()
    ledger = read_ledger(directory)
    if ledger is not None:
        copy = scratch / files.LEDGER
        copy.write_bytes(msgspec.json.encode(_as_copy(ledger)))
        yield files.LEDGER, copy
        copy.unlink()


def _as_copy(ledger: Ledger) -> Ledger:
    """The ledger of a copy. Its epoch ends in a gap beyond all that is set aside: nobody knows how far the original
    went on, and whoever receives the results must hear that something may be missing.
    """
    reserved = {stream: seq + RESERVE for stream, seq in ledger.reserved.items()}
    return msgspec.structs.replace(ledger, copied=True, reserved=reserved)


def _is_sealed(path: Path) -> bool:
    """Whether a segment is a plain file that will not change any more. Raises FileNotFoundError."""
    if files.wal_path(path).exists():
        return False
    try:
        with contextlib.closing(open_reading(path)) as connection:
            return read_summary(connection, path) is not None
    except sqlite3.DatabaseError as error:
        if not path.exists():
            raise FileNotFoundError(path) from None
        return cause(error) == "corrupt"  # its bytes are what there is; who opens the copy salvages them


def _read_through(path: Path, copy: Path) -> None:
    """Copy a segment as it is at one instant, as one plain file. Raises StoreError, FileNotFoundError."""
    for attempt in range(ATTEMPTS):
        copy.unlink(missing_ok=True)
        try:
            with (
                contextlib.closing(open_reading(path)) as source,
                contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as target,
            ):
                source.backup(target)
                target.execute("PRAGMA journal_mode=delete")
            return
        except sqlite3.Error as error:
            if not path.exists():
                raise FileNotFoundError(path) from None
            if cause(error) != "busy" or attempt == ATTEMPTS - 1:
                raise translate(error, path.name) from error
        time.sleep(WAIT_S)
    raise store_error("busy", f"{path.name} cannot be read", "start the daemon once: it finishes what a kill left")


def _take(path: Path, copy: Path) -> None:
    """A second name of a file that never changes, or its bytes where the medium has no second names."""
    try:
        copy.hardlink_to(path)
    except FileNotFoundError:
        raise
    except OSError:
        copy.write_bytes(path.read_bytes())
