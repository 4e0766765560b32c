"""Turns what the buffer holds behind a number into the next part of a stream: contiguous and of bounded size.

A part ends where its bytes or the rows end. The buffer hands out rows and gaps without a hole between them; should
there be one all the same, the part ends before it, and nothing is ever passed over in silence. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeAlias

import msgspec

from cloud_sync.contract.messages import Gap, Row, rfc3339
from cloud_sync.contract.results import ENVELOPE_BYTES, Part, encode_row
from edged.buffer import reader

Item: TypeAlias = reader.StoredRow | reader.Gap

UNEXPLAINED = "unexplained"
UNSET_CLOCK_NS = 365 * 86_400 * 1_000_000_000  # within a year of 1970: nobody has set this clock


def take(after: int, up_to: int, items: Iterable[Item], limit_bytes: int) -> Part | None:
    """The next part behind ``after``, at most to ``up_to``; None when the items do not begin there.

    ``items`` come in order; a gap may begin before ``after`` or end behind ``up_to``.
    """
    rows: list[bytes] = []
    gaps: list[Gap] = []
    last, size, time = after, ENVELOPE_BYTES, None
    for piece in _pieces(after, up_to, items):
        converted = _gap(piece) if isinstance(piece, reader.Gap) else _row(piece)
        encoded = msgspec.json.encode(converted) if isinstance(converted, Gap) else encode_row(converted, limit_bytes)
        size += len(encoded) + 1
        if size > limit_bytes and last > after:
            break
        if isinstance(converted, Gap):
            gaps.append(converted)
        else:
            rows.append(encoded)
            time = converted.time
        last = _extent(piece)[1]
    return Part(after + 1, last, tuple(rows), tuple(gaps), time) if last > after else None


def _pieces(after: int, up_to: int, items: Iterable[Item]) -> Iterator[Item]:
    """Rows and parts of gaps that follow each other without a hole, beginning at ``after + 1``."""
    last = after
    for item in items:
        first, end = _extent(item)
        first, end = max(first, last + 1), min(end, up_to)
        if end < first:
            continue
        if first > last + 1:
            return
        yield replace(item, first=first, last=end) if isinstance(item, reader.Gap) else item
        last = end


def _extent(item: Item) -> tuple[int, int]:
    return (item.first, item.last) if isinstance(item, reader.Gap) else (item.seq, item.seq)


def _gap(gap: reader.Gap) -> Gap:
    return Gap(first=gap.first, last=gap.last, reason=gap.reason or UNEXPLAINED, upper_bound=gap.upper_bound)


def _row(row: reader.StoredRow) -> Row:
    return Row(
        seq=row.seq,
        kind=row.kind.value,
        source=row.source,
        key=row.key or None,
        count=row.count,
        time=_time(row),
        clock_quality=row.clock_quality,
        latency_us=row.latency_ns / 1000,
        model=row.model,
        digest=row.digest,
        engine=row.engine,
        result=msgspec.Raw(row.body),
    )


def _time(row: reader.StoredRow) -> str | None:
    return rfc3339(row.wall_ns) if row.wall_ns >= UNSET_CLOCK_NS else None
