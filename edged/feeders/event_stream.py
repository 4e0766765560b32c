"""The live bytes of an event camera → events as they come → windows, one frame each. No I/O.

**Bytes.** The formats of recordings (``edged.sources.events``), whose bytes may be split anywhere. The sensor's clock
comes round after 23 bits (``.bs2``) or 32 bits (``.dat``, ``.aedat``); that is seen, and time goes on. Where time runs
backwards otherwise, bytes were lost: a hole, over which no window reaches. These formats have no marks by which a
reader finds back into step, so a line must not lose bytes.

**Windows**, as the model's manifest says. With ``t0 = first_event`` a window begins at the first event that is in no
former one; with ``recording`` windows follow one another without a gap from the first event on (of a recording: from
its beginning), and one without events is none. The time of an event counts from the beginning of its window.

Memory is bounded by what is fed at once and by ``MOST_EVENTS`` of one window.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edged.domain import Events
from edged.errors import FrameRejected
from edged.feeders.daemon import EventRule
from edged.sources import events as formats

MOST_EVENTS = 3_000_000  # 24 MB on their way to the daemon, which takes 26
DAT_HEADER = b"% Version 2\n\x0c\x08"
NO_LINE = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
CLOCK_BITS = {"bs2": 23, "dat": 32, "aedat": 32}

Decode = Callable[[bytes], formats.Words]


@dataclass(frozen=True, slots=True)
class Piece:
    """Events in order of time. ``follows``: nothing is missing between them and the piece before."""

    events: Events
    follows: bool


@dataclass(frozen=True, slots=True)
class Window:
    """One frame: the events of a window, their time counted from its beginning at ``start_us``."""

    start_us: int
    events: Events


class LiveEvents:
    """Takes a stream of bytes apart. ``holes`` counts where time ran backwards."""

    def __init__(self, name: str) -> None:
        self.holes = 0
        self._format = name
        self._period = 1 << CLOCK_BITS[name]
        self._record_bytes = formats.SACCADE_BYTES if name == "bs2" else formats.RECORD_BYTES
        self._decode: Decode | None = formats.saccade_words if name == "bs2" else None
        self._kept = b""
        self._added = 0  # to the sensor's clock, for what it has come round or was carried on
        self._last: int | None = None

    def feed(self, data: bytes) -> Iterator[Piece]:
        """The events that are complete with these bytes. Raises FrameRejected where they are of no such format."""
        data = self._kept + data
        if self._decode is None:
            opened = _open(self._format, data)
            if opened is None:
                self._kept = data
                return
            self._decode, data = opened
        whole = len(data) - len(data) % self._record_bytes
        self._kept = data[whole:]
        if whole:
            yield from self._pieces(self._decode(data[:whole]), _carries(self._format, data[:whole]))

    def _pieces(self, words: formats.Words, carries: int) -> Iterator[Piece]:
        t = words.t + words.carries * formats.CARRY_US + self._added
        self._added += carries * formats.CARRY_US
        if not len(t):
            return
        before = int(t[0]) if self._last is None else self._last
        rounds = np.cumsum(np.diff(t, prepend=before) < -self._period // 2) * self._period
        t += rounds
        self._added += int(rounds[-1])
        follows, begin = self._last is not None, 0
        for end in (*np.flatnonzero(np.diff(t, prepend=before) < 0).tolist(), len(t)):
            if end > begin:
                yield Piece(_slice(words, t, begin, end), follows)
            follows, begin = False, end
            self.holes += end < len(t)
        self._last = int(t[-1])


def _carries(name: str, data: bytes) -> int:
    """How often these records carry the sensor's clock on."""
    return data[1 :: formats.SACCADE_BYTES].count(formats.CARRY_Y) if name == "bs2" else 0


def _slice(words: formats.Words, t_us: NDArray[np.int64], begin: int, end: int) -> Events:
    return Events(words.x[begin:end], words.y[begin:end], words.polarity[begin:end], t_us[begin:end])


def _open(name: str, data: bytes) -> tuple[Decode, bytes] | None:
    """How records are decoded, and those behind the header; None until the header is complete."""
    end = _dat_header(data) if name == "dat" else _aedat_header(data)
    if end is None:
        if len(data) > formats.HEADER_BYTES:
            raise FrameRejected(f"the header of the stream is longer than {formats.HEADER_BYTES} bytes")
        return None
    if name == "dat":
        formats.check_dat_header(data[: end + 2], end)
        return formats.dat_words, data[end + 2 :]
    chip = formats.chip_named(data[:end])
    if chip is None:
        raise FrameRejected("the stream names no chip", formats.CHIPS)
    return partial(formats.aedat_words, chip=chip), data[end:]


