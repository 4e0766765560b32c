"""A device that may be pulled and come back: when it is looked for again, and what the status says meanwhile.

- What is not there is looked for twice a second, which costs nothing. What is there and does not open, or brings
  nothing, is left alone for a while that doubles up to ``MOST_S``: each try may wake hardware up.
- Every change is told once, as a reason (why it brings nothing; empty while it does) and a note (what it lost so far).
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from edged.backoff import Backoff

log = logging.getLogger(__name__)

RETRY_S = 0.5  # between two looks at a device that is away
MOST_S = 8.0  # between two tries at one that does not work
AWAY = (errno.ENOENT, errno.ENODEV, errno.ENXIO)

# Why there are no frames (or nothing), what was lost so far in words, and that as counts.
Tell = Callable[[str, str, Mapping[str, int]], None]
Account = Callable[[], Mapping[str, int]]  # what was lost, by what it is called


class Returning:
    """The device at ``path``, which the source ``source`` reads. ``about`` is what its note begins with."""

    def __init__(self, source: str, path: Path, tell: Tell, account: Account) -> None:
        self.about = ""
        self._source = source
        self._path = path
        self._tell = tell
        self._account = account
        self._returns = 0
        self._has_brought = self._was_lost = False
        self._told: tuple[str, str] | None = None

    async def hold(self, session: Callable[[], Awaitable[None]]) -> None:
        """Run ``session`` again and again, until cancelled.

        It opens the device and reads until that is gone: then it returns, having said why, or raises OSError.
        """
        backoff = Backoff(lambda: 1.0, RETRY_S, MOST_S)
        while True:
            self._has_brought, is_away = False, False
            try:
                await session()
            except OSError as error:
                is_away = error.errno in AWAY
                self.say(_plain(error))
            self._was_lost |= self._has_brought
            if is_away or self._has_brought:
                backoff.reset()
            await asyncio.sleep(backoff.wait_s())

    def brought(self) -> None:
        """It brought something."""
        if self._was_lost:
            self._returns += 1
            log.info("device has returned", extra={"source": self._source, "path": str(self._path)})
        self._has_brought, self._was_lost = True, False

    def say(self, reason: str = "") -> None:
        """Tell the status, where something has changed: ``reason``, and what was lost."""
        lost = {**self._account(), "times away and back": self._returns}
        notes = [self.about, *(f"{what}: {count}" for what, count in lost.items() if count)]
        told = (reason and f"{self._path}: {reason}", ", ".join(note for note in notes if note))
        if told == self._told:
            return
        if reason and (self._told is None or told[0] != self._told[0]):
            log.warning("source brings nothing", extra={"source": self._source, "reason": told[0]})
        self._told = told
        self._tell(*told, lost)


def _plain(error: OSError) -> str:
    """What went wrong, in the system's own words."""
    return error.strerror or str(error)
