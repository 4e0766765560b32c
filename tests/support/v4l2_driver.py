"""A V4L2 driver in Python: answers linuxpy's ioctls on a plain file, whose pages are its buffers.

What it answers is what the kernel's documentation says a driver may answer; that real ones do is shown in a virtual
machine (``tests/vm/test_cameras.py``). It cannot be waited for: epoll takes no plain files.
"""

from __future__ import annotations

import errno
import mmap
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linuxpy.video import raw  # type: ignore[import-untyped]  # it has annotations, and says so nowhere

Size = tuple[int, int]
FRAME_BYTES = 1 << 16


def code_of(name: str) -> int:
    return int.from_bytes(name.encode(), "little")


@dataclass
class Driver:
    """One camera: ``formats`` names the sizes of each format, ``fps`` the rates of each format and size."""

    file: Path
    formats: dict[str, list[Size]]
    fps: dict[tuple[str, Size], list[int]] = field(default_factory=dict)
    stepwise: tuple[Size, Size, Size] | None = None
    lists_sizes: bool = True
    sets_rates: bool = True
    kind: str = "VIDEO_CAPTURE"
    space: int = 8
    fails: dict[str, int] = field(default_factory=dict)  # ioctl → errno
    streaming: bool = False
    queued: deque[int] = field(default_factory=deque)
    _done: deque[tuple[int, int, int, bool]] = field(default_factory=deque)
    _now: tuple[str, Size] = ("", (0, 0))
    _period: tuple[int, int] = (1, 30)
    _sequence: int = 0

    def __post_init__(self) -> None:
        self.file.write_bytes(bytes(8 * FRAME_BYTES))
        first = next(iter(self.formats))
        self._now = (first, self.formats[first][0])

    def send(self, data: bytes, *, damaged: bool = False, left_out: int = 0) -> None:
        """The sensor has a frame: it goes into the next buffer, as by DMA."""
        index = self.queued.popleft()
        with self.file.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[index * FRAME_BYTES : index * FRAME_BYTES + len(data)] = data
        self._sequence += 1 + left_out
        self._done.append((index, len(data), self._sequence, damaged))

    def ioctl(self, _fd: object, request: Any, *arguments: Any) -> Any:
        """In the place of ``linuxpy.ioctl.ioctl``."""
        name = raw.IOC(request).name
        if name in self.fails:
            raise OSError(self.fails[name], "as the test wants it")
        answer: Callable[[Any], None] | None = getattr(self, f"_{name.lower()}", None)
        if answer is None:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        answer(arguments[0])
        return arguments[0]

    def _querycap(self, found: Any) -> None:
        kind = raw.Capability[self.kind]
        found.capabilities = raw.Capability.DEVICE_CAPS | kind | raw.Capability.STREAMING
        found.device_caps = kind | raw.Capability.STREAMING

    def _enum_fmt(self, found: Any) -> None:
        found.pixelformat = code_of(self._at(list(self.formats), found.index))

    def _enum_framesizes(self, found: Any) -> None:
        if not self.lists_sizes:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        if self.stepwise is not None:
            self._at([0], found.index)
            found.type = raw.Frmsizetypes.STEPWISE
            low, high, step = self.stepwise
            found.stepwise.min_width, found.stepwise.min_height = low
            found.stepwise.max_width, found.stepwise.max_height = high
            found.stepwise.step_width, found.stepwise.step_height = step
            return
        found.type = raw.Frmsizetypes.DISCRETE
        sizes = self.formats[found.pixel_format.to_bytes(4, "little").decode()]
        found.discrete.width, found.discrete.height = self._at(sizes, found.index)

    def _enum_frameintervals(self, found: Any) -> None:
        name = found.pixel_format.to_bytes(4, "little").decode()
        found.type = raw.Frmivaltypes.DISCRETE
        found.discrete.numerator = 1
        found.discrete.denominator = self._at(self.fps.get((name, (found.width, found.height)), []), found.index)

    def _g_fmt(self, found: Any) -> None:
        name, (width, height) = self._now
        pix = found.fmt.pix
        pix.width, pix.height, pix.pixelformat = width, height, code_of(name)
        pix.bytesperline, pix.sizeimage, pix.colorspace = 2 * width, FRAME_BYTES, self.space

    def _s_fmt(self, wanted: Any) -> None:
        name = wanted.fmt.pix.pixelformat.to_bytes(4, "little").decode()
        size = (wanted.fmt.pix.width, wanted.fmt.pix.height)
        sizes = self.formats[name]
        self._now = (name, size if size in sizes or self.stepwise else sizes[0])
        self._g_fmt(wanted)

    def _s_parm(self, wanted: Any) -> None:
        if not self.sets_rates:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        period = wanted.parm.capture.timeperframe
        asked = period.denominator / period.numerator
        rates = self.fps.get(self._now, [30])
        self._period = (1, min(rates, key=lambda rate: abs(rate - asked)))
        self._g_parm(wanted)

    def _g_parm(self, found: Any) -> None:
        found.parm.capture.timeperframe.numerator, found.parm.capture.timeperframe.denominator = self._period

    def _reqbufs(self, wanted: Any) -> None:
        if not wanted.count:
            self.queued.clear()

    def _querybuf(self, found: Any) -> None:
        found.length, found.m.offset = FRAME_BYTES, found.index * FRAME_BYTES

    def _qbuf(self, buffer: Any) -> None:
        self.queued.append(buffer.index)

    def _dqbuf(self, buffer: Any) -> None:
        if not self._done:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        buffer.index, buffer.bytesused, buffer.sequence, damaged = self._done.popleft()
        buffer.flags = raw.BufferFlag.ERROR if damaged else raw.BufferFlag.DONE

    def _streamon(self, _: Any) -> None:
        self.streaming = True

    def _streamoff(self, _: Any) -> None:
        self.streaming = False
        self.queued.clear()

    @staticmethod
    def _at(values: list[Any], index: int) -> Any:
        if index >= len(values):
            raise OSError(errno.EINVAL, "Invalid argument")
        return values[index]
