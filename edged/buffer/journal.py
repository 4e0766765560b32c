"""Appends entries to the shelf and keeps it in order: the work of the writer thread, one group after the other.

A group is what queued during the previous fsync: one transaction for each lane that it touches, the highest priority
first. Numbers, frame identity and totals are part of the row, so they are committed by the very insert.

After an I/O error at the commit nobody knows whether it took place. The segment is closed and read again; when the
group is there (``doubts``), folding the log in writes it once more by another way; when not, it is committed anew. A
damaged segment is put aside. A full disk: what is acknowledged goes, the ballast is released, then commits fail with
``full`` until there is space.
"""

from __future__ import annotations

import contextlib
import enum
import sqlite3
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edged.buffer import clock, retention, schema
from edged.buffer.cursor import read_cursor
from edged.buffer.doubts import Doubts
from edged.buffer.errors import cause, store_error, translate
from edged.buffer.files import segment_path
from edged.buffer.frames import Place, frame_hash
from edged.buffer.quarantine import CORRUPT, put_aside
from edged.buffer.records import Kept
from edged.buffer.recovery import begin_epoch, last_known, reopen
from edged.buffer.schema import KEY_ENCODING, as_text
from edged.buffer.segment import Segment, open_reading
from edged.buffer.shelf import Shelf
from edged.domain import Entry, FrameId, Receipt
from edged.errors import StoreError

LATEST = 256  # entries kept in memory for a person to look at
LATENCIES = 1024  # commits over which the percentiles are taken
CLOCK_CHECK_S = 1.0  # how often the kernel is asked about the clock
BUSY_ATTEMPTS = 5  # each waits 0.2 s for a reader that recovers the log
ROW_BYTES = 160  # of a row beside its key and body, generously
COMMIT_PAGES = 4  # pages that a commit may touch beside those of its rows
LOST_BODY = b'{"error":{"code":"expired","message":"this frame was stored before; its result has left the buffer"}}'


class State(enum.Enum):
    """Whether the buffer takes results."""

    OK = "ok"
    FULL = "full"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class _Planned:
    """An entry with the number that it will have; ``index`` is its place in the group."""

    index: int
    entry: Entry
    seq: int
    frame: int | None

    def receipt(self, epoch: str) -> Receipt:
        """What its caller is told once it is stored."""
        return Receipt(epoch, self.entry.stream, self.seq, self.entry.kind, self.entry.body)


