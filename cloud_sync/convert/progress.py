"""Says how far a long loop has got: in whole lines, which a log can keep, and one every few seconds at most."""

from __future__ import annotations

import time
from collections.abc import Callable

Say = Callable[[str], None]

_EVERY_S = 3.0  # often enough to show that it lives, seldom enough to be read


def silent(_: str) -> None:
    """Says nothing."""


class Progress:
    """One loop over ``total`` things; ``clock`` counts seconds."""

    def __init__(self, say: Say, what: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._what, self._total, self._clock = say, what, total, clock
        self._began = self._said = clock()

    def at(self, done: int) -> None:
        """Tell that ``done`` of them are through."""
        now = self._clock()
        if done >= self._total or now - self._said < _EVERY_S:
            return
        self._said = now
        left_s = (now - self._began) * (self._total - done) / max(done, 1)
        self._say(f"  {self._what}: {done:,} of {self._total:,}, about {left_s:.0f} s left")
