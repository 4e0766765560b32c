"""Says when the buffer has changed, so that a fresh row leaves at once and an idle device sleeps.

inotify tells that the daemon writes. The row can be seen only after the fsync that follows, which nothing announces;
but SQLite then moves the header of its WAL index, the first bytes of the ``-shm`` file beside each database. So after
a write those bytes are compared in short steps for a while, which costs microseconds where a query costs hundreds.
Whatever this misses is found by the regular look. Opening a ``-shm`` file here would drop SQLite's locks on it if this
process had the database open: nobody may hold a connection across calls. Reads no database itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from pathlib import Path

IDLE_S = 1.0  # with inotify: only for what it can miss
BLIND_S = 0.05  # without
STEP_S = 0.001  # while a write is being made durable; growing, so that a write costs some thirty comparisons
HOT_S = 0.5  # every commit but that of a sick disk is durable by then

HEADER_BYTES = 48  # sqlite.org/walformat.html, 2.1: the header changes with every commit
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
        self._headers: dict[str, bytes] = {}
        self._watch()

    def fileno(self) -> int | None:
        """To wait on; None where there is no inotify."""
        return self._fd if self._fd >= 0 else None

    def woke(self) -> None:
        """The descriptor is readable: something was written."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, _READ_BYTES)
        self._wrote_at = time.monotonic()

    def changed(self) -> bool:
        """Whether a commit has become visible since the last call. Cheap; False while nothing is being written."""
        if time.monotonic() - self._wrote_at > HOT_S:
            return False
        before, self._headers = self._headers, self._read_headers()
        return before != self._headers

    def regular_s(self) -> float:
        """How often to look at the buffer without being told."""
        return IDLE_S if self._watching or self._watch() else BLIND_S

    def patience_s(self) -> float:
        """When to ask ``changed`` again."""
        since_s = time.monotonic() - self._wrote_at
        return IDLE_S if since_s > HOT_S else max(STEP_S, since_s / 4)

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_headers(self) -> dict[str, bytes]:
        headers = {}
        with contextlib.suppress(OSError), os.scandir(self._directory) as found:
            for item in found:
                if item.name.endswith("-shm"):
                    headers[item.name] = _head(item.path)
        return headers

    def _watch(self) -> bool:
        mask = _IN_MODIFY | _IN_CREATE | _IN_DELETE | _IN_MOVED_TO
        added = self._fd >= 0 and self._libc.inotify_add_watch(self._fd, os.fsencode(self._directory), mask) >= 0
        self._watching = bool(added)
        return self._watching


def _head(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, HEADER_BYTES)
    except OSError:
        return b""
    finally:
        os.close(fd)
