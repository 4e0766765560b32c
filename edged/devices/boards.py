"""Boards on Ethernet, which udev does not see: configured by address, asked through a process that has the network.

That process (``edged.devices.prober``) is behind a socket where systemd listens for it, otherwise it is started from
here. One is enough for all boards; it is asked for again after its end. Decides nothing about a board's state.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

import edged
from edged.devices.probe import Verdict
from edged.devices.prober import PACKET, Answer, Question, as_json
from edged.devices.table import Sighting
from edged.hardware_config import Board

SPARE_S = 3.0  # for the process itself, beyond the deadline of a board: it may have to be started first


def sighting_of(board: Board) -> Sighting:
    """A board, as the table of devices knows it; it has no path below /sys, so that its name stands for one."""
    return Sighting(
        path=f"/ethernet/{board.name}",
        kind=board.kind,
        name=board.title or f"{board.probe} board",
        link=board.name,
        engine=board.engine,
        node=f"{board.probe}:{board.address}:{board.at}",
        host=board.address,
    )


class BoardProbe:
    """Asks boards. ``place``: the socket behind which systemd starts the process, where there is one."""

    def __init__(self, boards: Sequence[Board], place: Path | None = None) -> None:
        self._boards = tuple(boards)
        self._place = place
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0
        self._asked: dict[int, asyncio.Future[Answer]] = {}

    async def ask(self, board: Board) -> Verdict:
        """Whether a board answers now."""
        if self._process is not None and self._place is not None and self._place.exists():
            self.close()  # systemd listens now; what it starts has the network
        self._number += 1
        number, answered = self._number, asyncio.get_running_loop().create_future()
        self._asked[number] = answered
        try:
            async with asyncio.timeout(board.deadline_s + SPARE_S):
                self._connected().send(msgspec.json.encode(Question(number=number, board=board.name)))
                answer: Answer = await answered
        except OSError as error:  # a timeout too
            del self._asked[number]
            self.close()
            why = "does not answer" if isinstance(error, TimeoutError) else f"cannot be had: {error.strerror or error}"
            return Verdict(f"the process that asks it {why}")
        except asyncio.CancelledError:
            del self._asked[number]
            raise
        del self._asked[number]
        return Verdict(answer.problem, answer.note)

    def close(self) -> None:
        """Let go of the process; it ends with the connection."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        for answered in self._asked.values():
            if not answered.done():
                answered.set_exception(ConnectionResetError(0, "it ended"))
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()  # it holds nothing, and may be waiting for a board
            process.wait()

    def _connected(self) -> socket.socket:
        """The connection, made anew where there is none. Raises OSError."""
        if self._socket is None:
            self._socket = self._connect() or self._start()
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._hear, self._socket)
        return self._socket

    def _connect(self) -> socket.socket | None:
        """To the process behind systemd's socket; None where systemd listens for nobody."""
        if self._place is None or not self._place.exists():
            return None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.setblocking(False)
            connection.connect(str(self._place))
        except OSError:
            connection.close()
            raise
        return connection

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        package = str(Path(edged.__file__).parents[1])
        arguments = ["-m", "edged.devices.prober", "--boards", as_json(self._boards), "--fd", str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": package},
                cwd="/",
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return ours

    def _hear(self, connection: socket.socket) -> None:
        try:
            packet = connection.recv(PACKET)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self.close()
            return
        with contextlib.suppress(msgspec.MsgspecError):
            answer = msgspec.json.decode(packet, type=Answer)
            answered = self._asked.get(answer.number)
            if answered is not None and not answered.done():
                answered.set_result(answer)
