"""Tells when something changes in a directory: one inotify descriptor for the event loop, through ctypes.

Only a hint to look: it carries no names and may be absent (network file systems, exhausted watches), so its user also
looks now and then by itself. Source: inotify(7).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

IN_CLOSE_WRITE = 0x00000008
IN_MOVED_TO = 0x00000080


@contextlib.contextmanager
def watching(directory: Path, on_change: Callable[[], None]) -> Iterator[bool]:
    """Call ``on_change`` in the running loop when a file was written or moved in. Yields whether the kernel watches."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        yield False
        return
    loop = asyncio.get_running_loop()

    def drain() -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(fd, 65536)
        on_change()

    try:
        watched = libc.inotify_add_watch(fd, os.fsencode(directory), IN_CLOSE_WRITE | IN_MOVED_TO) >= 0
        loop.add_reader(fd, drain)
        yield watched
    finally:
        loop.remove_reader(fd)
        os.close(fd)
