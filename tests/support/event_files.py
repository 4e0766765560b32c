"""Writers of event recordings in the formats that ``edged.sources.events`` reads, word by word and without arrays."""

from __future__ import annotations

import struct
from collections.abc import Iterable

Row = tuple[int, int, int, int]  # x, y, polarity, microseconds

DAT_HEADER = b"% Data file containing CD events\n% Version 2\n% Width 304\n% Height 240\n"
AEDAT_FIRST = b"#!AER-DAT2.0\r\n"


def saccade(rows: Iterable[Row]) -> bytes:
    """``.bs2`` and ``.bin``."""
    return b"".join(bytes([x, y]) + (p << 23 | t).to_bytes(3, "big") for x, y, p, t in rows)


def dat(rows: Iterable[Row], header: bytes = DAT_HEADER, kind: int = 12) -> bytes:
    """``.dat``."""
    return header + bytes([kind, 8]) + b"".join(struct.pack("<II", t, p << 28 | y << 14 | x) for x, y, p, t in rows)


def aedat(words: Iterable[tuple[int, int]], chip: str = "eu.seebetter.ini.chips.davis.DAVIS240C") -> bytes:
    """``.aedat`` of addresses and times. Without a name of a chip, the header has no line for it."""
    header = AEDAT_FIRST + (f"# AEChip: {chip}\r\n".encode() if chip else b"")
    return header + b"".join(struct.pack(">II", address, t) for address, t in words)


def davis(x: int, y: int, polarity: int) -> int:
    """The address of an event of a DAVIS."""
    return y << 22 | x << 12 | polarity << 11


def dvs128(x: int, y: int, polarity: int) -> int:
    """The address of an event of a DVS128."""
    return y << 8 | x << 1 | polarity
