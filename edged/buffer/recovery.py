"""Makes the shelf at start, whatever state the last run left the files in, and puts damaged segments aside.

Rules: never a crash loop, never a silent wipe. A damaged file is moved to ``quarantine/``; what can be read of it comes
back as a sealed segment of its old epoch; what cannot becomes a gap. When it is not certain how far the numbers of the
newest epoch went, a new epoch begins and the old one ends in a gap up to the numbers that were set aside.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edged.buffer import clock, files
from edged.buffer.cursor import read_cursor
from edged.buffer.errors import cause, store_error
from edged.buffer.files import LEDGER, QUARANTINE, TEMPORARY
from edged.buffer.identity import load_index
from edged.buffer.ledger import Ledger, first_ledger, read_ledger
from edged.buffer.quarantine import CORRUPT, move_aside, put_aside
from edged.buffer.records import Epoch, Gap, Range, holes
from edged.buffer.salvage import log_hides_commits
from edged.buffer.schema import Head, Summary
from edged.buffer.segment import (
    Segment,
    open_reading,
    open_segment,
    read_head,
    read_summary,
    roll_back_hot_journal,
)
from edged.buffer.settings import StoreSettings
from edged.buffer.shelf import Sealed, Shelf
from edged.errors import StoreError

LOST = "lost"


@dataclass(frozen=True, slots=True)
class _Found:
    """A segment file as it lies there; without a head it is damaged."""

    path: Path
    number: int
    head: Head | None
    summary: Summary | None


def recover(settings: StoreSettings, device: str) -> tuple[Shelf, list[str]]:
    """Bring the directory in order. Returns the shelf and what a person should know. Raises OSError, StoreError."""
    directory = settings.directory
    files.make_directory(directory)
    _sweep(directory)
    notes: list[str] = []
    ledger = _ledger(directory, notes)
    found = _finish_replacements(directory, [_inspect(directory, n) for n in files.segment_numbers(directory)])
    known = ledger or _rebuild_ledger(found, device)
    shelf = Shelf(settings, device, known or first_ledger(device, clock.machine_id(), time.time_ns()))
    shelf.next_number = _next_number(directory)
    if known is None:
        shelf.save(shelf.ledger)
        return shelf, notes
    return _Recovery(shelf, found, notes, ledger_lost=ledger is None).run(), notes


class _Recovery:
    """The steps of one recovery, in order."""

    def __init__(self, shelf: Shelf, found: Sequence[_Found], notes: list[str], *, ledger_lost: bool) -> None:
        self.shelf = shelf
        self.found = found
        self.notes = notes
        self.reason = ""  # of a new epoch
        self.ledger_lost = ledger_lost
        self.damaged = False

    def run(self) -> Shelf:
        shelf = self.shelf
        for each in self.found:
            if each.head is not None and each.summary is not None and not files.wal_path(each.path).exists():
                sealed = Sealed(each.path, each.head, each.summary)
                shelf.sealed = (*shelf.sealed, sealed)
        for each in self.found:
            if each.head is None:
                self._damaged(each.path, each.number)
            elif each.path not in {sealed.path for sealed in shelf.sealed}:
                self._unsealed(each, each.head)
        shelf.next_seq = last_known(shelf)
        self._decide_epoch()
        record_holes(shelf, CORRUPT if self.damaged else LOST)
        self._finish_discards()
        load_index(shelf)
        for lane in {each.head.lane for each in shelf.sealed} - set(shelf.active):
            shelf.start_segment(lane, shelf.lane_totals(lane))
        shelf.forget_epochs()
        if self.ledger_lost:
            shelf.save(shelf.ledger)
        return shelf

    def _unsealed(self, found: _Found, head: Head) -> None:
        path = found.path
        newest = max((f.number for f in self.found if f.head is not None and f.head.lane == head.lane), default=0)
        try:
            segment = reopen(self.shelf, path)
        except (StoreError, sqlite3.Error) as error:
            if cause(error) != "corrupt":
                raise
            self._damaged(path, head.number)
            return
        if head.number == newest and head.epoch == self.shelf.ledger.epoch and found.summary is None:
            self.shelf.active[head.lane] = segment
        else:
            self.shelf.retire(segment)

    def _damaged(self, path: Path, number: int) -> None:
        self.damaged = True
        put_aside(self.shelf, path, number, self.notes)

    def _decide_epoch(self) -> None:
        shelf, ledger = self.shelf, self.shelf.ledger
        missing = [lane for lane in ledger.lanes if lane not in shelf.active]
        ahead = self._acked_beyond()
        if missing or ahead or ledger.copied or (self.ledger_lost and self.damaged):
            reason = CORRUPT if self.damaged else (LOST if missing and not ledger.copied else "restored")
            self.notes.append(f"a new epoch begins: {reason}")
            reserved = {**ledger.reserved}
            for stream, seq in ahead.items():
                reserved[stream] = max(seq, reserved.get(stream, 0))
            shelf.ledger = msgspec.structs.replace(ledger, reserved=reserved)
            begin_epoch(shelf, reason, certain=False)
        elif ledger.machine_id != clock.machine_id():
            self.notes.append("a new epoch begins: the store was cloned or moved to another machine")
            begin_epoch(shelf, "cloned", certain=True)

    def _acked_beyond(self) -> dict[str, int]:
        """Streams of which more was acknowledged than exists: the store is older than what was sent from it."""
        try:
            cursor = read_cursor(self.shelf.settings.ack_file)
        except StoreError:
            return {}
        epoch = self.shelf.ledger.epoch
        acks = {stream: seq for (of, stream), seq in cursor.acks.items() if of == epoch}
        return {stream: seq for stream, seq in acks.items() if seq >= self.shelf.next_seq.get(stream, 1)}

    def _finish_discards(self) -> None:
        """Unlink what a kill left between the gap's record and the unlink."""
        shelf = self.shelf
        for each in shelf.sealed:
            left = [
                hole
                for stream, (first, last) in each.summary.ranges.items()
                for hole in holes(_spans(shelf.ledger.gaps_of(each.head.epoch, stream)), first, last)
            ]
            if not left and each.summary.rows:
                shelf.remove([each])


