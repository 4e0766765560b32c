"""Reads what can be read of a damaged segment: page by page, without SQLite.

SQLite gives up a whole subtree for one bad page, and everything for a bad first page. Here every leaf page of the file
speaks for itself: a row counts when its record has the shape of ``entry`` and its checksum fits. The write-ahead log
holds several versions of a page, and rows are never changed: every version is read, so a torn frame takes nothing
away from the good ones before it, and damage in the log's middle does not hide what follows. Behind the damage the log
may also hold what a killed process never finished; of that, what the good part says otherwise does not count.

Pure reading of one file and its log, which must not be open in SQLite in this process (closing a file drops the
locks on it). Format: https://www.sqlite.org/fileformat2.html
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edged.buffer.files import wal_path
from edged.buffer.schema import ENTRY_COLUMNS, PAGE_BYTES, SEQ_BITS, SEQ_MASK, Head, checksum

_LEAF = 0x0D  # page type: leaf of a table
_WAL_HEADER = 32
_FRAME_HEADER = 24
_CONTEXT_COLUMNS = 6
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_MAX_LOCAL = PAGE_BYTES - 35
_MIN_LOCAL = (PAGE_BYTES - 12) * 32 // 255 - 23

_Frame = tuple[int, bytes, bool]  # page number, page, whether it ends a commit
RawRow = tuple[Any, ...]  # the eleven columns of ``entry``; key and body as bytes


@dataclass(slots=True)
class Salvaged:
    """What was found: rows by id, the interned strings, the meta table."""

    rows: dict[int, RawRow] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    contexts: dict[int, tuple[str, ...]] = field(default_factory=dict)
    meta: dict[str, str] = field(default_factory=dict)

    def update(self, later: Salvaged) -> None:
        """Take in what a later part of the log says; it is as sure as what is here."""
        self.rows |= later.rows
        self.names |= later.names
        self.contexts |= later.contexts
        self.meta |= later.meta

    def complete(self, unsure: Salvaged) -> None:
        """Take in what is nowhere else. A frame (source and key) that has its row already does not get a second."""
        self.names = unsure.names | self.names
        self.contexts = unsure.contexts | self.contexts
        self.meta = unsure.meta | self.meta
        frames = {(row[2], row[9]) for row in self.rows.values() if row[9]}
        self.rows |= {i: row for i, row in unsure.rows.items() if i not in self.rows and (row[2], row[9]) not in frames}

    def head(self) -> Head | None:
        """The segment's head, if it reads."""
        try:
            return msgspec.json.decode(self.meta.get("head", ""), type=Head)
        except msgspec.DecodeError:
            return None

    def ranges(self) -> dict[str, tuple[int, tuple[int, int]]]:
        """The number and the first and last seq of each stream whose name reads. There may be holes between."""
        found: dict[str, tuple[int, tuple[int, int]]] = {}
        for rowid in sorted(self.rows):
            number, seq = rowid >> SEQ_BITS, rowid & SEQ_MASK
            name = self.names.get(number)
            if name is not None:
                found[name] = (number, (found[name][1][0] if name in found else seq, seq))
        return found


