"""What goes when room is needed, and in which order. Chooses; the shelf acts.

1. Segments of which everything is acknowledged, oldest first. Without pressure they go after ``keep_s``.
2. Damaged files that were put aside, oldest first: what could be read of them was kept.
3. The oldest segment of the lowest priority. Its ranges become one gap for each stream, merged with its neighbours.
   The active segment of a lane goes only when it is at least half full, or when nothing else is left: the freshest
   results stay, and a stream that trickles does not cost a segment for each row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edged.buffer.files import QUARANTINE, size_bytes
from edged.buffer.schema import PAGE_BYTES
from edged.buffer.segment import Segment
from edged.buffer.shelf import Sealed, Shelf

Acked = Mapping[tuple[str, str], int]

ACKED, CAP = "acked", "cap"
SLACK_BYTES = 16 * PAGE_BYTES  # a new segment, the ledger and its successor


def is_eligible(segment: Sealed, acked: Acked) -> bool:
    """Whether everything in a segment is acknowledged."""
    epoch = segment.head.epoch
    return all(last <= acked.get((epoch, stream), 0) for stream, (_, last) in segment.summary.ranges.items())


def expired(sealed: Sequence[Sealed], acked: Acked, now_ns: int, keep_ns: int) -> list[Sealed]:
    """The eligible segments whose youngest row is older than ``keep_ns``. A clock that was set back keeps them."""
    return [each for each in sealed if is_eligible(each, acked) and now_ns - each.summary.last_wall_ns >= keep_ns]


def is_over(segment: Segment, acked: Acked, now_ns: int, keep_ns: int) -> bool:
    """Whether an active segment holds nothing but what is acknowledged and old: sealed, it can go."""
    epoch, extent = segment.head.epoch, segment.extent
    old = extent.rows > 0 and now_ns - extent.last_wall_ns >= keep_ns
    return old and all(last <= acked.get((epoch, stream), 0) for stream, (_, last) in extent.ranges.items())


def headroom_bytes(shelf: Shelf) -> int:
    """What folding the logs in, sealing and beginning anew may take at most, beside what is there."""
    growth = sum(s.log_bytes() + 2 * s.extent.rows * 16 for s in tuple(shelf.active.values()))
    return growth + SLACK_BYTES


def make_room(shelf: Shelf, acked: Acked, need_bytes: int) -> bool:
    """Let things go until ``need_bytes`` more fit under the cap. False when nothing more may go. Raises OSError."""
    trimmed = False
    while shelf.size_bytes() + headroom_bytes(shelf) + need_bytes > shelf.settings.cap_bytes:
        if discard_acked(shelf, acked) or discard_quarantine(shelf) or shed(shelf, shelf.segment_limit // 2):
            continue
        if not trimmed:
            trimmed = True
            for segment in shelf.active.values():
                segment.checkpoint("TRUNCATE")
        elif not shed(shelf, 0):
            return False
    return True


def discard_acked(shelf: Shelf, acked: Acked) -> bool:
    """Let the oldest segment go of which everything is acknowledged."""
    for each in shelf.sealed:
        if is_eligible(each, acked):
            shelf.discard([each], ACKED)
            return True
    return False


def discard_quarantine(shelf: Shelf) -> bool:
    """Let the oldest damaged file go."""
    directory: Path = shelf.directory / QUARANTINE
    damaged = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns) if directory.is_dir() else []
    if not damaged:
        return False
    damaged[0].unlink()
    shelf.measure()
    return True


def shed(shelf: Shelf, least_bytes: int) -> bool:
    """Give up the oldest segment of the lowest priority; an active one only if it takes ``least_bytes``."""
    for lane in sorted({*shelf.active, *(each.head.lane for each in shelf.sealed)}):
        active = shelf.active.get(lane)
        if not any(each.head.lane == lane for each in shelf.sealed):
            if active is None or not active.extent.rows or size_bytes(active.path) < least_bytes:
                continue
            shelf.roll(lane)
        oldest = next((each for each in shelf.sealed if each.head.lane == lane), None)
        if oldest is not None:
            shelf.discard([oldest], CAP)
            return True
    return False