def reopen(shelf: Shelf, path: Path) -> Segment:
    """Open an unsealed segment and read all of it. Raises StoreError (code "corrupt"), sqlite3.Error, OSError."""
    if log_hides_commits(path):
        raise store_error("corrupt", f"{path.name}: its log is damaged")
    segment = open_segment(path)
    try:
        number, epoch = segment.number, segment.head.epoch
        segment.scan(lambda *row: shelf.remember(number, epoch, row))
    except BaseException:  # a cancellation too: what was begun is undone, and it goes on
        shelf.index.drop(segment.number)
        segment.abandon()
        raise
    return segment


def last_known(shelf: Shelf) -> dict[str, int]:
    """The next seq of each stream of the newest epoch, as the segments tell."""
    epoch = shelf.ledger.epoch
    following: dict[str, int] = {}
    extents = [(each.head, each.summary.ranges) for each in shelf.sealed]
    extents += [(segment.head, segment.extent.ranges) for segment in shelf.active.values()]
    for head, ranges in extents:
        if head.epoch == epoch:
            for stream, after in [*head.next_seq.items(), *((s, last + 1) for s, (_, last) in ranges.items())]:
                following[stream] = max(after, following.get(stream, 1))
    for each in shelf.ledger.gaps:
        if each.epoch == epoch and each.gaps:
            following[each.stream] = max(each.gaps[-1].last + 1, following.get(each.stream, 1))
    return following


def begin_epoch(shelf: Shelf, reason: str, *, certain: bool) -> None:
    """Begin a new epoch in every lane. Not ``certain``: the old one ends in a gap up to what was set aside."""
    ledger = shelf.ledger
    last = {stream: following - 1 for stream, following in shelf.next_seq.items()}
    if not certain:
        ends = {stream: Gap(last.get(stream, 0) + 1, bound, reason, upper_bound=True)
                for stream, bound in ledger.reserved.items() if bound > last.get(stream, 0)}  # fmt: skip
        ledger = ledger.with_gaps(ledger.epoch, {stream: [gap] for stream, gap in ends.items()})
    ledger = ledger.with_epoch(reason, last, time.time_ns())
    shelf.save(msgspec.structs.replace(ledger, device=shelf.device, machine_id=clock.machine_id(), copied=False))
    old, shelf.active, shelf.next_seq = shelf.active, {}, {}
    for lane, segment in old.items():
        totals = segment.totals()
        shelf.retire(segment)
        shelf.start_segment(lane, totals)


