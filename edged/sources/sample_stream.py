"""The samples of a sensor: bytes of a stream → runs of samples without a hole → windows. No I/O.

**Blocks**, for a line that may lose bytes or begin anywhere. Each is 10 bytes and its samples, little-endian:

| bytes | what |
|---|---|
| 2 | `A5 5A` |
| 4 | its number: one more than the former block's, and 0 after the largest |
| 2 | n, bytes of samples: a whole number of scans, 1 to 4096 |
| n | scans: a sample of each channel, in the order of channels |
| 2 | CRC-16/CCITT-FALSE (polynomial 1021, initial value FFFF) of number, n and samples |

A block whose number follows is the same run, also after the line was away. A block that comes twice in a row counts
once. Any other number ends the run: what is missing is counted, and no window reaches over it.

**Raw**, for what cannot lose bytes (a FIFO, an IIO buffer): scans and nothing else. Each opening is a run of its own.

Memory is bounded by one block and what is fed at once, and by one window.
"""

from __future__ import annotations

import binascii
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MAGIC = b"\xa5\x5a"
HEAD = struct.Struct("<IH")  # number, bytes of samples
CRC = struct.Struct("<H")
CRC_BEGIN = 0xFFFF
MOST_BYTES = 4096  # of samples in a block; small enough that a damaged length is found out soon
NUMBERS = 1 << 32
BACKWARDS = NUMBERS // 2  # a number that is so far ahead lies behind: the sender began anew

DTYPES = {"s16le": "<i2", "s16be": ">i2", "s32le": "<i4", "s32be": ">i4", "f32le": "<f4"}

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes of whole scans. ``follows``: they begin where the former ended."""

    data: bytes
    follows: bool


class Framing(Protocol):
    """Takes a stream apart."""

    lost: int  # blocks that did not come
    damaged: int  # blocks that came damaged; they are among the lost

    def feed(self, data: bytes) -> Iterator[Run]:
        """What is complete with these bytes."""

    def opened(self) -> None:
        """The stream begins anew: half of a block or scan is no part of what follows."""


class Blocks:
    """Implements Framing for numbered blocks; a scan has ``scan_bytes``."""

    def __init__(self, scan_bytes: int) -> None:
        self.lost = 0
        self.damaged = 0
        self._scan_bytes = scan_bytes
        self._kept = bytearray()
        self._next: int | None = None

    def opened(self) -> None:
        """As the protocol says."""
        self._kept.clear()

    def feed(self, data: bytes) -> Iterator[Run]:
        """As the protocol says."""
        self._kept += data
        while (found := self._block()) is not None:
            number, samples = found
            if self._next is not None and number == (self._next - 1) % NUMBERS:
                continue
            follows = number == self._next
            if not follows and self._next is not None:
                missing = (number - self._next) % NUMBERS
                self.lost += missing if missing < BACKWARDS else 0
            self._next = (number + 1) % NUMBERS
            yield Run(samples, follows)

    def _block(self) -> tuple[int, bytes] | None:
        """The next whole block; None until more has come."""
        kept = self._kept
        while True:
            at = kept.find(MAGIC)
            del kept[: at if at >= 0 else max(0, len(kept) - 1)]  # the last byte may be half of the magic
            body = len(MAGIC) + HEAD.size
            if at < 0 or len(kept) < body:
                return None
            number, size = HEAD.unpack_from(kept, len(MAGIC))
            if not 0 < size <= MOST_BYTES or size % self._scan_bytes:
                del kept[:1]  # these two bytes began no block
                continue
            end = body + size
            if len(kept) < end + CRC.size:
                return None
            if binascii.crc_hqx(kept[len(MAGIC) : end], CRC_BEGIN) != CRC.unpack_from(kept, end)[0]:
                self.damaged += 1
                del kept[:1]
                continue
            samples = bytes(kept[body:end])
            del kept[: end + CRC.size]
            return number, samples


class Raw:
    """Implements Framing for scans without anything between them."""

    def __init__(self, scan_bytes: int) -> None:
        self.lost = 0
        self.damaged = 0
        self._scan_bytes = scan_bytes
        self._kept = b""
        self._follows = False

    def opened(self) -> None:
        """As the protocol says."""
        self._kept, self._follows = b"", False

    def feed(self, data: bytes) -> Iterator[Run]:
        """As the protocol says."""
        data = self._kept + data
        whole = len(data) - len(data) % self._scan_bytes
        self._kept = data[whole:]
        if whole:
            yield Run(data[:whole], self._follows)
            self._follows = True


FRAMINGS: dict[str, type[Blocks | Raw]] = {"blocks": Blocks, "raw": Raw}


def block(number: int, samples: bytes) -> bytes:
    """A block, as a sensor sends it."""
    body = HEAD.pack(number % NUMBERS, len(samples)) + samples
    return MAGIC + body + CRC.pack(binascii.crc_hqx(body, CRC_BEGIN))


class Windows:
    """Cuts runs of samples into windows (channels, window), float32, one every ``hop`` scans of a run."""

    def __init__(self, dtype: str, channels: int, window: int, hop: int, scale: float) -> None:
        self.unused = 0  # scans that were no part of any window, as a run ended too early
        self._dtype: np.dtype[Any] = np.dtype(DTYPES[dtype])
        self._scale = np.float32(scale)
        self._hop = hop
        self._filled = 0
        self._fresh = 0  # of the filled, how many no window has had
        self._scans: Floats = np.zeros((window, channels), np.float32)

    @property
    def scan_bytes(self) -> int:
        """Bytes of a sample of each channel."""
        return int(self._dtype.itemsize * self._scans.shape[1])

    def push(self, run: Run) -> Iterator[Floats]:
        """The windows that are full with these samples."""
        if not run.follows:
            self.unused += self._fresh
            self._filled = self._fresh = 0
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is rejected as a frame
            scans = np.frombuffer(run.data, self._dtype).reshape(-1, self._scans.shape[1]) * self._scale
        while len(scans):
            taken = scans[: len(self._scans) - self._filled]
            self._scans[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            self._fresh += len(taken)
            scans = scans[len(taken) :]
            if self._filled == len(self._scans):
                yield self._scans.T.copy()  # of one channel, anything less would be a view of what comes next
                self._filled -= self._hop
                self._fresh = 0
                self._scans[: self._filled] = self._scans[self._hop :].copy()
