"""How long to wait before the next attempt: longer each time, never for ever, never all devices at once. Pure."""

from __future__ import annotations

from collections.abc import Callable

FIRST_S = 0.5
MOST_S = 30.0


class Backoff:
    """Waits that double from ``FIRST_S`` to ``MOST_S``, each times ``jitter()``, a number between 0.5 and 1."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._next_s = FIRST_S

    def wait_s(self) -> float:
        """How long to wait now."""
        wait_s, self._next_s = self._next_s * self._jitter(), min(2 * self._next_s, MOST_S)
        return wait_s

    def reset(self) -> None:
        """It worked: begin with short waits again."""
        self._next_s = FIRST_S
