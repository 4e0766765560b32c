"""Windows of a sensor's samples from a serial line, a FIFO or the character device of an IIO buffer.

- The line may be pulled and come back: the source waits for it, opens it again, and says so in the status. What a line
  lost is counted by the numbers of its blocks (``sample_stream``) and told for as long as the daemon runs.
- The pipeline's policy says what a full queue does. With ``block`` nothing more is read until there is room: a FIFO's
  writer waits then, and a serial line's driver keeps some kilobytes and loses what comes after, which the numbers tell.
  With ``drop-oldest`` and ``drop-newest`` whole windows are shed, and counted as such.
- A window is a frame as soon as its last sample has come. Each start of the daemon begins with an empty window and an
  identity of its own.

Does not configure sensors: an IIO buffer must be set up and enabled by whoever installs the device.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import time
import uuid
from pathlib import Path

from edged.domain import Frame, FrameId
from edged.errors import ConfigError
from edged.ports import Ended, Intake
from edged.sources.line import open_line
from edged.sources.returning import RETRY_S, Returning, Tell
from edged.sources.sample_stream import Framing, Windows

READ_BYTES = 16 << 10  # at once: a third of a second at 12 kHz and four bytes a sample


class SerialWindowsSource:
    """Brings the windows of the line at ``path`` as frames of the source ``name``. Implements the Source port."""

    def __init__(self, name: str, path: Path, baud: int, framing: Framing, windows: Windows, tell: Tell) -> None:
        self.name = name
        self._path = path
        self._baud = baud
        self._framing = framing
        self._windows = windows
        self._line = Returning(name, path, tell, self._lost)
        self._run = uuid.uuid4().hex[:8]
        self._number = 0

    async def run(self, intake: Intake) -> None:
        """Read until cancelled. Raises ConfigError when the path can never be a line."""
        await self._line.hold(lambda: self._session(intake))

    async def _session(self, intake: Intake) -> None:
        fd = open_line(self._path, self._baud)
        try:
            self._framing.opened()
            self._line.say()
            await self._read_all(fd, intake)
        finally:
            os.close(fd)

    async def _read_all(self, fd: int, intake: Intake) -> None:
        """Read until the line is gone."""
        is_fifo = stat.S_ISFIFO(os.fstat(fd).st_mode)
        if not is_fifo:  # a FIFO that nobody has written to yet never becomes readable, but reads as ended
            await _readable(fd)
        while True:
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                await _readable(fd)
                continue
            except OSError as error:
                self._line.say(f"the line is gone ({errno.errorcode.get(error.errno or 0, str(error))})")
                return
            if data:
                await self._take(data, intake)
                await asyncio.sleep(0)  # a writer that is faster than this loop must not have it for itself
            elif is_fifo:  # stays open, or what the next writer brings at once would be lost
                self._line.say("nobody writes to it")
                await asyncio.sleep(RETRY_S)
            else:
                self._line.say("the line is gone")
                return

    async def _take(self, data: bytes, intake: Intake) -> None:
        self._line.brought()
        for run in self._framing.feed(data):
            for window in self._windows.push(run):
                received_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                self._number += 1
                await intake.offer(
                    Frame(FrameId(self.name, f"{self._run}-{self._number:09}"), window, received_ns), _ignore
                )
        self._line.say()

    def _lost(self) -> dict[str, int]:
        return {
            "blocks lost on the line": self._framing.lost,
            "damaged on the way": self._framing.damaged,
            "samples in no window": self._windows.unused,
        }


async def _readable(fd: int) -> None:
    """Wait until there is something to read, or the line is gone."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    try:
        loop.add_reader(fd, lambda: None if ready.done() else ready.set_result(None))
        await ready
    except PermissionError:  # epoll's answer for what is always ready, such as /dev/null
        raise ConfigError("the path of the source is no line", "name a serial line, a FIFO or an IIO buffer") from None
    finally:
        with contextlib.suppress(OSError):
            loop.remove_reader(fd)


def _ignore(_: Ended) -> None:
    """Nobody waits for a window."""
