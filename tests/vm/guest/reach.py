"""Runs in a guest: whether packets get through. Standard library only: it is a unit's program, in the unit's sandbox.

``reach.py serve PORT`` answers on every address, until it is ended. ``reach.py try PORT ADDRESS ...`` prints one JSON
object: of each address and protocol, "reached" or the name of the error.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

WAIT_S = 5.0  # loopback answers an emulated machine in a hundredth of that; TCP does not tell that a filter is there


def serve(port: int) -> None:
    """Take connections, which nobody speaks over, and send every datagram back."""
    with socket.create_server(("", port)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("", port))
        print("ready", flush=True)
        while True:
            datagrams.sendto(*datagrams.recvfrom(64))


def tcp(port: int, address: str) -> None:
    """Connect."""
    socket.create_connection((address, port), WAIT_S).close()


def udp(port: int, address: str) -> None:
    """Send a datagram and get it back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(WAIT_S)
        datagrams.sendto(b"echo", (address, port))
        datagrams.recv(64)


def attempt(act: tuple[str, str], port: int) -> str:
    """Try one protocol at one address."""
    address, protocol = act
    try:
        {"tcp": tcp, "udp": udp}[protocol](port, address)
    except TimeoutError:
        return "ETIMEDOUT"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "reached"


def main(command: str, port: int, addresses: list[str]) -> None:
    """Serve, or try all addresses at once."""
    if command == "serve":
        serve(port)
    acts = [(address, protocol) for address in addresses for protocol in ("tcp", "udp")]
    with ThreadPoolExecutor(len(acts)) as pool:
        told = pool.map(attempt, acts, [port] * len(acts))
        print(json.dumps({" ".join(act): how for act, how in zip(acts, told, strict=True)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
