"""What systemd gives a service: notifications, the watchdog, sockets that it listened on for us.

Rules: without systemd (no NOTIFY_SOCKET, no LISTEN_FDS) or without systemd-python everything here is silent and the
daemon runs as well. The environment variables are taken out of the environment, so that no worker inherits them.
Decides nothing: the predicate of the watchdog is the daemon's.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import socket
from collections.abc import Callable
from types import ModuleType

log = logging.getLogger(__name__)

BEATS = 2  # a watchdog wants a sign at least every WATCHDOG_USEC; twice as often survives one late wake-up
_LISTEN_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class Notifier:
    """Tells systemd how the service fares. Reads its environment once, when it is made, and clears it."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        self._watchdog_s = _watchdog_s()
        self._daemon = _import_daemon() if self._address else None

    @property
    def watchdog_s(self) -> float | None:
        """Seconds within which systemd wants a sign of progress; None when it watches nothing."""
        return self._watchdog_s if self._daemon is not None else None

    def ready(self, status: str = "") -> None:
        """Everything is loaded; work begins."""
        self._send("READY=1", status)

    def status(self, status: str) -> None:
        """One line for ``systemctl status``."""
        self._send("", status)

    def stopping(self, status: str = "") -> None:
        """The stop has begun."""
        self._send("STOPPING=1", status)

    def alive(self) -> None:
        """Work makes progress."""
        self._send("WATCHDOG=1", "")

    async def watch(self, progress: Callable[[], bool]) -> None:
        """Give the sign of life as often as systemd wants it, while ``progress()`` holds, until cancelled.

        Returns at once where systemd watches nothing. ``progress`` must mean "no pending work past its deadline": an
        idle pipeline and a long build make progress too.
        """
        if self.watchdog_s is None:
            return
        held = True
        while True:
            holds = progress()
            if holds:
                self.alive()
            elif held:
                log.error("work is past its deadline; the watchdog gets no sign until it moves again")
            held = holds
            await asyncio.sleep(self.watchdog_s / BEATS)

    def _send(self, state: str, status: str) -> None:
        if self._daemon is None:
            return
        one_line = " ".join(status.split())
        message = "\n".join(part for part in (state, f"STATUS={one_line}" if one_line else "") if part)
        # sd_notify reads its address from the environment; it is there only for the length of this call.
        os.environ["NOTIFY_SOCKET"] = self._address
        try:
            self._daemon.notify(message)
        except OSError as error:
            log.warning("systemd could not be told: %s", error, extra={"told": state or "STATUS"})
        finally:
            os.environ.pop("NOTIFY_SOCKET", None)


def listen_sockets() -> dict[str, list[socket.socket]]:
    """The sockets that systemd listened on for us, by FileDescriptorName; empty without socket activation.

    Takes them once: the variables are cleared, so a second call and every child see none.
    """
    names: dict[int, str] = {}
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and (daemon := _import_daemon()) is not None:
        names = daemon.listen_fds_with_names(unset_environment=True)
    for variable in _LISTEN_VARIABLES:
        os.environ.pop(variable, None)
    sockets: dict[str, list[socket.socket]] = {}
    for fd, name in names.items():
        handed = socket.socket(fileno=fd)
        handed.setblocking(False)
        sockets.setdefault(name, []).append(handed)
    return sockets


def _watchdog_s() -> float | None:
    """WATCHDOG_USEC in seconds, when it is meant for this process (sd_watchdog_enabled(3))."""
    usec, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6


def _import_daemon() -> ModuleType | None:
    try:
        return importlib.import_module("systemd.daemon")
    except ImportError:
        log.warning("systemd-python is not installed; systemd is told nothing (install edged[systemd])")
        return None
