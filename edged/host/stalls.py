"""Wakes the daemon as soon as the kernel sees a stall: a trigger of pressure stall information, by epoll.

A trigger is a line written to a pressure file; the open file then has something urgent to tell (POLLPRI) at most once a
window. Without the privilege CAP_SYS_RESOURCE the window must be a multiple of two seconds (Linux 6.4; before, nobody
else may). Where no trigger can be had, the regular look has to do. Source: Documentation/accounting/psi.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterable
from pathlib import Path

WINDOW_US = 2_000_000  # the shortest that an unprivileged process may have


class StallTriggers:
    """Triggers on pressure files. ``fileno`` becomes readable when one of them stalled long enough; close it once."""

    def __init__(self, paths: Iterable[Path], percent: float) -> None:
        """``percent`` of the window that somebody stalled. Files that allow no trigger are left out."""
        self._epoll = select.epoll()
        self._files: list[int] = []
        stall_us = int(WINDOW_US * percent / 100)
        for path in paths if stall_us else ():
            with contextlib.suppress(OSError):
                self._add(path, f"some {stall_us} {WINDOW_US}\0".encode())

    def __len__(self) -> int:
        """How many there are."""
        return len(self._files)

    def fileno(self) -> int:
        """To be waited for."""
        return self._epoll.fileno()

    def take(self) -> None:
        """What they told is taken; they may tell again."""
        self._epoll.poll(0)

    def close(self) -> None:
        """Give them back to the kernel."""
        self._epoll.close()
        for file in self._files:
            os.close(file)
        self._files.clear()

    def _add(self, path: Path, trigger: bytes) -> None:
        file = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(file, trigger)
            self._epoll.register(file, select.EPOLLPRI)
        except OSError:
            os.close(file)
            raise
        self._files.append(file)
