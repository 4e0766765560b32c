"""The tables of one segment: SQL, the packing of a row, its checksum.

A row's id is (stream number << 40) | seq. So the table is clustered by stream, needs no second index, and the insert
itself is what bumps the stream's counter: the counter is the largest id. In the same way the totals of a source are
what the segment began with plus the sum over its rows. A commit of one row therefore writes one page.

Repeated strings live in ``name`` (of streams and sources) and ``context``; the view ``results`` shows
plain rows to a person.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import msgspec

from edged.domain import Kind, Totals

FORMAT = 1
APPLICATION_ID = 0x65644745  # "edGE": file(1) and we recognise our own
PAGE_BYTES = 4096  # the block of flash and disk; smaller pages write less but can tear
SEQ_BITS = 40  # 2^40 rows of one stream last 348 years at 100 a second
SEQ_MASK = (1 << SEQ_BITS) - 1

KINDS = (Kind.RESULT, Kind.ERROR, Kind.REJECTED, Kind.DROPPED)  # stored as the position; only ever appended to
KIND_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}

_KIND_NAMES = " ".join(f"WHEN {number} THEN '{kind.value}'" for number, kind in enumerate(KINDS))
TABLES = f"""
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE name(id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE context(id INTEGER PRIMARY KEY, boot_id TEXT NOT NULL, clock_quality TEXT NOT NULL,
    model TEXT NOT NULL, digest TEXT NOT NULL, engine TEXT NOT NULL);
CREATE TABLE entry(id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, source INTEGER NOT NULL, context INTEGER NOT NULL,
    count INTEGER NOT NULL, received_ns INTEGER NOT NULL, wall_ns INTEGER NOT NULL, latency_ns INTEGER NOT NULL,
    crc INTEGER NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL);
CREATE VIEW results AS SELECT
    (SELECT value FROM meta WHERE key = 'epoch') AS epoch, stream.text AS stream, entry.id & {SEQ_MASK} AS seq,
    CASE entry.kind {_KIND_NAMES} END AS kind,
    source.text AS source, entry.key AS key, entry.count AS count,
    strftime('%Y-%m-%dT%H:%M:%SZ', entry.wall_ns / 1000000000, 'unixepoch') AS wall_time, entry.wall_ns AS wall_ns,
    entry.received_ns AS received_ns, entry.latency_ns AS latency_ns, context.boot_id AS boot_id,
    context.clock_quality AS clock_quality, context.model AS model, context.digest AS digest,
    context.engine AS engine, entry.body AS body
FROM entry JOIN name AS stream ON stream.id = entry.id >> {SEQ_BITS} JOIN name AS source ON source.id = entry.source
    JOIN context ON context.id = entry.context;
"""  # noqa: S608 - nothing goes into it but constants of this file
ENTRY_COLUMNS = 11
INSERT = "INSERT INTO entry VALUES(?,?,?,?,?,?,?,?,?,?,?)"

SELECT_ROWS = """
SELECT e.id, e.kind, e.source, e.context, e.count, e.received_ns, e.wall_ns, e.latency_ns, e.crc,
    CAST(e.key AS BLOB), CAST(e.body AS BLOB),
    s.text, c.boot_id, c.clock_quality, c.model, c.digest, c.engine
FROM entry AS e LEFT JOIN name AS s ON s.id = e.source LEFT JOIN context AS c ON c.id = e.context
WHERE e.id BETWEEN ? AND ? ORDER BY e.id LIMIT ?
"""

KEY_ENCODING = ("utf-8", "surrogateescape")  # a key may be a file name, and those are bytes

_NUMBERS = struct.Struct("<8q")


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a segment knew when it began; ``totals`` are those of its lane's sources, ``next_seq`` of every stream."""

    format: int
    number: int
    epoch: str
    lane: int
    device: str
    began_wall_ns: int
    next_seq: dict[str, int]
    totals: dict[str, tuple[int, int, int]]  # committed, rejected, dropped
    replaces: int | None = None  # number of the damaged segment of which these are the rows that could be read


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a segment holds once it is sealed. A range has no holes unless the segment was salvaged."""

    rows: int
    ranges: dict[str, tuple[int, int]]
    totals: dict[str, tuple[int, int, int]]
    last_wall_ns: int


def row_id(stream: int, seq: int) -> int:
    """Id of a row: the number of its stream within the segment, and its seq."""
    return (stream << SEQ_BITS) | seq


def checksum(row: tuple[Any, ...], key: bytes, body: bytes) -> int:
    """CRC-32 over a row of ``entry``; only its first eight columns are taken from ``row``."""
    return zlib.crc32(body, zlib.crc32(key, zlib.crc32(_NUMBERS.pack(*row[:8]))))


def as_text(key: bytes) -> str | bytes:
    """A key as it is stored: text, unless it comes from a file name that is not UTF-8."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


def as_totals(counts: tuple[int, int, int]) -> Totals:
    """Totals from (committed, rejected, dropped); received is their sum by definition."""
    committed, rejected, dropped = counts
    return Totals(received=sum(counts), committed=committed, rejected=rejected, dropped=dropped)


def counted(kind: Kind, count: int) -> tuple[int, int, int]:
    """What one row adds to (committed, rejected, dropped). An error result is committed."""
    if kind is Kind.REJECTED:
        return (0, count, 0)
    return (0, 0, count) if kind is Kind.DROPPED else (count, 0, 0)


def add(a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int]:
    """Sum of two counts."""
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])
