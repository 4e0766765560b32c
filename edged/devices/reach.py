"""Whether a board on Ethernet answers at its address, before a deadline. Needs the network, and nothing else.

- ``tcp``        something accepts a connection, which is closed at once; nothing is sent.
- ``spinnaker``  the board's monitor tells its version: the request CMD_VER of the SpiNNaker Command Protocol over UDP
  (Application Note 5), which every board answers and which changes nothing.

Decides nothing about the device.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Awaitable, Callable

from edged.devices.probe import Verdict

TRIES = 3  # of a datagram within the deadline: one may get lost
FORBIDDEN = (errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT)
HINT = "this process may not use the network; enable edged-boards.socket (docs/devices.md)"

# SDP (Application Note 4): two bytes of padding, flags, tag, destination and source port, destination and source chip.
SDP = struct.Struct("<2xBBBBHH")
REPLY_EXPECTED, NO_TAG, MONITOR, HOST, NEAREST_CHIP = 0x87, 0xFF, 0x00, 0xFF, 0xFFFF
# SCP: command or return code, sequence number, three arguments; of a version: chip, core, core, buffer, version, date.
SCP = struct.Struct("<HHIII")
VERSION = struct.Struct("<HBBHHI")
CMD_VER, RC_OK = 0, 0x80
VERSION_IN_TEXT = 0xFFFF  # the number is in the text that follows


async def reach(probe: str, address: str, port: int, deadline_s: float) -> Verdict:
    """Ask the board, by the probe that it is configured with."""
    try:
        async with asyncio.timeout(deadline_s):
            return Verdict(note=await PROBES[probe](address, port, deadline_s))
    except TimeoutError:
        return Verdict(f"no answer from {address} port {port} within {deadline_s:g} s")
    except OSError as error:
        if error.errno in FORBIDDEN:
            return Verdict(f"{address} port {port}: {os.strerror(error.errno or 0)}: {HINT}")
        return Verdict(f"{address} port {port}: {os.strerror(error.errno) if error.errno else error}")
    except ValueError as error:
        return Verdict(f"{address} port {port}: {error}")


async def _tcp(address: str, port: int, _: float) -> str:
    with _socket(address, socket.SOCK_STREAM) as connection:
        await asyncio.get_running_loop().sock_connect(connection, (address, port))
    return ""


async def _spinnaker(address: str, port: int, deadline_s: float) -> str:
    loop = asyncio.get_running_loop()
    with _socket(address, socket.SOCK_DGRAM) as connection:
        await loop.sock_connect(connection, (address, port))
        for number in range(1, TRIES + 1):
            await loop.sock_sendall(connection, _request(number))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline_s / TRIES):
                    return _version(await loop.sock_recv(connection, 1024))
    raise TimeoutError


def _request(number: int) -> bytes:
    header = SDP.pack(REPLY_EXPECTED, NO_TAG, MONITOR, HOST, NEAREST_CHIP, 0)
    return header + SCP.pack(CMD_VER, number, 0, 0, 0)


def _version(answer: bytes) -> str:
    """What a board says of itself, in words. Raises ValueError for anything else."""
    try:
        code, _ = struct.unpack_from("<HH", answer, SDP.size)
        version = VERSION.unpack_from(answer, SDP.size + 4)[4]
    except struct.error:
        raise ValueError("what answers is no SpiNNaker board") from None
    if code != RC_OK:
        raise ValueError(f"the board answers with the error {code:#x}")
    name, _, rest = answer[SDP.size + 4 + VERSION.size :].partition(b"\0")
    shown = rest.partition(b"\0")[0].decode("ascii", "replace") if version == VERSION_IN_TEXT else f"{version / 100:g}"
    return f"{name.decode('ascii', 'replace')} {shown}".strip()


def _socket(address: str, kind: int) -> socket.socket:
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


PROBES: dict[str, Callable[[str, int, float], Awaitable[str]]] = {"tcp": _tcp, "spinnaker": _spinnaker}
