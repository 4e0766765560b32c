"""The shelf: every segment on the disk, the ledger, the frames that are known. What a change needs, in the safe order.

Used by the writer thread only; ``sealed``, ``index`` and ``ledger`` are replaced whole, so other threads may look.
Decides nothing about when: ``journal`` appends, ``retention`` chooses what goes, ``recovery`` makes the shelf at start.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edged.buffer import files, schema
from edged.buffer.frames import FrameIndex, frame_hash
from edged.buffer.ledger import RESERVE, Ledger, write_ledger
from edged.buffer.records import Gap, Range
from edged.buffer.schema import Head, Summary
from edged.buffer.segment import Counts, Segment, create_segment, open_segment
from edged.buffer.settings import StoreSettings
from edged.domain import Kind
from edged.errors import StoreError


@dataclass(frozen=True, slots=True)
class Sealed:
    """A segment that will not change any more."""

    path: Path
    head: Head
    summary: Summary

    @property
    def number(self) -> int:
        """The number in the file's name."""
        return self.head.number


class Shelf:
    """All that the buffer holds on the disk."""

    def __init__(self, settings: StoreSettings, device: str, ledger: Ledger) -> None:
        self.settings = settings
        self.device = device
        self.ledger = ledger
        self.sealed: tuple[Sealed, ...] = ()  # oldest first
        self.active: dict[int, Segment] = {}  # by lane
        self.unfolded: set[int] = set()  # sealed, but somebody was reading: the log could not be folded in
        self.index = FrameIndex(settings.known_frames)
        self.next_seq: dict[str, int] = {}  # of the newest epoch
        self.next_number = 1
        self.measured = 0  # how often; whoever keeps an estimate begins anew when it changes
        self._settled_bytes = 0

    @property
    def directory(self) -> Path:
        """Where everything lies."""
        return self.settings.directory

    @property
    def segment_limit(self) -> int:
        """The size at which a segment is full."""
        return self.settings.segment_limit(max(1, len(self.active)))

    def size_bytes(self) -> int:
        """What all our files take. Cheap: only the active segments are looked at."""
        return self._settled_bytes + sum(segment.size_bytes() for segment in self.active.values())

    def measure(self) -> None:
        """Look at every file again; needed after anything but an append."""
        self.measured += 1
        self._settled_bytes = 0
        self._settled_bytes = files.tree_bytes(self.directory) - self.size_bytes()

    def totals(self) -> dict[str, Counts]:
        """The account of each source, over all lanes."""
        totals: dict[str, Counts] = {}
        for segment in tuple(self.active.values()):
            for source, counts in segment.totals().items():
                totals[source] = schema.add(totals.get(source, (0, 0, 0)), counts)
        return totals

    def save(self, ledger: Ledger) -> None:
        """Replace the ledger on the medium, then here. On a full disk the spare makes room. Raises OSError."""
        ledger = msgspec.structs.replace(ledger, floor_wall_ns=max(ledger.floor_wall_ns, time.time_ns()))
        try:
            write_ledger(self.directory, ledger)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self.release_ballast(files.SPARE):
                raise
            write_ledger(self.directory, ledger)
            with contextlib.suppress(OSError):
                files.allocate(self.directory / files.SPARE, self.settings.spare_bytes)
        self.ledger = ledger

    def reserve(self, wanted: Mapping[str, int]) -> None:
        """Set numbers aside, so that ``wanted`` more of each stream may be given out. Raises OSError."""
        reserved = dict(self.ledger.reserved)
        for stream, count in wanted.items():
            last = self.next_seq.get(stream, 1) - 1 + count
            if last > reserved.get(stream, 0):
                reserved[stream] = last + RESERVE
        if reserved != self.ledger.reserved:
            self.save(msgspec.structs.replace(self.ledger, reserved=reserved))

    def lane(self, lane: int) -> Segment:
        """The active segment of a lane, made when there is none. Raises OSError, sqlite3.Error."""
        segment = self.active.get(lane)
        return segment if segment is not None else self.start_segment(lane, self.lane_totals(lane))

    def lane_totals(self, lane: int) -> dict[str, Counts]:
        """The account with which the last segment of a lane ended."""
        ended = [each.summary.totals for each in self.sealed if each.head.lane == lane]
        return dict(ended[-1]) if ended else {}

    def start_segment(self, lane: int, totals: Mapping[str, Counts]) -> Segment:
        """Make a new active segment for a lane. Raises OSError, sqlite3.Error.

        The ledger names the lane before the first row, so a lane that it names had a segment that may hold rows.
        """
        head = Head(
            format=schema.FORMAT, number=self.next_number, epoch=self.ledger.epoch, lane=lane, device=self.device,
            began_wall_ns=time.time_ns(), next_seq=dict(self.next_seq), totals=dict(totals),
        )  # fmt: skip
        path = create_segment(self.directory, head)
        self.next_number += 1
        segment = open_segment(path)
        if lane not in self.ledger.lanes:
            self.save(msgspec.structs.replace(self.ledger, lanes=(*self.ledger.lanes, lane)))
        self.active[lane] = segment
        return segment

    def roll(self, lane: int) -> None:
        """Begin a new segment in a lane, then seal the old one. Raises OSError, sqlite3.Error."""
        old = self.active[lane]
        self.start_segment(lane, old.totals())
        self.retire(old)
        self.measure()

    def retire(self, old: Segment) -> None:
        """Seal a segment that nothing is appended to any more.

        When a reader holds it, or the medium does not take it now, its log stays beside it and is folded in later.
        """
        summary = old.summary()
        try:
            old.seal(summary)
        except (sqlite3.Error, StoreError):
            old.abandon()
            self.unfolded.add(old.number)
        self.shelve(old.head, summary, old.path)

    def fold_leftovers(self) -> None:
        """Make plain files of the sealed segments whose log had to stay. Raises OSError, sqlite3.Error."""
        for each in self.sealed:
            if each.number in self.unfolded:
                open_segment(each.path).seal(each.summary)
                self.unfolded.discard(each.number)
                self.measure()

    def shelve(self, head: Head, summary: Summary, path: Path) -> None:
        """Take a sealed file into the account, with the identities of its frames beside it. Raises OSError."""
        self.sealed = tuple(sorted((*self.sealed, Sealed(path, head, summary)), key=lambda each: each.number))
        frames = files.frames_path(self.directory, head.number)
        if self.settings.frame_identity and not frames.exists():
            self.index.save(frames, head.number)

    def discard(self, chosen: Iterable[Sealed], reason: str) -> None:
        """Let segments go: first the gap that they leave, then the files. Raises OSError."""
        chosen = list(chosen)
        ledger = self.ledger
        for each in chosen:
            gaps = {stream: [Gap(*extent, reason, upper_bound=False)] for stream, extent in each.summary.ranges.items()}
            ledger = ledger.with_gaps(each.head.epoch, gaps)
        self.save(ledger)
        self.remove(chosen)

    def remove(self, chosen: Iterable[Sealed]) -> None:
        """Unlink segments whose gaps are recorded. Raises OSError."""
        chosen = list(chosen)
        numbers = {each.number for each in chosen}
        self.sealed = tuple(each for each in self.sealed if each.number not in numbers)
        self.unfolded -= numbers
        for each in chosen:
            for path in files.companions(each.path):
                path.unlink(missing_ok=True)
        files.sync_directory(self.directory)
        self.forget_epochs()
        self.measure()

    def forget_epochs(self) -> None:
        """Drop what the ledger says about epochs long gone. Raises OSError."""
        held = {each.head.epoch for each in self.sealed} | {segment.head.epoch for segment in self.active.values()}
        ledger = self.ledger.without_epochs(held)
        if ledger != self.ledger:
            self.save(ledger)

    def shrink_index(self) -> None:
        """Forget the oldest frames, and their files."""
        for number in self.index.shrink():
            files.frames_path(self.directory, number).unlink(missing_ok=True)

    def remember(self, segment: int, epoch: str, row: tuple[str, int, int, str, bytes]) -> None:
        """Take a stored row's frame (stream, seq, kind, source, key) into the index."""
        stream, seq, kind, source, key = row
        if self.settings.frame_identity and schema.KINDS[kind] is not Kind.DROPPED:
            self.index.add(frame_hash(source, key), self.index.home(segment, epoch, stream), kind, seq)

    def ranges(self, epoch: str, stream: str) -> list[Range]:
        """The ranges of a stream that segments hold, oldest first."""
        held = [each.summary.ranges.get(stream) for each in self.sealed if each.head.epoch == epoch]
        held += [s.extent.ranges.get(stream) for s in self.active.values() if s.head.epoch == epoch]
        return sorted(extent for extent in held if extent is not None)

    def hold_ballast(self) -> None:
        """Set space aside, if there is plenty: three times as much must be free. Raises nothing."""
        sizes = {files.BALLAST: self.settings.ballast_bytes, files.SPARE: self.settings.spare_bytes}
        for name, size in sizes.items():
            path = self.directory / name
            with contextlib.suppress(OSError):
                free = os.statvfs(self.directory)
                if files.size_bytes(path) < size and free.f_bavail * free.f_frsize >= 3 * size:
                    files.allocate(path, size)
                    self.measure()

    def release_ballast(self, name: str = files.BALLAST) -> bool:
        """Give the ballast's space back; False when there was none."""
        path = self.directory / name
        if not files.size_bytes(path):
            return False
        path.unlink()
        self.measure()
        return True

    def close(self, *, certain: bool) -> None:
        """Close every segment as one plain file; if ``certain``, say exactly how far numbers went. Raises nothing."""
        for segment in self.active.values():
            with contextlib.suppress(sqlite3.Error, StoreError):
                segment.close()
        self.active = {}
        if not certain:
            return
        exact = {stream: next_seq - 1 for stream, next_seq in self.next_seq.items()}
        with contextlib.suppress(OSError):
            self.save(msgspec.structs.replace(self.ledger, reserved=exact))
