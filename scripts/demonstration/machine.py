"""The processes of the demo, their ports and their files: started in order, stopped in reverse, nothing left behind.

Each process gets a session of its own, so that Ctrl-C reaches the demo alone, which then stops them one by one; should
the demo be killed, the kernel tells them. Ports are the usual ones where they are free. Does not restart anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

LOCALHOST = "127.0.0.1"
STOP_S = 10.0  # the daemon commits what is under way before it ends; this is far more than it needs
LOG_TAIL_LINES = 15
QUIET = {"ORT_DISABLE_TELEMETRY": "1"}  # ONNX Runtime 1.32 reports home from Linux too unless it is told not to

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1  # linux/sockios.h, linux/if.h
_IFREQ_FLAGS = "16sH22x"  # struct ifreq with its flags
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Machine:
    """The processes of one demo, whose files lie in ``place``.

    Use as a context manager: leaving stops them all, the last one first. ``interrupted`` is asked while it waits, and
    raises when the wait is to end.
    """

    def __init__(self, place: Path, interrupted: Callable[[], None]) -> None:
        self._place = place
        self._interrupted = interrupted
        self._logs = place / "logs"
        self._logs.mkdir()
        self._children: list[_Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._children:
            _stop(self._children.pop())

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a process; what it says goes to a log file."""
        log = self._logs / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **QUIET, "TMPDIR": str(self._place)},
                start_new_session=True,
                preexec_fn=_die_with_the_demo,  # safe: the demo has no threads
            )
        self._children.append(_Child(name, process, log))

    def check(self) -> None:
        """Raise DemoError with the end of its log when a process has ended."""
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                tail = child.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
                raise DemoError("\n  ".join([f"{child.name} ended with code {code}:", *tail]))

    def wait_for(self, what: str, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until ``ready``. Raises DemoError when a process ends meanwhile or the time is over."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            self._interrupted()
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"{what} is not ready after {timeout_s:.0f} s; see {self._logs}")
            time.sleep(0.02)


def _die_with_the_demo() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(child: _Child) -> None:
    child.process.terminate()
    try:
        child.process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()


def program(name: str) -> str:
    """The path of a program of the distribution. Raises DemoError."""
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    if path is None:
        raise DemoError(f"{name} is not installed: run scripts/demo --setup-only, or install it by hand")
    return path


def choose_port(preferred: int) -> int:
    """``preferred`` where it is free, else a free port."""
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just left is free
            with contextlib.suppress(OSError):
                probe.bind((LOCALHOST, port))
                return int(probe.getsockname()[1])
    raise DemoError(f"no port is free on {LOCALHOST}")


def listens(port: int) -> bool:
    """Whether somebody accepts connections on a port."""
    with contextlib.suppress(OSError), socket.create_connection((LOCALHOST, port), timeout=1):
        return True
    return False


def bring_up_loopback() -> None:
    """Bring the loopback interface up: in a fresh network namespace it is down. Raises DemoError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack(_IFREQ_FLAGS, b"lo", 0))
        flags = struct.unpack(_IFREQ_FLAGS, answer)[1]
        if flags & _IFF_UP:
            return
        try:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack(_IFREQ_FLAGS, b"lo", flags | _IFF_UP))
        except PermissionError:
            raise DemoError("the loopback interface is down; as root: ip link set lo up") from None


def write_broker_config(path: Path, port: int) -> None:
    """The configuration of a broker for this machine alone: nothing kept, nobody asked for a password."""
    user = pwd.getpwuid(os.geteuid()).pw_name  # started as root it would become another user, who cannot read this
    path.write_text(
        f"listener {port} {LOCALHOST}\n"
        f"user {user}\n"
        "allow_anonymous true\n"
        "persistence false\n"
        "max_queued_messages 0\n"  # no limit: what the demo counts must not be shed by its broker
        "log_dest stdout\n"
    )