def _dat_header(data: bytes) -> int | None:
    """Where the lines of a ``.dat`` end, once the two bytes behind them are here."""
    found = formats.DAT_LINES.match(data, 0, formats.HEADER_BYTES)
    end = found.end() if found else 0
    return end if len(data) >= end + 2 and data[end : end + 1] != b"%" else None


def _aedat_header(data: bytes) -> int | None:
    """Where the lines of an ``.aedat`` end: at its marked end, or where a record is complete that is no line."""
    first = formats.AEDAT_FIRST
    if not first.startswith(data[: len(first)]):
        raise FrameRejected("not an AEDAT 2.0 stream (its first line says otherwise)")
    at = data.find(formats.AEDAT_END, 0, formats.HEADER_BYTES)
    if at >= 0:
        return at + len(formats.AEDAT_END)
    found = formats.AEDAT_LINES.match(data, 0, formats.HEADER_BYTES)
    end = found.end() if found else 0
    rest = data[end:]
    if not rest.startswith(b"#"):
        return end if rest and end else None
    # A first event may begin like a line; one that holds a control character is none.
    control = NO_LINE.search(rest)
    return end if control and b"\n" not in rest[: control.start()] else None


class Windows:
    """Cuts pieces into windows. ``broken`` counts those that a hole ended, ``overfull`` those beyond MOST_EVENTS."""

    def __init__(self, rule: EventRule, origin_us: int | None = None) -> None:
        self.broken = 0
        self.overfull = 0
        self._rule = rule
        self._origin_us = origin_us
        self._is_underway = False
        self._start_us: int | None = None
        self._parts: list[Events] = []
        self._events = 0

    @property
    def is_open(self) -> bool:
        """Whether a window has begun and not ended."""
        return self._start_us is not None

    def push(self, piece: Piece) -> Iterator[Window]:
        """The windows that have ended with these events."""
        if self._is_underway and not piece.follows:
            self.broken += self.is_open
            self._begin_anew()
            self._origin_us = None
        self._is_underway = True
        rest = piece.events
        while len(rest.t_us):
            if self._start_us is None:
                self._start_us = self._start_of(int(rest.t_us[0]))
            end = int(np.searchsorted(rest.t_us, self._start_us + self._rule.window_us))
            self._take(_part(rest, 0, end))
            if end == len(rest.t_us):
                return
            yield from self.flush()
            rest = _part(rest, end, len(rest.t_us))

    def flush(self) -> Iterator[Window]:
        """The window that has begun, ended here."""
        start = self._start_us
        if start is not None and self._events <= MOST_EVENTS:
            yield Window(start, _joined(self._parts, start))
        elif start is not None:
            self.overfull += 1
        self._begin_anew()

    def _start_of(self, t_us: int) -> int:
        if self._rule.t0 == "first_event":
            return t_us
        if self._origin_us is None:
            self._origin_us = t_us
        return t_us - (t_us - self._origin_us) % self._rule.window_us

    def _take(self, events: Events) -> None:
        self._events += len(events.t_us)
        if self._events > MOST_EVENTS:
            self._parts.clear()
        elif len(events.t_us):
            self._parts.append(events)

    def _begin_anew(self) -> None:
        self._start_us = None
        self._parts = []
        self._events = 0


def _part(events: Events, begin: int, end: int) -> Events:
    return Events(events.x[begin:end], events.y[begin:end], events.polarity[begin:end], events.t_us[begin:end])


def _joined(parts: list[Events], start_us: int) -> Events:
    return Events(
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.y for part in parts]),
        np.concatenate([part.polarity for part in parts]),
        np.concatenate([part.t_us for part in parts]) - start_us,
    )


def dat_bytes(events: Events) -> bytes:
    """A ``.dat`` of events whose time fits into 32 bits: how windows travel."""
    words = np.empty((len(events.t_us), 2), "<u4")
    words[:, 0] = events.t_us
    words[:, 1] = events.polarity.astype(np.uint32) << 28 | events.y.astype(np.uint32) << 14 | events.x
    return DAT_HEADER + words.tobytes()
