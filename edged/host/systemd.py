"""What systemd gives a service: notifications, the watchdog, sockets that it listened on for us.

Rules: without systemd (no NOTIFY_SOCKET, no LISTEN_FDS) everything here is silent and the daemon runs as well. The
environment variables are taken out of the environment, so that no worker inherits them. Standard library only: the
protocols are a datagram and a range of descriptors (sd_notify(3), sd_listen_fds(3)), and a package with a compiled part
would have to exist for every Python and processor. Decides nothing: the predicate of the watchdog is the caller's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

log = logging.getLogger(__name__)

BEATS = 2  # a watchdog wants a sign at least every WATCHDOG_USEC; twice as often survives one late wake-up
FIRST_FD = 3  # SD_LISTEN_FDS_START
UNNAMED = "unknown"  # what sd_listen_fds_with_names(3) calls a socket without a name
SEND_S = 1.0  # systemd that is too busy for a datagram does not stop the daemon


class Notifier:
    """Tells systemd how the service fares. Reads its environment once, when it is made, and clears it."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        self._watchdog_s = _watchdog_s()

    @property
    def watchdog_s(self) -> float | None:
        """Seconds within which systemd wants a sign of progress; None when it watches nothing."""
        return self._watchdog_s if self._address else None

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
        if not self._address:
            return
        one_line = " ".join(status.split())
        message = "\n".join(part for part in (state, f"STATUS={one_line}" if one_line else "") if part)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(SEND_S)
                sock.sendto(message.encode(), _unix_address(self._address))
        except OSError as error:
            log.warning("systemd could not be told: %s", error, extra={"told": state or "STATUS"})


def listen_sockets() -> dict[str, list[socket.socket]]:
    """The sockets that systemd listened on for us, by FileDescriptorName; empty without socket activation.

    Takes them once: the variables are cleared, so a second call and every child see none.
    """
    pid, count, names = (os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    sockets: dict[str, list[socket.socket]] = {}
    if pid != str(os.getpid()) or not count.isdecimal():
        return sockets
    named = names.split(":") if names else []
    for index in range(int(count)):
        handed = socket.socket(fileno=FIRST_FD + index)
        handed.set_inheritable(False)
        handed.setblocking(False)
        sockets.setdefault(named[index] if index < len(named) else UNNAMED, []).append(handed)
    return sockets


def _unix_address(address: str) -> str:
    """As bind(2) wants it: a leading @ stands for the abstract namespace."""
    return "\0" + address[1:] if address.startswith("@") else address


def _watchdog_s() -> float | None:
    """WATCHDOG_USEC in seconds, when it is meant for this process (sd_watchdog_enabled(3))."""
    usec, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6
