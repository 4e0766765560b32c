"""How a buffer is kept: one frozen value, from which the sizes of its parts follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edged.buffer import frames
from edged.buffer.schema import PAGE_BYTES

DEFAULT_PRIORITY = 5  # of a stream that is not named; the configuration has the same default
BALLAST_BYTES = 1 << 20  # room for some commits while somebody else fills the disk
SPARE_BYTES = 96 << 10  # room for the ledger and the index of a log when not even the ballast is left
MIN_CHECKPOINT_PAGES, MAX_CHECKPOINT_PAGES = 16, 1000  # 1000 is SQLite's own default: 4 MB of log


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """``cap_bytes`` bounds every file in ``directory`` together; acknowledged segments go after ``keep_s``.

    ``ack_file`` is written by edged-sync. ``frame_identity`` is off only in tests that show what it protects from.
    """

    directory: Path
    cap_bytes: int
    segment_bytes: int
    keep_s: float
    ack_file: Path
    frame_identity: bool = True
    priorities: Mapping[str, int] = field(default_factory=dict)
    frame_window: int = frames.WINDOW

    def lane(self, stream: str) -> int:
        """Streams of one priority share a lane of segments: the lowest can then be shed by unlinking."""
        return self.priorities.get(stream, DEFAULT_PRIORITY)

    def segment_limit(self, lanes: int) -> int:
        """A segment is full at this size: each lane has an active one, and the cap must hold some more."""
        return min(self.segment_bytes, self.cap_bytes // (4 + 2 * lanes))

    def checkpoint_pages(self, lanes: int) -> int:
        """The log is folded into the file after so many pages."""
        pages = self.segment_limit(lanes) // 4 // PAGE_BYTES
        return max(MIN_CHECKPOINT_PAGES, min(MAX_CHECKPOINT_PAGES, pages))

    @property
    def ballast_bytes(self) -> int:
        """Size of the ballast: a 64th of a small buffer."""
        return min(BALLAST_BYTES, self.cap_bytes // 64)

    @property
    def spare_bytes(self) -> int:
        """Size of what is kept for the ledger alone."""
        return min(SPARE_BYTES, self.cap_bytes // 32)

    @property
    def known_frames(self) -> int:
        """How many frames are remembered at least; in a small buffer they take an eighth of the cap."""
        return min(self.frame_window, self.cap_bytes // 8 // frames.BYTES)
