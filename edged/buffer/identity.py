"""Fills the index of known frames at start, from the files beside the segments or from the rows themselves."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from edged.buffer import files
from edged.buffer.schema import SEQ_BITS, SEQ_MASK
from edged.buffer.segment import open_reading
from edged.buffer.shelf import Sealed, Shelf
from edged.errors import StoreError


def load_index(shelf: Shelf) -> None:
    """Fill the index of frames from the files beside the segments, youngest first; the rest is forgotten."""
    if not shelf.settings.frame_identity:
        return
    sealed = {each.number: each for each in shelf.sealed}
    active = {segment.number for segment in shelf.active.values()}
    beside = {int(path.stem.partition("-")[2]) for path in shelf.directory.glob("segment-*.frames")}
    for number in sorted((beside | set(sealed)) - active, reverse=True):
        path = files.frames_path(shelf.directory, number)
        if len(shelf.index) >= shelf.index.window:
            path.unlink(missing_ok=True)
        elif not _load_frames(shelf, number, path) and number in sealed:
            index_rows(shelf, sealed[number])
            shelf.index.save(path, number)


def _load_frames(shelf: Shelf, number: int, path: Path) -> bool:
    try:
        shelf.index.load(path, number)
    except FileNotFoundError:
        return False
    except StoreError:
        path.unlink(missing_ok=True)
        return False
    return True


def index_rows(shelf: Shelf, sealed: Sealed) -> None:
    """Remember the frames of a sealed segment by reading its rows, as far as they read."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(open_reading(sealed.path)) as connection:
        names = dict(connection.execute("SELECT id, text FROM name"))
        rows = connection.execute("SELECT id, kind, source, CAST(key AS BLOB) FROM entry")
        for rowid, kind, source, key in rows:
            stream = names.get(rowid >> SEQ_BITS, "")
            row = (stream, rowid & SEQ_MASK, kind, names.get(source, ""), key)
            shelf.remember(sealed.number, sealed.head.epoch, row)
