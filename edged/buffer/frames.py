"""Remembers which frames are stored, so that none is stored twice, and where.

A frame is known by 64 bits of its BLAKE2 hash: the youngest in a dict, the rest in two sorted arrays (16 bytes a
frame). When a segment is sealed, its part is written beside it; that file outlives the segment, so a frame that was
sent and acknowledged is still known. The memory is bounded: whole segments are forgotten, oldest first, while at least
``window`` younger frames are known. Whoever finds a place compares the real key, as long as the row is there.

``get`` may be called from any thread; everything else belongs to the writer.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.buffer.errors import store_error
from edged.buffer.files import write_durably
from edged.buffer.schema import SEQ_BITS, SEQ_MASK

WINDOW = 262_144  # frames: 4 MiB of memory, 2.4 hours at 30 a second; a retry comes within minutes
BYTES = 16  # a frame, in memory and on disk
RECENT = 4096  # dict entries before they are merged: 0.5 MiB; a merge of a full window takes 2 ms
_KIND_BITS = 2
_HOME_SHIFT = SEQ_BITS + _KIND_BITS


@dataclass(frozen=True, slots=True)
class Home:
    """One stream in one segment."""

    segment: int
    epoch: str
    stream: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where the row of a frame is, or was."""

    home: Home
    kind: int
    seq: int


class FramesFile(msgspec.Struct, frozen=True):
    """Header of a file of frame identities: one JSON line before the two arrays."""

    format: int
    count: int
    crc: int
    homes: list[tuple[str, str]]  # epoch and stream, by the home's number in the arrays


FORMAT = 1


def frame_hash(source: str, key: bytes) -> int:
    """64 bits that stand for a frame."""
    digest = hashlib.blake2b(source.encode() + b"\0" + key, digest_size=8)
    return int.from_bytes(digest.digest(), "little")


