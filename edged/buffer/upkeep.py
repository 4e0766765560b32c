"""Keeps the shelf in order between commits, in the writer thread: logs, full segments, what is due, what is damaged.

``tend`` runs after every group, after its answers are out; ``tidy`` every few seconds, busy or idle.
"""

from __future__ import annotations

import os
import time

from edged.buffer import retention
from edged.buffer.journal import Journal, State
from edged.buffer.quarantine import CORRUPT, put_aside
from edged.buffer.recovery import record_holes_within
from edged.buffer.segment import is_intact
from edged.buffer.shelf import Sealed

EXAMINE_S = 300.0  # one sealed segment is looked at so often: 20 ms of work, a gigabyte in five hours


class Upkeep:
    """The housekeeping of one journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._shelf = journal.shelf
        self._examined = 0  # number of the segment that was looked at last
        self._examined_s = time.monotonic()

    def tend(self) -> None:
        """Fold logs in and begin new segments where one is full."""
        shelf = self._shelf
        pages, limit = shelf.settings.checkpoint_pages(max(1, len(shelf.active))), shelf.segment_limit
        with self._journal.watched():
            for lane, segment in list(shelf.active.items()):
                if lane in self._journal.broken or segment.pages_logged < pages:
                    continue
                segment.checkpoint()
                if segment.fill_bytes() >= limit:
                    shelf.roll(lane)

    def tidy(self) -> None:
        """Take acknowledgements in, let go what is due, heal what failed, look for damage."""
        journal = self._journal
        with journal.watched():
            journal.read_acks()
            for lane in list(journal.broken):
                journal.read_again(lane)
            self._let_go()
            self._shelf.fold_leftovers()
            self._examine()
            self._shelf.shrink_index()
            self._shelf.hold_ballast()
            if journal.state is not State.OK and self._has_space():
                journal.set_state(State.OK)

    def _has_space(self) -> bool:
        settings = self._shelf.settings
        free = os.statvfs(settings.directory)
        needed = settings.ballast_bytes + retention.SLACK_BYTES
        return free.f_bavail * free.f_frsize > needed and self._shelf.size_bytes() < settings.cap_bytes

    def _let_go(self) -> None:
        shelf, acked, now_ns = self._shelf, self._journal.acked, time.time_ns()
        keep_ns = int(shelf.settings.keep_s * 1e9)
        for lane, segment in list(shelf.active.items()):
            if retention.is_over(segment, acked, now_ns, keep_ns):
                shelf.roll(lane)
        due = retention.expired(shelf.sealed, acked, now_ns, keep_ns)
        if due:
            shelf.discard(due, retention.ACKED)

    def _examine(self) -> None:
        """Look at the segments in which somebody met damage, and now and then at the next one."""
        suspects, self._journal.suspects = self._journal.suspects, set()
        for each in self._shelf.sealed:
            if each.number in suspects and not is_intact(each.path, each.summary.rows, thorough=True):
                self._put_aside(each)
        if time.monotonic() - self._examined_s >= EXAMINE_S and self._shelf.sealed:
            following = [each for each in self._shelf.sealed if each.number > self._examined]
            chosen = following[0] if following else self._shelf.sealed[0]
            self._examined, self._examined_s = chosen.number, time.monotonic()
            if not is_intact(chosen.path, chosen.summary.rows, thorough=False):
                self._put_aside(chosen)

    def _put_aside(self, damaged: Sealed) -> None:
        notes: list[str] = []
        put_aside(self._shelf, damaged.path, damaged.number, notes)
        extents = {(damaged.head.epoch, stream): extent for stream, extent in damaged.summary.ranges.items()}
        record_holes_within(self._shelf, extents, CORRUPT)
        self._journal.note("; ".join(notes))