def salvage(path: Path) -> Salvaged:
    """Everything that reads in a segment and its log. Raises OSError when not even the file can be read."""
    data = path.read_bytes()
    pages = {at // PAGE_BYTES + 1: data[at : at + PAGE_BYTES] for at in range(0, len(data), PAGE_BYTES)}
    found = _collect(pages, list(pages))
    good, behind = _split_log(path)
    found.update(_collect(pages, _laid_over(pages, good)))
    found.complete(_collect(pages, _laid_over(pages, behind)))
    return found


def log_hides_commits(path: Path) -> bool:
    """Whether the log of a segment holds commits behind a damaged frame, where SQLite stops reading without a word.

    A damaged last frame is no damage: a kill between the frame's header and its page leaves it so, before anyone was
    told of that commit. A power cut may tear more; that looks like damage, and nothing is lost by being careful.
    """
    _, behind = _split_log(path)
    return len(behind) > 1 and any(ends_commit for _, _, ends_commit in behind)


def _split_log(path: Path) -> tuple[list[_Frame], list[_Frame]]:
    """The frames of a segment's log that SQLite accepts, and those behind the first that it does not."""
    data = _read(wal_path(path))
    if len(data) < _WAL_HEADER:
        return [], []
    frames = list(_wal_frames(data))
    valid = _valid_frames(data, len(frames))
    return frames[:valid], frames[valid:]


def _valid_frames(data: bytes, frames: int) -> int:
    """How many frames SQLite will accept: each checksum continues the one before it."""
    words = struct.Struct(">II" if data[3] & 1 else "<II")  # the magic number says in which order they are summed
    sums = _sum(words, data[:24], (0, 0))
    if sums != struct.unpack(">II", data[24:32]):
        return 0
    for number in range(frames):
        at = _WAL_HEADER + number * (_FRAME_HEADER + PAGE_BYTES)
        body = at + _FRAME_HEADER
        sums = _sum(words, data[at : at + 8], sums)
        sums = _sum(words, data[body : body + PAGE_BYTES], sums)
        if sums != struct.unpack(">II", data[at + 16 : body]):
            return number
    return frames


def _sum(words: struct.Struct, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    for a, b in words.iter_unpack(data):
        first = (first + a + second) & 0xFFFFFFFF
        second = (second + b + first) & 0xFFFFFFFF
    return first, second


def _laid_over(pages: dict[int, bytes], frames: Sequence[_Frame]) -> Iterator[int]:
    """The numbers of the pages that frames change, commit by commit, each time with that commit laid over ``pages``."""
    changed: list[int] = []
    for number, page, ends_commit in frames:
        pages[number] = page
        changed.append(number)
        if ends_commit:
            yield from changed
            changed = []
    yield from changed


def _collect(pages: dict[int, bytes], numbers: Iterable[int]) -> Salvaged:
    found = Salvaged()
    for number in numbers:
        for rowid, values in _records(pages, number, pages[number]):
            _keep(found, rowid, values)
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _wal_frames(data: bytes) -> Iterator[_Frame]:
    """(page number, page, ends a commit) of each frame that belongs to the log's present round."""
    salt = data[16:24]
    for at in range(_WAL_HEADER, len(data) - _FRAME_HEADER - PAGE_BYTES + 1, _FRAME_HEADER + PAGE_BYTES):
        if data[at + 8 : at + 16] != salt:
            return
        number = int.from_bytes(data[at : at + 4], "big")
        size = int.from_bytes(data[at + 4 : at + 8], "big")
        yield number, data[at + _FRAME_HEADER : at + _FRAME_HEADER + PAGE_BYTES], size > 0


def _records(pages: dict[int, bytes], number: int, page: bytes) -> Iterator[tuple[int, list[Any]]]:
    start = 100 if number == 1 else 0
    if len(page) < PAGE_BYTES or page[start] != _LEAF:
        return
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    for i in range(min(count, PAGE_BYTES // 4)):
        at = int.from_bytes(page[start + 8 + 2 * i : start + 10 + 2 * i], "big")
        try:
            size, at = _varint(page, at)
            rowid, at = _varint(page, at)
            yield rowid, _values(_payload(pages, page, at, size))
        except (IndexError, ValueError, KeyError):
            continue  # a damaged cell; its neighbours speak for themselves


def _payload(pages: dict[int, bytes], page: bytes, at: int, size: int) -> bytes:
    if size <= _MAX_LOCAL:
        return page[at : at + size]
    local = _MIN_LOCAL + (size - _MIN_LOCAL) % (PAGE_BYTES - 4)
    local = local if local <= _MAX_LOCAL else _MIN_LOCAL
    parts = [page[at : at + local]]
    following = int.from_bytes(page[at + local : at + local + 4], "big")
    missing = size - local
    while missing > 0:
        if missing > PAGE_BYTES * len(pages):
            raise ValueError("longer than the file")
        overflow = pages[following]
        parts.append(overflow[4 : 4 + missing])
        missing -= PAGE_BYTES - 4
        following = int.from_bytes(overflow[:4], "big")
    return b"".join(parts)


def _values(payload: bytes) -> list[Any]:
    header, at = _varint(payload, 0)
    if header > len(payload):
        raise ValueError("header longer than the record")
    types = []
    while at < header:
        kind, at = _varint(payload, at)
        types.append(kind)
    values = []
    for kind in types:
        value, at = _value(payload, at, kind)
        values.append(value)
    if at != len(payload):
        raise ValueError("record of another length")
    return values


def _value(payload: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind == 0:
        return None, at
    if kind in _INTEGER_BYTES:
        end = at + _INTEGER_BYTES[kind]
        return int.from_bytes(payload[at:end], "big", signed=True), end
    if kind in (8, 9):
        return kind - 8, at
    if kind < 12:
        raise ValueError("no type of ours")
    end = at + (kind - 12) // 2  # text and blob alike
    return payload[at:end], end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for _ in range(8):
        byte = data[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
    return value << 8 | data[at], at + 1


def _keep(found: Salvaged, rowid: int, values: list[Any]) -> None:
    if len(values) == ENTRY_COLUMNS and _is_entry(values):
        row = (rowid, *values[1:])
        if checksum(row, row[9], row[10]) == row[8]:
            found.rows[rowid] = row
    elif len(values) == _CONTEXT_COLUMNS and all(isinstance(value, bytes) for value in values[1:]):
        found.contexts[rowid] = tuple(value.decode("utf-8", "replace") for value in values[1:])
    elif len(values) == 2 and isinstance(values[1], bytes):
        text = values[1].decode("utf-8", "replace")
        if values[0] is None:
            found.names[rowid] = text
        elif isinstance(values[0], bytes):
            found.meta[values[0].decode("utf-8", "replace")] = text


def _is_entry(values: list[Any]) -> bool:
    numbers = all(isinstance(value, int) for value in values[1:9])
    return values[0] is None and numbers and isinstance(values[9], bytes) and isinstance(values[10], bytes)
