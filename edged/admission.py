"""How much of a stream may pass while the device is pressed. A share of 1 is all of it, and costs nothing.

- A source that does not wait (``drop-oldest``, ``drop-newest``) has its share of frames admitted, evenly spread and
  for each source by itself; the others are dropped as they arrive, and told in the stream with the reason ``pressure``.
- A source that waits (``block``) loses nothing and is slowed down to its share: it waits before a frame is taken, in
  proportion to the time that it needed for it, and the stream rests after each batch, in proportion to the time that
  this took. Whichever of the two is the slower one sets the pace.

A frame that was admitted stays admitted. Who sets the share is ``edged.governor``; why, ``edged.pressure``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict

WORK_S = 5.0  # at most, of one batch: what took longer waited for a worker or a model
IDLE_S = 0.25  # at most, for one frame: what comes more rarely is no load, and a person may wait for it


class Admission:
    """The share of one stream. ``dropped``: frames that were not admitted since the start.

    ``told``: what the stream says of those; it outlives the share, for they are told a moment later.
    """

    def __init__(self) -> None:
        self.share = 1.0
        self.told = ""
        self.dropped = 0
        self._credit: defaultdict[str, float] = defaultdict(float)
        self._rest_until_s = 0.0  # by the monotonic clock
        self._taken_s: dict[str, float] = {}  # when the last frame of a source was, or is to be, taken
        self._changed = asyncio.Event()

    def set(self, share: float, reason: str = "") -> None:
        """Admit this share from now on, because of this. Whoever rests is woken when the share changed."""
        if share < 1:
            self.told = f"the device admits {share:.0%} of the frames: {reason}"
        if share != self.share:
            self.share = share
            self._credit.clear()
            self._rest_until_s = 0.0
            self._taken_s.clear()
            self._changed.set()

    def admits(self, source: str) -> bool:
        """Whether the next frame of a source that does not wait may enter."""
        if self.share >= 1:
            return True
        self._credit[source] += self.share
        if self._credit[source] >= 1 - 1e-9:  # ten tenths are a little less than one
            self._credit[source] -= 1
            return True
        self.dropped += 1
        return False

    async def pace(self, source: str) -> None:
        """Return when the next frame of a source that waits may be taken."""
        if self.share >= 1:
            return
        now_s, share = time.monotonic(), self.share
        last_s = self._taken_s.get(source, now_s)
        due_s = max(last_s, now_s) + min(max(0.0, now_s - last_s), IDLE_S) * (1 / share - 1)
        self._taken_s[source] = due_s
        while self.share == share and (left_s := due_s - time.monotonic()) > 0:
            await self._sleep(left_s)

    def worked(self, seconds: float) -> None:
        """The stream was at work for so long: it owes the rest."""
        if self.share < 1:
            rest_s = min(seconds, WORK_S) * (1 / self.share - 1)
            self._rest_until_s = max(self._rest_until_s, time.monotonic()) + rest_s

    async def rest(self) -> None:
        """Return when the stream may work again."""
        while (left_s := self._rest_until_s - time.monotonic()) > 0:
            await self._sleep(left_s)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, or wake when the share changes."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
