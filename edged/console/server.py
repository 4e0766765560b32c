"""The listening side of the console: sockets, and uvicorn kept inside somebody else's event loop.

Rules: signal handlers stay as they are; a stop is one cancellation, ends within ``GRACE_S + LAST_WORDS_S`` and half a
second of uvicorn's own ticks, and lets answers in flight out. Knows nothing of routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from edged import unix_socket
from edged.errors import ConfigError

SOCKET = "http.sock"
SOCKET_MODE = 0o660
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # who listens there listens on the loopback too
CONNECTIONS = 128  # one device's own clients; beyond it uvicorn answers 503, so that files and memory stay bounded
HEADERS_BYTES = 16 * 1024  # of one request; a browser on loopback sends about 1 KiB
IDLE_S = 5  # seconds that a quiet connection stays open
GRACE_S = 0.4  # for answers that are nearly there; a commit takes milliseconds
LAST_WORDS_S = 0.2  # for the refusals of those that were not


def open_socket(host: str, port: int) -> socket.socket:
    """Listen on a loopback address. Port 0 takes a free one. Raises ConfigError naming the port and what to do."""
    hint = "set another one under [http] in the configuration; port = 0 takes a free one"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"cannot resolve the console's host {host!r}: {error.strerror}", "set http.host") from None
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(CONNECTIONS)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            hint = f"stop the program that holds it (ss -ltnp 'sport = :{port}' shows it), or {hint}"
            raise ConfigError(f"port {port} on {host} is taken by another program", hint) from None
        reason = os.strerror(error.errno or 0)
        raise ConfigError(f"cannot listen on {host}, port {port}: {reason}", hint) from None
    listener.setblocking(False)
    return listener


def local_address(sockets: Sequence[socket.socket]) -> tuple[str, int]:
    """Host and port at which this device itself reaches the console that listens on these TCP sockets."""
    addresses = [listener.getsockname()[:2] for listener in sockets]
    host, port = next((found for found in addresses if ipaddress.ip_address(found[0]).is_loopback), addresses[0])
    return EVERYWHERE.get(host, host), port


def open_unix_socket(directory: Path) -> socket.socket:
    """Listen in ``directory`` for processes of the daemon's user and group. Raises ConfigError."""
    try:
        listener = unix_socket.listen(directory / SOCKET, SOCKET_MODE, CONNECTIONS)
    except OSError as error:
        hint = "the daemon must be able to write device.runtime_dir"
        raise ConfigError(f"cannot listen at {directory / SOCKET}: {error.strerror}", hint) from None
    listener.setblocking(False)
    return listener


async def serve(app: ASGIApp, sockets: Sequence[socket.socket], started: Callable[[], None] | None) -> None:
    """Answer on the sockets until cancelled, then stop within a second. Closes the sockets.

    A request that is still unanswered at the end is cancelled; ``app`` may use that to answer that it stops.
    """
    server = _Server(app, started)
    task = asyncio.create_task(server.serve(sockets=list(sockets)), name="console:http")
    try:
        await asyncio.shield(task)
    finally:
        await _stop(server, task)


async def _stop(server: _Server, task: asyncio.Task[None]) -> None:
    server.should_exit = True
    await asyncio.wait({task}, timeout=GRACE_S)
    for request in list(server.server_state.tasks):
        request.cancel()
    await asyncio.wait({task}, timeout=LAST_WORDS_S)
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    await task


class _Server(uvicorn.Server):
    """uvicorn without its process-wide habits: no signal handlers, no logging set-up, no lifespan, no WebSockets."""

    def __init__(self, app: ASGIApp, started: Callable[[], None] | None) -> None:
        # Any: uvicorn and Starlette each declare the same ASGI types for themselves.
        bridged: Any = app
        super().__init__(
            uvicorn.Config(
                bridged,
                http="h11",
                ws="none",
                loop="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=CONNECTIONS,
                timeout_keep_alive=IDLE_S,
                h11_max_incomplete_event_size=HEADERS_BYTES,
            )
        )
        self._tell = started

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the daemon's signal handlers alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, then tell."""
        await super().startup(sockets)
        if self._tell is not None:
            self._tell()
