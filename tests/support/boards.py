"""Boards on Ethernet as far as a probe sees them: real sockets on this machine, which come and go."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Self

SPINNAKER_ANSWER = b"SC&MP/SpiNNaker\x003.4.2\x00"


class TcpBoard:
    """Accepts connections on a port of its own, as long as it is up; with ``crowded`` nobody gets in."""

    def __init__(self, address: str = "127.0.0.1", *, crowded: bool = False) -> None:
        self.address = address
        self.port = 0
        self._crowded = crowded
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._sockets: list[socket.socket] = []
        self.up()

    def up(self) -> None:
        """It is there, under the port that it had."""
        listener = socket.socket(self._family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.address, self.port))
        listener.listen(0 if self._crowded else 128)
        self.port = listener.getsockname()[1]
        self._sockets.append(listener)
        for _ in range(4 if self._crowded else 0):  # the kernel answers no more than it has room for
            waiting = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            waiting.connect_ex((self.address, self.port))
            self._sockets.append(waiting)

    def down(self) -> None:
        """It is gone."""
        for one in self._sockets:
            one.close()
        self._sockets.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()


class SpinnakerBoard(threading.Thread):
    """Answers each request for its version, or with ``answer``; the first ``losses`` requests get lost."""

    def __init__(self, *, losses: int = 0, answer: bytes | None = None, code: int = 0x80) -> None:
        super().__init__(daemon=True)
        self.requests: list[bytes] = []
        self._losses, self._answer, self._code = losses, answer, code
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self._over = threading.Event()
        self.port = self._socket.getsockname()[1]

    def run(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                request, sender = self._socket.recvfrom(1024)
                self.requests.append(request)
                if len(self.requests) > self._losses:
                    self._socket.sendto(self._told(request) if self._answer is None else self._answer, sender)

    def _told(self, request: bytes) -> bytes:
        """The layout of a board's own answer, little-endian: padding, SDP header, return code, number, version."""
        number = struct.unpack_from("<H", request, 12)[0]
        header = struct.pack("<2xBBBBHH", 0x07, 0xFF, 0xFF, 0x00, 0x0000, 0x0000)
        body = struct.pack("<HHHBBHHI", self._code, number, 0, 31, 0, 256, 0xFFFF, 1672700769)
        return header + body + SPINNAKER_ANSWER

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        self._socket.close()
