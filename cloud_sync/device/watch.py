"""Says when the buffer may have changed, so that a fresh row leaves at once and an idle device sleeps.

inotify tells that the daemon writes; the row can be seen only after the fsync that follows, which nothing announces. So
after a write the buffer is looked at in short steps for a while. Without inotify it is looked at regularly. Reads
nothing itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from pathlib import Path

IDLE_S = 1.0  # with inotify: only for what it can miss
BLIND_S = 0.05  # without
STEP_S = 0.002  # while a write is being made durable; growing, so that a write costs some twenty looks
HOT_S = 0.5  # every commit but that of a sick disk is durable by then

_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x2, 0x80, 0x100, 0x200
_READ_BYTES = 65536


class Watch:
    """Watches one directory, which may appear later. ``fileno`` is for a selector; None without inotify."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watching = False
        self._wrote_at = float("-inf")
        self._watch()

    def fileno(self) -> int | None:
        """To wait on; None where there is no inotify."""
        return self._fd if self._fd >= 0 else None

    def woke(self) -> None:
        """The descriptor is readable: something was written."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, _READ_BYTES)
        self._wrote_at = time.monotonic()

    def patience_s(self) -> float:
        """When to look at the buffer again even if nothing wakes us."""
        if not self._watching and not self._watch():
            return BLIND_S
        since_s = time.monotonic() - self._wrote_at
        return IDLE_S if since_s > HOT_S else max(STEP_S, since_s / 4)

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _watch(self) -> bool:
        mask = _IN_MODIFY | _IN_CREATE | _IN_DELETE | _IN_MOVED_TO
        added = self._fd >= 0 and self._libc.inotify_add_watch(self._fd, os.fsencode(self._directory), mask) >= 0
        self._watching = bool(added)
        return self._watching
