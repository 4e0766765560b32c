"""How long to wait before the next attempt: longer each time, never for ever, never all devices at once. Pure."""

from __future__ import annotations

from collections.abc import Callable

FIRST_S = 0.5
MOST_S = 30.0


class Backoff:
    """Waits that double from ``first_s`` to ``most_s``, each times ``jitter()``, a number between 0.5 and 1."""

    def __init__(self, jitter: Callable[[], float], first_s: float = FIRST_S, most_s: float = MOST_S) -> None:
        self._jitter = jitter
        self._first_s = self._next_s = first_s
        self._most_s = most_s

    def wait_s(self) -> float:
        """How long to wait now."""
        wait_s, self._next_s = self._next_s * self._jitter(), min(2 * self._next_s, self._most_s)
        return wait_s

    def reset(self) -> None:
        """It worked: begin with short waits again."""
        self._next_s = self._first_s
