"""A worker that systemd hosts, as the daemon sees it: asked for over a socket, watched and ended through the same.

Behind the socket of ``edged-worker-ENGINE.socket`` each connection gets a unit of its own, in which an attendant
(``edged.engines.attendant``) starts the worker. The worker's end of the wire travels in the request, so that the wire
is the same as with a worker that the daemon starts itself. Closing our side ends the unit with everything in it; the
end of the other side says that nothing of it is left. Knows nothing of the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from edged.engines.process import REAP_S

PACKET = 1 << 16  # a report holds the end of what a worker wrote, 8 KiB
LEFT = "was ended with its unit (see journalctl --identifier=edged-worker)"


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon sends, once, with the worker's end of the wire beside it."""

    engine: str


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker ended, in the words of ``edged.engines.process``."""

    how: str
    faulted: bool = False
    killed_by_others: bool = False
    said: str = ""


class News(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the attendant tells: which process it is, what it holds, and at last how it ended."""

    pid: int = 0
    memory_bytes: int = 0
    ending: Ending | None = None


class HostedWorker:
    """The same to its owner as ``WorkerProcess``. ``exited`` is done once its unit is gone."""

    def __init__(self, place: Path, engine: str, fd: int, on_exit: Callable[[], None]) -> None:
        """Ask for a worker that has ``fd``. Raises OSError when nobody listens at ``place``."""
        self.pid = 0  # until the attendant has told it
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[None] = self._loop.create_future()
        self._on_exit = on_exit
        self._memory_bytes = 0
        self._ending: Ending | None = None
        self._told_to_end = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.setblocking(False)
            self._socket.connect(str(place))
            socket.send_fds(self._socket, [msgspec.json.encode(Request(engine=engine))], [fd])
        except OSError:
            self._socket.close()
            raise
        self._loop.add_reader(self._socket.fileno(), self._hear)

    async def end(self, grace_s: float = 0.0) -> None:
        """Wait for the exit, then have its whole unit ended and wait for that. Safe to call twice.

        Whoever cancels this takes the grace away, not the order to end: systemd carries it out in any case.
        """
        try:
            await asyncio.wait([self.exited], timeout=grace_s)
        finally:
            self._hang_up()
        await asyncio.wait([self.exited], timeout=REAP_S)

    def ending(self) -> str:
        """How it ended by itself; empty if it was ended from here."""
        if not self.exited.done():
            return f"cannot be killed: its unit is still there after {REAP_S:g} s"
        if self._told_to_end:
            return ""
        return self._ending.how if self._ending is not None else LEFT

    @property
    def faulted(self) -> bool:
        """Whether it was ended by a fault of its own code (or of its engine's)."""
        return self._ending is not None and self._ending.faulted

    @property
    def killed_by_others(self) -> bool:
        """Whether somebody else ended it: a person, systemd, the kernel for want of memory."""
        return not self._told_to_end and (self._ending is None or self._ending.killed_by_others)

    @property
    def said(self) -> str:
        """The end of what it wrote to stdout and stderr."""
        return self._ending.said if self._ending is not None else ""

    def memory_bytes(self) -> int:
        """Memory that the worker and all that it started held at the last report; 0 when it is gone."""
        return 0 if self.exited.done() else self._memory_bytes

    def _hang_up(self) -> None:
        if not self.exited.done():
            self._told_to_end = self._ending is None
            with contextlib.suppress(OSError):  # the other side is gone, and its end not yet heard
                self._socket.shutdown(socket.SHUT_WR)

    def _hear(self) -> None:
        try:
            packet = self._socket.recv(PACKET)
            news = msgspec.json.decode(packet, type=News) if packet else None
        except BlockingIOError:
            return
        except (OSError, msgspec.DecodeError):
            news = None
        if news is None:
            self._over()
            return
        self.pid = news.pid or self.pid
        self._memory_bytes = news.memory_bytes or self._memory_bytes
        self._ending = news.ending or self._ending

    def _over(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if not self.exited.done():
            self.exited.set_result(None)
        self._on_exit()
