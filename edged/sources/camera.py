"""A camera: it does not wait, and its latest frame counts.

- One frame waits here for the pipeline to take it, whatever the policy of its queue. When the next one comes, the one
  that waits is dropped and counted as overtaken.
- A frame that its driver marks as damaged, or whose bytes are no image, is rejected with the reason. Every other one is
  offered as the image (H, W) or (H, W, 3) that ``pixels`` makes of it, on a thread, for that takes milliseconds.
- The camera may be pulled and come back: what it had brought by then is offered all the same, and it is looked for, and
  opened again with the same wishes. A camera that stands still is opened anew too.
- What the driver lost since nobody fetched it in time was never ours: it is counted by the driver's own numbers, and
  told in the status. A camera that cannot be as slow as it should be is thinned out: frames in between are passed over.

How a camera is opened and read is its ``Capture``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edged.domain import Frame, FrameId
from edged.errors import FrameRejected
from edged.ports import Ended, Intake
from edged.sources.camera_formats import RATE_SLACK, Wanted
from edged.sources.pixels import Picture, to_image
from edged.sources.returning import Returning, Tell

STALL_S = 5.0  # without a frame, at least; a long exposure in the dark takes a second
STALL_FRAMES = 10
AT_ONCE = 16  # frames fetched before others have the event loop; drivers have fewer buffers


@dataclass(frozen=True, slots=True)
class Grab:
    """One frame as its driver hands it out. ``number`` is the driver's; ``damage`` says what is wrong with it."""

    data: bytes
    number: int
    damage: str = ""


class Capture(Protocol):
    """An open camera that sends ``picture`` at ``rate`` frames a second (0: it does not say)."""

    @property
    def picture(self) -> Picture:
        """What each frame is."""

    @property
    def rate(self) -> float:
        """What was agreed."""

    def fileno(self) -> int:
        """Readable when a frame is there, or the camera is gone."""

    def take(self) -> Grab | None:
        """The oldest frame that is there; None for none. Does not wait. Raises OSError when the camera is gone."""

    def close(self) -> None:
        """Let go of the camera. May take a while."""


Open = Callable[[Path, Wanted], Capture]  # may take a while; raises OSError, ConfigError when it never can


@dataclass(frozen=True, slots=True)
class _Waiting:
    grab: Grab
    picture: Picture
    received_ns: int


class CameraSource:
    """Brings the frames of the camera ``device`` as frames of the source ``name``. Implements the Source port."""

    def __init__(self, name: str, device: Path, wanted: Wanted, open_: Open, tell: Tell) -> None:
        self.name = name
        self._path = device
        self._wanted = wanted
        self._open = open_
        self._camera = Returning(name, device, tell, self._lost)
        self._run = uuid.uuid4().hex[:8]
        self._number = 0
        self._missed = 0  # by the driver
        self._last: int | None = None  # of the driver's numbers, in this session
        self._waiting: _Waiting | None = None
        self._came = asyncio.Event()

    async def run(self, intake: Intake) -> None:
        """Bring frames until cancelled. Raises ConfigError when cameras cannot be used here at all."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._hand_over(intake), name=f"{self.name}:frames")
                tasks.create_task(self._camera.hold(lambda: self._session(intake)), name=f"{self.name}:camera")
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _session(self, intake: Intake) -> None:
        """The camera from its opening until it is gone. Raises OSError, which says why."""
        capture = await asyncio.to_thread(self._open, self._path, self._wanted)
        try:
            self._camera.about = _about(capture)
            await self._fetch(capture, _Pace(self._wanted.rate, capture.rate), intake)
        finally:
            await asyncio.to_thread(capture.close)

    async def _fetch(self, capture: Capture, pace: _Pace, intake: Intake) -> None:
        stall_s = max(STALL_S, STALL_FRAMES / capture.rate if capture.rate else 0.0)
        self._last = None
        with _readable(capture.fileno()) as readable:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(stall_s):
                        await readable.wait()
                told = readable.is_set()
                readable.clear()
                # Looked at in any case: it may have been this loop that stood still.
                if not self._fetch_ready(capture, pace, intake) and not told:
                    raise OSError(errno.ETIMEDOUT, f"no frame came for {stall_s:.0f} seconds")

    def _fetch_ready(self, capture: Capture, pace: _Pace, intake: Intake) -> bool:
        """Take what is there. Whether anything was."""
        for count in range(AT_ONCE):
            grab = capture.take()
            if grab is None:
                return count > 0
            if self._last is not None and grab.number > self._last:
                self._missed += grab.number - self._last - 1
            self._last = grab.number
            if pace.takes(time.monotonic()):
                self._take(_Waiting(grab, capture.picture, time.clock_gettime_ns(time.CLOCK_BOOTTIME)), intake)
            self._camera.brought()
            self._camera.say()
        return True

    def _take(self, waiting: _Waiting, intake: Intake) -> None:
        if self._waiting is not None:
            intake.overtaken(self.name)
        self._waiting = waiting
        self._came.set()

    async def _hand_over(self, intake: Intake) -> None:
        """Offer whatever is the latest whenever the pipeline has room for it."""
        while True:
            await self._came.wait()
            self._came.clear()
            waiting, self._waiting = self._waiting, None
            if waiting is None:
                continue
            self._number += 1
            identity = FrameId(self.name, f"{self._run}-{self._number:09}")
            try:
                if waiting.grab.damage:
                    raise FrameRejected(waiting.grab.damage)
                image = await asyncio.to_thread(to_image, waiting.grab.data, waiting.picture)
            except FrameRejected as error:
                await intake.reject(identity, waiting.received_ns, str(error), _ignore)
            else:
                await intake.offer(Frame(identity, image, waiting.received_ns), _ignore)

    def _lost(self) -> dict[str, int]:
        return {"missed by the driver": self._missed}


class _Pace:
    """Which frames to take so that ``wanted`` of ``rate`` a second are; all, if the camera is no faster."""

    def __init__(self, wanted: float, rate: float) -> None:
        self._period_s = 1 / wanted if wanted and (not rate or rate * RATE_SLACK > wanted) else 0.0
        self._early_s = 0.5 / rate if rate else 0.0  # nearer to its time than the next one
        self._due_s = 0.0

    def takes(self, now_s: float) -> bool:
        """Whether to take the frame that came at ``now_s``."""
        if now_s + self._early_s < self._due_s:
            return False
        self._due_s = max(self._due_s + self._period_s, now_s)
        return True


def _about(capture: Capture) -> str:
    picture = capture.picture
    rate = f" at {capture.rate:.4g} frames/s" if capture.rate else ""
    return f"{picture.code.strip()} {picture.width}x{picture.height}{rate}"


@contextlib.contextmanager
def _readable(fd: int) -> Iterator[asyncio.Event]:
    """An event that is set whenever there is something to fetch. The event loop is asked again after each clear."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    watched = os.dup(fd)  # the camera may be closed elsewhere; a number that is watched must not become another file's
    try:
        loop.add_reader(watched, event.set)
        yield event
    finally:
        loop.remove_reader(watched)
        os.close(watched)


def _ignore(_: Ended) -> None:
    """Nobody waits for a frame of a camera."""
