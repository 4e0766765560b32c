"""How much of a stream may pass while the device is pressed. A share of 1 is all of it, and costs nothing.

- A source that does not wait (``drop-oldest``, ``drop-newest``) has its share of frames admitted, evenly spread and
  for each source by itself; the others are dropped as they arrive, and told in the stream with the reason ``pressure``.
- A source that waits (``block``) loses nothing: after each batch the stream rests, so that it is at work for its share
  of the time. The queue fills meanwhile, and the source waits for room as ever.

A frame that was admitted stays admitted. Who sets the share is ``edged.governor``; why, ``edged.pressure``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict

WORK_S = 5.0  # at most, of one batch: what took longer waited for a worker or a model


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
        self._changed = asyncio.Event()

    def set(self, share: float, reason: str = "") -> None:
        """Admit this share from now on, because of this. Whoever rests is woken when the share changed."""
        if share < 1:
            self.told = f"the device admits {share:.0%} of the frames: {reason}"
        if share != self.share:
            self.share = share
            self._credit.clear()
            self._rest_until_s = 0.0
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

    def worked(self, seconds: float) -> None:
        """The stream was at work for so long: it owes the rest."""
        if self.share < 1:
            rest_s = min(seconds, WORK_S) * (1 / self.share - 1)
            self._rest_until_s = max(self._rest_until_s, time.monotonic()) + rest_s

    async def rest(self) -> None:
        """Return when the stream may work again."""
        while (left_s := self._rest_until_s - time.monotonic()) > 0:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._changed.wait()
