"""What the clocks say and how far the wall clock is to be believed.

``synchronized``: the kernel says that somebody disciplines the clock. ``unsynchronized``: nobody does. ``floor``: it is
behind a time that has passed already, so it only orders nothing. The order of rows never depends on it.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from pathlib import Path

_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES = 256  # struct timex takes 208 bytes on 64-bit Linux; modes = 0 at its start asks and changes nothing


def boottime_ns() -> int:
    """CLOCK_BOOTTIME: counts through suspend, starts anew with every boot."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Identity of this boot; "" where the kernel does not tell."""
    return _first_line(Path("/proc/sys/kernel/random/boot_id"))


def machine_id() -> str:
    """Identity of this installation; "" where there is none. A cloned card with a new one begins a new epoch."""
    return _first_line(Path("/etc/machine-id"))


def clock_quality(wall_ns: int, floor_ns: int) -> str:
    """How far ``wall_ns`` is to be believed: floor, synchronized, unsynchronized or unknown."""
    if wall_ns < floor_ns:
        return "floor"
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return "unknown"
    if state < 0:
        return "unknown"
    return "unsynchronized" if state == _TIME_ERROR else "synchronized"


def _first_line(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").strip()
    return ""
