"""Decoders of event-camera recordings: bytes in, ``Events`` out; and of whole records, for live bytes. No I/O.

All of them work on whole arrays, read a header of at most HEADER_BYTES, and believe no declared size. Coordinates are
those of the file: the origin of ``.aedat`` lies below on the left, of the others above on the left. A recording whose
time runs backwards is refused; one without events is refused too, for there is no telling it from a damaged one.

- ``.bs2`` and N-MNIST ``.bin``: five bytes an event, ``x``, ``y``, then 24 bits big-endian: polarity (1 bit) and time
  in microseconds (23 bits). An event with ``y == 240`` is no event but a carry of the sensor's 13-bit clock (Orchard et
  al., "Converting Static Image Datasets to Spiking Neuromorphic Datasets Using Saccades", 2015, and its reader).
- Prophesee ``.dat``, version 2: lines that begin with ``%``, a byte for the type (0 or 12), one for the size (8), then
  two little-endian words an event: microseconds; x (14 bits), y (14 bits), polarity (4 bits), from the lowest bit up.
- AEDAT 2.0 ``.aedat``: lines that begin with ``#``, then two big-endian words an event: address; microseconds. The chip
  that the header names says what an address means (inivation, "AEDAT 2.0"): of a DAVIS, bit 31 frames and inertial data
  (passed over), bits 22 to 30 y, 12 to 21 x, 11 polarity, 10 a signal from outside (passed over); of a DVS128, bit 15 a
  signal from outside, bits 8 to 14 y, 1 to 7 x, 0 polarity. A polarity of 1 is on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edged.domain import Events
from edged.errors import FrameRejected

HEADER_BYTES = 1 << 20  # jAER writes all its preferences into the header, some 175 kB; more is no header
SACCADE_BYTES = 5
CARRY_Y = 240
CARRY_US = 1 << 13
RECORD_BYTES = 8  # of .dat and .aedat
DAT_TYPES = (0, 12)  # Event2d and EventCD; 14 are trigger signals
DAT_LINES = re.compile(rb"(?:%[^\n]*\n)*+")
AEDAT_LINES = re.compile(rb"(?:#[^\x00-\x08\x0b\x0c\x0e-\x1f\n]*\n)*+")  # text only: the first event may begin with a #
AEDAT_FIRST = b"#!AER-DAT2.0"
CHIPS = "known: DVS128, DAVIS240, DAVIS346, DAVIS640, by the line '# AEChip: …'"
AEDAT_END = b"#End Of ASCII Header\r\n"

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Words:
    """Events as a sensor writes them, in whole records: ``t`` is its clock, which may come round, carries not added."""

    x: NDArray[np.uint16]
    y: NDArray[np.uint16]
    polarity: NDArray[np.uint8]
    t: Numbers
    carries: Numbers  # how often, since the first of these records, the clock was carried on
    first: int  # the clock at the first record, which need not be an event


def saccade_words(data: bytes) -> Words:
    """Whole records of ``.bs2`` or ``.bin``."""
    raw = np.frombuffer(data, np.uint8).reshape(-1, SACCADE_BYTES)
    t = raw[:, 2].astype(np.int64)
    t &= 0x7F
    for column in (3, 4):
        t <<= 8
        t |= raw[:, column]
    carry = raw[:, 1] == CARRY_Y
    carries = np.cumsum(carry) if carry.any() else np.zeros(len(raw), np.int64)
    first = int(t[0]) if len(t) else 0
    if carry.any():
        raw, t, carries = raw[~carry], t[~carry], carries[~carry]
    return Words(
        x=raw[:, 0].astype(np.uint16),
        y=raw[:, 1].astype(np.uint16),
        polarity=(raw[:, 2] >> 7).astype(np.uint8),
        t=t,
        carries=carries,
        first=first,
    )


def dat_words(data: bytes) -> Words:
    """Whole records of ``.dat``, without the header. Raises FrameRejected where a polarity is neither 0 nor 1."""
    words = np.frombuffer(data, "<u4").reshape(-1, 2)
    where = words[:, 1]
    x, y = (where & 0x3FFF).astype(np.uint16), (where >> 14 & 0x3FFF).astype(np.uint16)
    polarity = (where >> 28).astype(np.uint8)
    if len(polarity) and polarity.max() > 1:
        raise FrameRejected(f"a polarity is {polarity.max()}", "it must be 0 (off) or 1 (on)")
    t = words[:, 0].astype(np.int64)
    return Words(x, y, polarity, t, np.zeros(len(t), np.int64), int(t[0]) if len(t) else 0)


def aedat_words(data: bytes, chip: Chip) -> Words:
    """Whole records of ``.aedat``, without the header; only the events of pixels."""
    words = np.frombuffer(data, ">u4").reshape(-1, 2)
    pixels = words[(words[:, 0] & chip.other) == 0]
    address, t = pixels[:, 0].astype(np.uint32), pixels[:, 1].astype(np.int64)
    return Words(
        x=(address >> chip.x[0] & chip.x[1]).astype(np.uint16),
        y=(address >> chip.y[0] & chip.y[1]).astype(np.uint16),
        polarity=(address >> chip.polarity & 1).astype(np.uint8),
        t=t,
        carries=np.zeros(len(t), np.int64),
        first=int(words[0, 1]) if len(words) else 0,
    )


def decode_saccade(data: bytes) -> Events:
    """Decode ``.bs2`` or ``.bin``. Raises FrameRejected when bytes are missing or time runs backwards."""
    if not data or len(data) % SACCADE_BYTES:
        raise FrameRejected(f"an event recording of {len(data)} bytes is not a whole number of 5-byte events")
    words = saccade_words(data)
    return Events(words.x, words.y, words.polarity, _in_order(words.t + words.carries * CARRY_US))


def decode_dat(data: bytes) -> Events:
    """Decode a Prophesee ``.dat``, version 2. Raises FrameRejected."""
    end = _header_end(DAT_LINES, data)
    stated = check_dat_header(data[: end + 2], end)
    words = dat_words(_records(data, end + 2))
    for values, name in ((words.x, b"Width"), (words.y, b"Height")):
        if name in stated and values.max() >= int(stated[name]):
            side = name.decode().lower()
            raise FrameRejected(f"an event lies at {values.max()}, beyond the {side} {int(stated[name])} of the header")
    return Events(words.x, words.y, words.polarity, _in_order(words.t))


def check_dat_header(head: bytes, end: int) -> dict[bytes, bytes]:
    """What the lines of a ``.dat`` state: they end at ``end``, then come two bytes. Raises FrameRejected."""
    stated = dict(re.findall(rb"^% (Version|Width|Height) (\d{1,9})[ \r]*$", head[:end], re.MULTILINE))
    if stated.get(b"Version") != b"2":
        raise FrameRejected("not a .dat of version 2", "its header must say '% Version 2'; write it again as version 2")
    kind, size = (*head[end : end + 2], -1, -1)[:2]
    if kind not in DAT_TYPES or size != RECORD_BYTES:
        raise FrameRejected(f"a .dat of type {kind} and {size} bytes an event holds no events of a camera")
    return stated


@dataclass(frozen=True, slots=True)
class Chip:
    """Where a chip has the parts of an address. A word with a bit of ``other`` is no event of a pixel."""

    x: tuple[int, int]  # shift, mask
    y: tuple[int, int]
    polarity: int
    other: int


DVS128 = Chip(x=(1, 0x7F), y=(8, 0x7F), polarity=0, other=0xFFFF8000)
DAVIS = Chip(x=(12, 0x3FF), y=(22, 0x1FF), polarity=11, other=1 << 31 | 1 << 10)


def decode_aedat(data: bytes) -> Events:
    """Decode AEDAT 2.0. Time counts from the first record of any kind. Raises FrameRejected."""
    if not data.startswith(AEDAT_FIRST):
        raise FrameRejected("not an AEDAT 2.0 recording (its first line says otherwise)", "write it again as AEDAT 2.0")
    at = data.find(AEDAT_END, 0, HEADER_BYTES)
    end = at + len(AEDAT_END) if at >= 0 else _header_end(AEDAT_LINES, data)
    body = _records(data, end)
    chip = chip_named(data[:end])
    if chip is None:  # old recordings of the DVS128 name none; their addresses have 16 bits
        if (np.frombuffer(body, ">u4")[::2] >> 16).any():
            raise FrameRejected("the recording names no chip", CHIPS)
        chip = DVS128
    words = aedat_words(body, chip)
    if not len(words.t):
        raise FrameRejected("the recording holds no events of pixels")
    t_us = _in_order(words.t)
    return Events(words.x, words.y, words.polarity, t_us - min(words.first, int(t_us[0])))


def chip_named(header: bytes) -> Chip | None:
    """The chip that the header of an AEDAT recording names, None where it names none. Raises FrameRejected."""
    named = re.search(rb"^# ?AEChip: ?([\w.]{1,200})", header, re.MULTILINE)
    if named is None:
        return None
    name = named[1].decode().rpartition(".")[2]
    if name.upper().startswith("DAVIS"):
        return DAVIS
    if name.upper().startswith("DVS128"):
        return DVS128
    raise FrameRejected(f"the chip {name!r} of the recording is not known", CHIPS)


def _header_end(lines: re.Pattern[bytes], data: bytes) -> int:
    """Where the lines at the beginning end."""
    found = lines.match(data, 0, HEADER_BYTES)
    end = found.end() if found else 0
    goes_on = data[end : end + 1] in (b"#", b"%") and b"\n" not in data[end:HEADER_BYTES]
    if goes_on and len(data) > HEADER_BYTES:
        raise FrameRejected(f"the header of the recording is longer than {HEADER_BYTES} bytes")
    return end


def _records(data: bytes, start: int) -> bytes:
    """The 8-byte records behind the header, at least one."""
    body = len(data) - start
    if body <= 0 or body % RECORD_BYTES:
        raise FrameRejected(f"{max(0, body)} bytes behind the header are not a whole number of 8-byte events")
    return data[start:]


def _in_order(t_us: Numbers) -> Numbers:
    """The same times. Raises FrameRejected where they run backwards."""
    back = t_us[1:] < t_us[:-1]
    if back.any():
        at = int(np.argmax(back)) + 1
        raise FrameRejected(f"time runs backwards at event {at}", "the recording is damaged or of another format")
    return t_us
