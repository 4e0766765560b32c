"""What the buffer holds, as values: rows, gaps, epochs, and the arithmetic of ranges.

Pure: no I/O. ``edged.buffer.reader`` hands these out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from edged.domain import Entry, Kind


@dataclass(frozen=True, slots=True)
class StoredRow:
    """One entry as it is stored. ``wall_ns`` is the wall clock at the commit; ``key`` is "" for dropped frames.

    ``latency_ns`` lasts from the frame's reception to the writing of its row; the fsync that follows is not in it.
    """

    seq: int
    kind: Kind
    source: str
    key: str
    count: int
    wall_ns: int
    received_ns: int
    latency_ns: int
    boot_id: str
    clock_quality: str
    model: str
    digest: str
    engine: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """Sequence numbers that hold no row any more, both ends included, and why.

    ``upper_bound``: the last row before the loss is unknown; no number above ``last`` was ever given out.
    """

    first: int
    last: int
    reason: str
    upper_bound: bool


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """The extent of one stream in one epoch: the oldest row or gap that is known, and the newest."""

    stream: str
    first: int
    last: int
    priority: int


@dataclass(frozen=True, slots=True)
class Epoch:
    """One life of the store. ``predecessor_last``: the last seq known of each stream of the epoch before."""

    id: str
    predecessor: str | None
    reason: str
    began_wall_ns: int
    predecessor_last: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Kept:
    """One of the last entries, kept in memory for a person to look at."""

    entry: Entry
    seq: int
    wall_ns: int
    latency_ns: int


Range = tuple[int, int]  # first and last, both included


def merge(gaps: Iterable[Gap]) -> list[Gap]:
    """Order the gaps of one stream and join neighbours of the same reason; an overlap belongs to the earlier one."""
    merged: list[Gap] = []
    for gap in sorted(gaps, key=lambda g: (g.first, -g.last)):
        last = merged[-1] if merged else None
        if last is not None and gap.first <= last.last:
            if gap.last <= last.last:
                continue
            gap = replace(gap, first=last.last + 1)
        if last is not None and gap.first == last.last + 1 and _alike(gap, last):
            merged[-1] = replace(last, last=gap.last)
        else:
            merged.append(gap)
    return merged


def holes(covered: Iterable[Range], first: int, last: int) -> list[Range]:
    """The parts of first..last that no range covers, in order."""
    found: list[Range] = []
    position = first
    for start, end in sorted(covered):
        if start > last:
            break
        if start > position:
            found.append((position, start - 1))
        position = max(position, end + 1)
    if position <= last:
        found.append((position, last))
    return found


def subtract(gap: Gap, covered: Sequence[Range]) -> list[Gap]:
    """What is left of a gap where no range covers it."""
    return [replace(gap, first=first, last=last) for first, last in holes(covered, gap.first, gap.last)]


def _alike(gap: Gap, other: Gap) -> bool:
    return gap.reason == other.reason and gap.upper_bound == other.upper_bound
