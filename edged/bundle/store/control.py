"""Where commands reach the daemon: one request and one answer a connection, on a Unix socket.

Only root and the daemon's own user are heard (the kernel says who it is: SO_PEERCRED, unix(7)); the group is not
enough, because edged-sync is in it. Not over the console: a TCP port cannot tell one local process from another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec

from edged import unix_socket
from edged.bundle.store.requests import Answer, Done, Refusal, Request
from edged.errors import EdgedError

log = logging.getLogger(__name__)

SOCKET = "control.sock"
BACKLOG = 8  # a person, or a script of his, asks one thing at a time
REQUEST_BYTES = 64 << 10
ANSWER_BYTES = 64 << 10
HEARING_S = 10.0  # to say what one wants
ANSWER_S = 600.0  # the largest bundle allowed is unpacked, hashed and written within that on a slow card


async def serve(directory: Path, perform: Callable[[Request], Done]) -> None:
    """Answer requests until cancelled. ``perform`` may block; it runs in a thread."""
    listener = unix_socket.listen(directory / SOCKET, 0o600, BACKLOG)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(HEARING_S):
                data = await _heard(reader)
            writer.write(msgspec.json.encode(await _answered(_uid(writer), data, perform)))
            await writer.drain()
        writer.close()

    try:
        async with await asyncio.start_unix_server(answer, sock=listener) as server:
            await server.serve_forever()
    finally:
        (directory / SOCKET).unlink(missing_ok=True)


def ask(directory: Path, request: Request) -> Answer | None:
    """Ask the daemon; None when there is none. Raises EdgedError when it does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(ANSWER_S)
        try:
            unix_socket.connect(client, directory / SOCKET)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            hint = "run it as root or as the daemon's user"
            raise EdgedError(f"the daemon cannot be reached: {error.strerror}", hint) from None
        try:
            client.sendall(msgspec.json.encode(request))
            client.shutdown(socket.SHUT_WR)
            data = b"".join(iter(lambda: client.recv(ANSWER_BYTES), b""))
            return cast("Answer", msgspec.json.decode(data, type=Answer))
        except (OSError, msgspec.DecodeError) as error:
            hint = "edged model list shows what was done"
            raise EdgedError(f"the daemon ended without an answer: {error}", hint) from None


async def _heard(reader: asyncio.StreamReader) -> bytes:
    data = b""
    while len(data) <= REQUEST_BYTES and (chunk := await reader.read(REQUEST_BYTES)):
        data += chunk
    return data


async def _answered(uid: int, data: bytes, perform: Callable[[Request], Done]) -> Answer:
    if uid not in (0, os.geteuid()):
        return Refusal(f"user {uid} may not change models", "run it as root or as the daemon's user")
    try:
        request = msgspec.json.decode(data, type=Request)
    except msgspec.DecodeError as error:
        return Refusal(f"this is no request: {error}", "the daemon and the command are of different versions")
    try:
        done = await asyncio.to_thread(perform, request)
    except EdgedError as error:
        log.warning("command refused", extra={"command": str(request), "reason": str(error)})
        return Refusal(error.message, error.hint)
    log.info("command done", extra={"command": str(request), "outcome": done.message})
    return done


def _uid(writer: asyncio.StreamWriter) -> int:
    credentials = struct.Struct("3i")  # pid, uid, gid
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    uid: int = credentials.unpack(raw)[1]
    return uid
