"""One worker process: spawned in a session of its own, listened to, and ended with everything that it started.

Runs no threads: the exit arrives through a pidfd and the noise (stdout and stderr) through a pipe, both read by the
event loop. Knows nothing of the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import edged
from edged.engines.wire import Exit

NOISE = 8192  # bytes of a worker's last words to keep: a Python traceback fits
CHUNK = 65536
HURRY_S = (
    0.1  # of grace for whoever is in a hurry: a worker that ends by itself is gone by then, and its cause is known
)
REAP_S = 5.0  # a killed process that is not gone by then hangs in a driver; it is left to the kernel
PRIVATE = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS)
FOREIGN = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # nobody sends them to himself
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # NumPy would start a thread for each core
QUIET = {"ORT_DISABLE_TELEMETRY": "1"}  # else ONNX Runtime 1.32 reports home, and keeps a file in the user's cache
# The worker runs this very copy of edged, whatever its interpreter has installed, and nothing else of our interpreter:
# putting our site-packages on its path would hand it our NumPy.
BOOT = """\
import sys, importlib.util as u
s = u.spec_from_file_location("edged", sys.argv[1], submodule_search_locations=[sys.argv[2]])
sys.modules["edged"] = m = u.module_from_spec(s)
s.loader.exec_module(m)
from edged.engines.worker.__main__ import main
sys.exit(main(sys.argv[3:]))
"""


def command(python: str, arguments: Sequence[str]) -> list[str]:
    """The command line of a worker on an interpreter; empty: the daemon's own."""
    init = Path(edged.__file__)
    return [python or sys.executable, "-I", "-c", BOOT, str(init), str(init.parent), *arguments]


class WorkerProcess:
    """A running worker. ``exited`` is done, and ``on_exit`` called, once it has ended by itself or was killed."""

    def __init__(self, arguments: Sequence[str], fd: int, on_exit: Callable[[], None]) -> None:
        """Start it with ``fd`` inherited. Raises OSError when the interpreter cannot be started."""
        environment = {name: value for name, value in os.environ.items() if name not in PRIVATE}
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[fd],
            cwd="/",  # a daemon's working directory must not become importable, nor be kept busy
            env={**environment, **ONE_THREAD, **QUIET},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[None] = self._loop.create_future()
        self._noise = bytearray()
        self._killed = False
        self._pipe = self._process.stdout.fileno()
        os.set_blocking(self._pipe, False)
        self._pidfd = self._open_pidfd()
        self._loop.add_reader(self._pipe, self._listen)
        self._loop.add_reader(self._pidfd, self._reap)

    async def end(self, grace_s: float = 0.0) -> None:
        """Wait for the exit, then kill its whole group and reap it. Safe to call twice.

        Whoever cancels this shortens the grace, not the reaping: it ends as cancelled once the process is gone.
        """
        now_s = self._loop.time()
        cancelled = await self._exits(now_s + grace_s)
        if cancelled is not None:
            await self._exits(min(now_s + grace_s, self._loop.time() + HURRY_S))
        self._kill_group()
        until_s = self._loop.time() + REAP_S
        while not self.exited.done() and self._loop.time() < until_s:
            cancelled = await self._exits(until_s) or cancelled
        if cancelled is not None:
            raise cancelled

    async def _exits(self, until_s: float) -> asyncio.CancelledError | None:
        """Wait for the exit until then (the loop's time), or until cancelled: returns with what."""
        try:
            await asyncio.wait([self.exited], timeout=max(0.0, until_s - self._loop.time()))
        except asyncio.CancelledError as cancelled:
            return cancelled
        return None

    def ending(self) -> str:
        """How it ended by itself; empty if it was ended from here."""
        code = self._process.returncode
        if code is None:
            return "cannot be killed"
        if self._killed:
            return ""
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        named = f" ({Exit(code).name})" if code in list(Exit) else ""
        return f"exited with code {code}{named}"

    @property
    def faulted(self) -> bool:
        """Whether it was ended by a fault of its own code (or of its engine's)."""
        return -(self._process.returncode or 0) in FAULTS

    @property
    def killed_by_others(self) -> bool:
        """Whether somebody else ended it: a person, systemd, the kernel for want of memory."""
        return not self._killed and -(self._process.returncode or 0) in FOREIGN

    @property
    def said(self) -> str:
        """The end of what it wrote to stdout and stderr."""
        return self._noise.decode("utf-8", "replace").strip()

    def memory_bytes(self) -> int:
        """Memory that the worker and all that it started hold now; 0 when it is gone.

        Of a family the proportional set size counts: forks share most of their pages (proc(5), smaps_rollup).
        """
        family = _family(self.pid)
        if len(family) > 1:
            return sum(map(_proportional_bytes, family))
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def _open_pidfd(self) -> int:
        try:
            return os.pidfd_open(self.pid)
        except OSError:
            with self._process:
                self._process.kill()
            raise

    def _kill_group(self) -> None:
        if not self.exited.done():  # until it is reaped, its number belongs to nobody else
            self._killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _reap(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # children that it left behind
        self._process.wait()
        self._listen()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._close_pipe()
        self.exited.set_result(None)
        self._on_exit()

    def _listen(self) -> None:
        try:
            chunk = os.read(self._pipe, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._close_pipe()
            return
        self._noise += chunk
        del self._noise[:-NOISE]

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            self._loop.remove_reader(self._pipe)
            self._pipe = -1
            assert self._process.stdout is not None
            self._process.stdout.close()


def _family(pid: int) -> list[int]:
    """A process and its living descendants."""
    family = [pid]
    for one in family:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                with contextlib.suppress(OSError):
                    family += map(int, (task / "children").read_text().split())
    return family


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