def record_holes(shelf: Shelf, reason: str) -> None:
    """Record as gaps the numbers that neither a segment nor a gap covers. Raises OSError."""
    ledger = shelf.ledger
    known_last: dict[tuple[str, str], int] = {}
    for epoch in ledger.epochs:
        for stream, last in epoch.predecessor_last.items():
            known_last[(epoch.predecessor or "", stream)] = last
    for stream, following in shelf.next_seq.items():
        known_last[(ledger.epoch, stream)] = following - 1
    for sealed in shelf.sealed:
        for stream, (_, last) in sealed.summary.ranges.items():
            place = (sealed.head.epoch, stream)
            known_last[place] = max(last, known_last.get(place, 0))
    record_holes_within(shelf, {place: (1, last) for place, last in known_last.items()}, reason)


def record_holes_within(shelf: Shelf, extents: Mapping[tuple[str, str], Range], reason: str) -> None:
    """Record as gaps what nothing covers within an extent of each (epoch, stream). Raises OSError."""
    ledger = shelf.ledger
    for (epoch, stream), (first, last) in extents.items():
        covered = shelf.ranges(epoch, stream) + _spans(ledger.gaps_of(epoch, stream))
        lacking = [Gap(*hole, reason, upper_bound=False) for hole in holes(covered, first, last)]
        if lacking:
            ledger = ledger.with_gaps(epoch, {stream: lacking})
    if ledger != shelf.ledger:
        shelf.save(ledger)


def _sweep(directory: Path) -> None:
    """Remove what was never finished; put logs aside that lost their database."""
    for path in directory.iterdir():
        base, _, suffix = path.name.partition(".db-")
        if TEMPORARY in path.name:
            path.unlink(missing_ok=True)
        elif suffix and not (directory / f"{base}.db").exists():
            move_aside(directory, directory / f"{base}.db")


def _ledger(directory: Path, notes: list[str]) -> Ledger | None:
    try:
        return read_ledger(directory)
    except StoreError as error:
        notes.append(error.message)
        move_aside(directory, directory / LEDGER)
        return None


def _rebuild_ledger(found: Sequence[_Found], device: str) -> Ledger | None:
    """A ledger from the heads of the segments; None when there are none."""
    epochs: list[Epoch] = []
    lanes: set[int] = set()
    for each in found:
        if each.head is None:
            continue
        if each.head.epoch not in {epoch.id for epoch in epochs}:
            before = epochs[-1].id if epochs else None
            epochs.append(Epoch(each.head.epoch, before, "recovered", each.head.began_wall_ns, {}))
            lanes = set()
        lanes.add(each.head.lane)
    if not epochs:
        return None
    return Ledger(device=device, machine_id=clock.machine_id(), epochs=tuple(epochs), lanes=tuple(sorted(lanes)))


def _inspect(directory: Path, number: int) -> _Found:
    path = files.segment_path(directory, number)
    try:
        roll_back_hot_journal(path)
        with contextlib.closing(open_reading(path)) as connection:
            head, summary = read_head(connection, path), read_summary(connection, path)
    except (sqlite3.Error, StoreError) as error:
        if cause(error) != "corrupt":
            raise
        return _Found(path, number, None, None)
    return _Found(path, number, head, summary)


def _finish_replacements(directory: Path, found: Sequence[_Found]) -> list[_Found]:
    replaced = {each.head.replaces for each in found if each.head is not None and each.summary is not None}
    for each in found:
        if each.number in replaced:
            move_aside(directory, each.path)
    return [each for each in found if each.number not in replaced]


def _next_number(directory: Path) -> int:
    names = [path.name for path in [*directory.glob("segment-*"), *directory.glob(f"{QUARANTINE}/*-segment-*")]]
    numbers = [int(name.partition("segment-")[2][:8]) for name in names]
    return max(numbers, default=0) + 1


def _spans(gaps: Sequence[Gap]) -> list[Range]:
    return [(gap.first, gap.last) for gap in gaps]
