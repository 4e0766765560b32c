"""An engine for tests that does what it is told: echoes its input, or fails in a chosen way. Python 3.8, stdlib only.

``x`` (B, 8) float32 → ``readout`` (B, 3): the first three values of each row. A first value of the table ``ACTS`` makes
it act instead; a bundle directory that ends in ``load-ACT`` makes it act while it loads.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable

from edged.engines.layout import Role
from edged.engines.wire import DONE, HEADER, MAGIC, Kind, Load
from edged.engines.worker.engine import FrameFailed, ModelRefused

LEAK = 256 << 20
GROW = 2 << 20
HOARD: list[object] = []  # what it leaks


def _segfault() -> None:
    ctypes.string_at(0)


def _garbage() -> None:
    _on_socket(b"\x00" * 40)


def _lie() -> None:
    """Answer a call that was never made."""
    _on_socket(HEADER.pack(MAGIC, 1, Kind.DONE, 4242, DONE.size) + DONE.pack(1))


def _flood() -> None:
    """Answer more than was asked."""
    for _ in range(3):
        _on_socket(HEADER.pack(MAGIC, 1, Kind.DONE, 1, DONE.size) + DONE.pack(1))


def _on_socket(packet: bytes) -> None:
    for fd in range(3, 32):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, packet)


def _children() -> None:
    """Start a child that holds stdout open."""
    HOARD.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))


def _family() -> None:
    """Leave a child behind, and die."""
    _children()
    os._exit(9)


def _leak(size: int = LEAK) -> None:
    held = bytearray(size)
    held[::4096] = b"\x01" * (size // 4096)  # each page is really there, and nothing more meanwhile
    HOARD.append(held)


def _noise() -> None:
    print("noise on stdout " * 1000, flush=True)
    print("the end of the noise", file=sys.stderr, flush=True)


def _frame() -> None:
    raise FrameFailed("this frame cannot be computed")


def _engine() -> None:
    raise RuntimeError("the device fell off the bus")


def _refuse() -> None:
    raise ModelRefused("node mul_3: a product of two tensors is not a synapse")


ACTS: dict[float, tuple[str, Callable[[], None]]] = {
    1001.0: ("segfault", _segfault),
    1002.0: ("exit", lambda: os._exit(9)),
    1003.0: ("hang", lambda: time.sleep(600)),
    1004.0: ("stop", lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    1005.0: ("garbage", _garbage),
    1006.0: ("lie", _lie),
    1007.0: ("flood", _flood),
    1008.0: ("family", _family),
    1009.0: ("leak", _leak),
    1010.0: ("noise", _noise),
    1011.0: ("frame", _frame),
    1012.0: ("engine", _engine),
    1013.0: ("children", _children),
    1014.0: ("refuse", _refuse),
    1015.0: ("grow", lambda: _leak(GROW)),
}


def marker(act: str) -> float:
    """The value that makes the engine act."""
    return next(value for value, (name, _) in ACTS.items() if name == act)


class Engine:
    """Loads nothing."""

    version = "1.0"

    def load(self, load: Load, memory: mmap.mmap, progress: Callable[[str], None]) -> Echo:
        """Act if the bundle's name says so."""
        progress("pretending to load")
        for name, act in ACTS.values():
            if load.bundle_dir.endswith(f"load-{name}"):
                act()
        return Echo(load, memory)


class Echo:
    """Echoes."""

    plan = "echo"

    def __init__(self, load: Load, memory: mmap.mmap) -> None:
        self.timings: dict[str, float] = {"load_s": 0.0}
        self._memory = memory
        self._layout = load.layout

    def infer(self, slot: int, batch: int) -> None:
        """The first three values of each row, unless the first is an act."""
        source, target = (self._start(slot, role) for role in (Role.INPUT, Role.READOUT))
        for row in range(batch):
            values = struct.unpack_from("<8f", self._memory, source + 32 * row)
            if values[0] in ACTS:
                ACTS[values[0]][1]()
            struct.pack_into("<3f", self._memory, target + 12 * row, *values[:3])

    def step(self, slot: int, batch: int) -> None:
        """Not told how."""
        raise FrameFailed("this engine does not step")

    def _start(self, slot: int, role: Role) -> int:
        return slot * self._layout.slot_bytes + self._layout.role(role)[0].offset