class Journal:
    """The one writer. ``broken``: lanes that must be read again before anything is appended to them."""

    def __init__(self, shelf: Shelf, notes: Sequence[str] = ()) -> None:
        self.shelf = shelf
        self.state = State.OK
        self.reason = "; ".join(notes)
        self.acked: dict[tuple[str, str], int] = {}
        self.latest: deque[Kept] = deque(maxlen=LATEST)
        self.commit_ns: deque[int] = deque(maxlen=LATENCIES)
        self.suspects: set[int] = set()  # sealed segments in which somebody found damage
        self.notes = self.reason
        self._boot_id = clock.boot_id()
        self._quality = "unknown"
        self._quality_checked = -CLOCK_CHECK_S
        self._ack_version = (0, 0)
        self.broken: set[int] = set()
        self._doubts = Doubts()
        self._free_bytes = 0  # at least so much may be written before files are looked at again
        self._measured = -1
        self.read_acks()
        shelf.hold_ballast()
        shelf.measure()

    def append(self, entries: Sequence[Entry]) -> list[Receipt | StoreError]:
        """Store a group. An entry's place holds its receipt, or why it is not stored."""
        results: list[Receipt | StoreError | None] = [None] * len(entries)
        lanes: dict[int, list[int]] = {}
        for index, entry in enumerate(entries):
            lanes.setdefault(self.shelf.settings.lane(entry.stream), []).append(index)
        for lane in sorted(lanes, reverse=True):
            chosen = [entries[index] for index in lanes[lane]]
            try:
                receipts: Sequence[Receipt | StoreError] = self._append(lane, chosen)
                self.set_state(State.OK)
            except (StoreError, OSError, sqlite3.Error) as error:
                failure = translate(error, str(self.shelf.directory))
                self.set_state(State.FULL if failure.code == "full" else State.FAILED, str(failure))
                receipts = [failure] * len(chosen)
            for index, receipt in zip(lanes[lane], receipts, strict=True):
                results[index] = receipt
        return [result for result in results if result is not None]

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Run something whose failures show in the state; the next call tries again."""
        try:
            yield
        except (StoreError, OSError, sqlite3.Error) as error:
            failure = translate(error, str(self.shelf.directory))
            if failure.code != "busy":
                self.set_state(State.FULL if failure.code == "full" else State.FAILED, str(failure))

    def set_state(self, state: State, reason: str = "") -> None:
        """Say how the buffer is; what was noted stays while there is nothing worse to say."""
        self.state, self.reason = state, reason or self.notes

    def note(self, text: str) -> None:
        """Remember something that a person should know; it shows as the reason while nothing worse does."""
        self.notes = text
        self.reason = self.reason or text

    def read_acks(self) -> None:
        """Take the acknowledgements in, if the file changed. A damaged file is no acknowledgement."""
        path, shelf = self.shelf.settings.ack_file, self.shelf
        try:
            stat = path.stat()
            version = (stat.st_ino, stat.st_mtime_ns)
            if version == self._ack_version:
                return
            cursor = read_cursor(path)
        except FileNotFoundError:
            return
        except (StoreError, OSError) as error:
            self.note(str(error))
            return
        self._ack_version = version
        epoch = shelf.ledger.epoch
        for (of, stream), seq in cursor.acks.items():
            known = shelf.next_seq.get(stream, 1) - 1 if of == epoch else seq
            self.acked[(of, stream)] = min(seq, known)

    def lookup(self, frame: FrameId) -> Receipt | None:
        """The receipt of a stored frame. For any thread."""
        place = self.shelf.index.get(frame_hash(frame.source, frame.key.encode(*KEY_ENCODING)))
        return None if place is None else self._receipt(place, frame)

    def close(self) -> None:
        """Leave one plain file a segment and an exact ledger."""
        self.shelf.close(certain=not self.broken)

    # the commit

    def _append(self, lane: int, entries: Sequence[Entry], *, again: bool = True) -> list[Receipt]:
        if lane in self.broken:
            self.read_again(lane)
        segment = self._prepare(lane, entries)
        receipts, planned = self._plan(lane, entries)
        given = [(each.entry, each.receipt(segment.head.epoch)) for each in planned]
        if planned:
            started_ns = time.perf_counter_ns()
            try:
                kept = self._write(segment, planned)
            except (sqlite3.Error, OSError) as error:
                if cause(error) not in ("busy", "full"):
                    self._doubts.remember(lane, given)
                    self.broken.add(lane)
                if not again or cause(error) == "busy" or (cause(error) == "full" and not self._free()):
                    raise
                return self._append(lane, entries, again=False)
            self.commit_ns.append(time.perf_counter_ns() - started_ns)
            self._take_in(segment, planned, kept)
        for each, (_, receipt) in zip(planned, given, strict=True):
            receipts[each.index] = receipt
        return _settle(receipts)

    def _prepare(self, lane: int, entries: Sequence[Entry]) -> Segment:
        """Make room and set numbers aside before the transaction begins."""
        shelf = self.shelf
        self._make_room(entries)
        wanted: dict[str, int] = {}
        for entry in entries:
            wanted[entry.stream] = wanted.get(entry.stream, 0) + 1
        try:
            shelf.reserve(wanted)
            return shelf.lane(lane)
        except (OSError, sqlite3.Error) as error:
            if cause(error) != "full" or not self._free():
                raise
        shelf.reserve(wanted)
        return shelf.lane(lane)

    def _make_room(self, entries: Sequence[Entry]) -> None:
        """Keep below the cap. Files are looked at only when what was free then may be used up by now."""
        shelf = self.shelf
        size = sum(len(entry.body) for entry in entries) + ROW_BYTES * len(entries)
        growth = 2 * size + COMMIT_PAGES * schema.PAGE_BYTES  # in the log, and once more in the file
        self._free_bytes -= growth
        if self._free_bytes > 0 and self._measured == shelf.measured:
            return
        if not retention.make_room(shelf, self.acked, growth):
            raise store_error("full", f"{shelf.directory}: the cap of {shelf.settings.cap_bytes} bytes is reached",
                              "raise buffer.cap_mb")  # fmt: skip
        used = shelf.size_bytes() + retention.headroom_bytes(shelf) + growth
        self._free_bytes, self._measured = shelf.settings.cap_bytes - used, shelf.measured

    def _plan(self, lane: int, entries: Sequence[Entry]) -> tuple[list[Receipt | int | None], list[_Planned]]:
        """Decide for each entry: the first receipt of its frame, the place of that frame in this group, or a number."""
        receipts: list[Receipt | int | None] = [None] * len(entries)
        planned: list[_Planned] = []
        following = self.shelf.next_seq
        numbers: dict[str, int] = {}
        firsts: dict[int, int] = {}
        frames = self._frames(entries)
        known = self.shelf.index.known([frame for frame in frames if frame is not None])
        for index, (entry, frame) in enumerate(zip(entries, frames, strict=True)):
            receipts[index] = self._doubts.claim(lane, entry)
            if receipts[index] is not None:
                continue
            if frame is not None and entry.frame is not None:
                if frame in firsts:
                    receipts[index] = firsts[frame]
                    continue
                place = known.get(frame)
                stored = None if place is None else self._receipt(place, entry.frame)
                if stored is not None:
                    receipts[index] = stored
                    continue
                firsts[frame] = index
            seq = numbers.get(entry.stream) or following.get(entry.stream, 1)
            numbers[entry.stream] = seq + 1
            planned.append(_Planned(index, entry, seq, frame))
        return receipts, planned

    def _write(self, segment: Segment, planned: Sequence[_Planned]) -> list[tuple[int, int]]:
        """One transaction. Returns wall clock and latency of each row."""
        for attempt in range(BUSY_ATTEMPTS):
            try:
                segment.begin()
                break
            except sqlite3.OperationalError as error:
                if cause(error) != "busy" or attempt == BUSY_ATTEMPTS - 1:
                    raise
        try:
            rows = self._rows(segment, planned)
            segment.commit(rows)
        except BaseException:  # a cancellation too: what was begun is undone, and it goes on
            segment.roll_back()
            raise
        return [(row[6], row[7]) for row in rows]

    def _rows(self, segment: Segment, planned: Sequence[_Planned]) -> list[tuple[Any, ...]]:
        wall_ns, now_ns = time.time_ns(), clock.boottime_ns()
        quality = self._clock_quality(wall_ns)
        rows: list[tuple[Any, ...]] = []
        for each in planned:
            entry = each.entry
            key = entry.frame.key.encode(*KEY_ENCODING) if entry.frame is not None else b""
            context = segment.context((self._boot_id, quality, entry.model, entry.digest, entry.engine))
            latency_ns = now_ns - entry.received_ns
            numbers = (
                segment.name(entry.stream) << schema.SEQ_BITS | each.seq, schema.KIND_NUMBERS[entry.kind],
                segment.name(entry.source), context, entry.count, entry.received_ns, wall_ns,
                max(0, latency_ns),
            )  # fmt: skip
            crc = schema.checksum(numbers, key, entry.body)
            rows.append((*numbers, crc, as_text(key), entry.body.decode()))
        return rows

    def _take_in(self, segment: Segment, planned: Sequence[_Planned], kept: Sequence[tuple[int, int]]) -> None:
        """Account for what is on the medium now."""
        shelf, epoch = self.shelf, segment.head.epoch
        homes: dict[str, int] = {}
        for each, (wall_ns, latency_ns) in zip(planned, kept, strict=True):
            entry, seq = each.entry, each.seq
            shelf.next_seq[entry.stream] = seq + 1
            segment.extent.add(entry.stream, seq, entry.source, schema.counted(entry.kind, entry.count), wall_ns)
            if each.frame is not None:
                home = homes.get(entry.stream)
                if home is None:
                    home = homes[entry.stream] = shelf.index.home(segment.number, epoch, entry.stream)
                shelf.index.add(each.frame, home, schema.KIND_NUMBERS[entry.kind], seq)
            self.latest.append(Kept(entry, seq, wall_ns, latency_ns))

    def _clock_quality(self, wall_ns: int) -> str:
        now_s = time.monotonic()
        if now_s - self._quality_checked >= CLOCK_CHECK_S:
            self._quality = clock.clock_quality(wall_ns, self.shelf.ledger.floor_wall_ns)
            self._quality_checked = now_s
        return self._quality

    # identity

    def _frames(self, entries: Sequence[Entry]) -> list[int | None]:
        """The hash of each entry's frame; None where identity does not count."""
        if not self.shelf.settings.frame_identity:
            return [None] * len(entries)
        frames = (entry.frame for entry in entries)
        return [None if f is None else frame_hash(f.source, f.key.encode(*KEY_ENCODING)) for f in frames]

    def _receipt(self, place: Place, wanted: FrameId) -> Receipt | None:
        """The receipt of the row at ``place``, if it is that of the wanted frame."""
        home = place.home
        path = segment_path(self.shelf.directory, home.segment)
        try:
            row = read_place(path, place)
        except sqlite3.Error:
            if path.exists():
                self.suspects.add(home.segment)
            row = None
        if row is None:  # the row is gone, the identity stays
            return Receipt(home.epoch, home.stream, place.seq, schema.KINDS[place.kind], LOST_BODY, duplicate=True)
        source, key, body = row
        if (source, key) != (wanted.source, wanted.key.encode(*KEY_ENCODING)):
            return None  # another frame with the same hash
        return Receipt(home.epoch, home.stream, place.seq, schema.KINDS[place.kind], body, duplicate=True)

    # when something fails

    def read_again(self, lane: int) -> None:
        """Close a lane's segment, open and read it anew, and write its log into the file by another way."""
        shelf = self.shelf
        old = shelf.active[lane]
        old.abandon()
        shelf.index.drop(old.number)
        try:
            segment = reopen(shelf, old.path)
            segment.checkpoint("TRUNCATE")
            shelf.active[lane] = segment
            shelf.next_seq = last_known(shelf)
            self._doubts.decide(lane, segment)
        except (StoreError, sqlite3.Error) as error:
            if cause(error) != "corrupt":
                raise
            self._replace_active(lane)
        self.broken.discard(lane)
        shelf.measure()

    def _replace_active(self, lane: int) -> None:
        """Put a damaged active segment aside and begin a new epoch: how far its numbers went is uncertain."""
        shelf = self.shelf
        damaged = shelf.active.pop(lane)
        notes: list[str] = []
        put_aside(shelf, damaged.path, damaged.number, notes)
        shelf.next_seq = last_known(shelf)
        begin_epoch(shelf, CORRUPT, certain=False)
        shelf.lane(lane)
        self.note("; ".join(notes))

    def _free(self) -> bool:
        """Make space on a full disk. False when there is nothing that may go."""
        released = self.shelf.release_ballast()
        discarded = retention.discard_acked(self.shelf, self.acked)
        return released or discarded


def read_place(path: Path, place: Place) -> tuple[str, bytes, bytes] | None:
    """Source, key and body of a stored row; None when it is not there. Raises sqlite3.Error."""
    with contextlib.closing(open_reading(path)) as connection:
        found: tuple[str, bytes, bytes] | None = connection.execute(
            "SELECT s.text, CAST(e.key AS BLOB), CAST(e.body AS BLOB) FROM entry AS e JOIN name AS s ON s.id = e.source"
            " WHERE e.id = ((SELECT id FROM name WHERE text = ?) << ?) + ?",
            (place.home.stream, schema.SEQ_BITS, place.seq),
        ).fetchone()
    return found


def _as_duplicate(receipt: Receipt) -> Receipt:
    return replace(receipt, duplicate=True)


def _settle(receipts: Sequence[Receipt | int | None]) -> list[Receipt]:
    """Give a frame that came twice in one group the receipt of its first coming, whose place stands for it."""
    settled: list[Receipt] = []
    for receipt in receipts:
        first = receipts[receipt] if isinstance(receipt, int) else receipt
        assert isinstance(first, Receipt)
        settled.append(_as_duplicate(first) if isinstance(receipt, int) else first)
    return settled