class FrameIndex:
    """Frame hash → place, for at least the last ``window`` frames."""

    def __init__(self, window: int = WINDOW) -> None:
        self.window = window
        self._recent: dict[int, int] = {}
        self._sorted: tuple[NDArray[np.uint64], NDArray[np.int64]] = _nothing()
        self._homes: dict[int, Home] = {}
        self._numbers: dict[Home, int] = {}
        self._next_home = 0

    def __len__(self) -> int:
        return len(self._recent) + len(self._sorted[0])

    def get(self, frame: int) -> Place | None:
        """Where the frame with this hash is stored."""
        packed = self._recent.get(frame)
        if packed is None:
            hashes, places = self._sorted
            at = int(hashes.searchsorted(np.uint64(frame)))
            if at >= len(hashes) or hashes[at] != frame:
                return None
            packed = int(places[at])
        return self._place(packed)

    def known(self, frames: Sequence[int]) -> dict[int, Place]:
        """The places of those frames that are stored: one search for all of them."""
        recent = self._recent
        found = {frame: packed for frame in frames if (packed := recent.get(frame)) is not None}
        hashes, places = self._sorted
        if len(hashes):
            wanted = np.array(frames, np.uint64)
            at = hashes.searchsorted(wanted)
            at[at == len(hashes)] = 0
            hits = np.flatnonzero(hashes[at] == wanted)
            found = {frames[hit]: int(places[at[hit]]) for hit in hits.tolist()} | found
        located = ((frame, self._place(packed)) for frame, packed in found.items())
        return {frame: place for frame, place in located if place is not None}

    def _place(self, packed: int) -> Place | None:
        home = self._homes.get(packed >> _HOME_SHIFT)
        return None if home is None else Place(home, packed >> SEQ_BITS & 3, packed & SEQ_MASK)

    def home(self, segment: int, epoch: str, stream: str) -> int:
        """The number under which places in a stream of a segment are added."""
        home = Home(segment, epoch, stream)
        number = self._numbers.get(home)
        if number is None:
            number = self._numbers[home] = self._next_home
            self._homes[number] = home
            self._next_home += 1
        return number

    def add(self, frame: int, home: int, kind: int, seq: int) -> None:
        """Remember a frame."""
        self._recent[frame] = home << _HOME_SHIFT | kind << SEQ_BITS | seq
        if len(self._recent) >= RECENT:
            self._merge_recent()

    def drop(self, segment: int) -> None:
        """Forget the frames of one segment."""
        self._merge_recent()
        gone = [number for number, home in self._homes.items() if home.segment == segment]
        hashes, places = self._sorted
        keep = ~np.isin(places >> _HOME_SHIFT, gone)
        self._sorted = (hashes[keep], places[keep])
        for number in gone:
            del self._numbers[self._homes.pop(number)]

    def shrink(self) -> list[int]:
        """Forget whole segments, oldest first, beyond the window. Returns their numbers."""
        dropped: list[int] = []
        if len(self) <= self.window:
            return dropped
        self._merge_recent()
        counts = self._count_by_segment()
        total = sum(counts.values())
        for segment in sorted(counts)[:-1]:
            if total - counts[segment] < self.window:
                break
            total -= counts[segment]
            self.drop(segment)
            dropped.append(segment)
        return dropped

    def save(self, path: Path, segment: int) -> None:
        """Write the frames of one segment durably. Raises OSError."""
        self._merge_recent()
        numbers = [number for number, home in self._homes.items() if home.segment == segment]
        hashes, places = self._sorted
        mine = np.isin(places >> _HOME_SHIFT, numbers)
        local = np.searchsorted(np.array(numbers, np.int64), places[mine] >> _HOME_SHIFT)
        packed = local << _HOME_SHIFT | places[mine] & ((1 << _HOME_SHIFT) - 1)
        data = hashes[mine].astype("<u8").tobytes() + packed.astype("<i8").tobytes()
        homes = [(self._homes[number].epoch, self._homes[number].stream) for number in numbers]
        header = FramesFile(FORMAT, int(mine.sum()), zlib.crc32(data), homes)
        write_durably(path, msgspec.json.encode(header) + b"\n" + data)

    def load(self, path: Path, segment: int) -> None:
        """Add the frames of a file that ``save`` wrote. Raises StoreError (code "corrupt"), FileNotFoundError."""
        line, _, data = path.read_bytes().partition(b"\n")
        try:
            header = msgspec.json.decode(line, type=FramesFile)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise store_error("corrupt", f"{path}: {error}") from None
        if len(data) != header.count * BYTES or zlib.crc32(data) != header.crc or header.format != FORMAT:
            raise store_error("corrupt", f"{path}: its checksum does not fit")
        hashes = np.frombuffer(data, "<u8", header.count).astype(np.uint64)
        packed = np.frombuffer(data, "<i8", header.count, offset=header.count * 8).astype(np.int64)
        numbers = np.array([self.home(segment, *home) for home in header.homes] or [0], np.int64)
        self._merge(hashes, numbers[packed >> _HOME_SHIFT] << _HOME_SHIFT | packed & ((1 << _HOME_SHIFT) - 1))

    def _count_by_segment(self) -> dict[int, int]:
        numbers, counts = np.unique(self._sorted[1] >> _HOME_SHIFT, return_counts=True)
        by_segment: dict[int, int] = {}
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            segment = self._homes[number].segment
            by_segment[segment] = by_segment.get(segment, 0) + count
        return by_segment

    def _merge_recent(self) -> None:
        recent = self._recent
        if recent:
            self._merge(
                np.fromiter(recent, np.uint64, len(recent)), np.fromiter(recent.values(), np.int64, len(recent))
            )
            self._recent = {}  # after the merge: a reader in another thread finds each frame in one or the other

    def _merge(self, hashes: NDArray[np.uint64], places: NDArray[np.int64]) -> None:
        order = np.argsort(hashes, kind="stable")
        hashes, places = hashes[order], places[order]
        old_hashes, old_places = self._sorted
        at = old_hashes.searchsorted(hashes)  # a frame that is stored twice: the younger comes first and is found
        self._sorted = (np.insert(old_hashes, at, hashes), np.insert(old_places, at, places))


def _nothing() -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    return np.empty(0, np.uint64), np.empty(0, np.int64)
