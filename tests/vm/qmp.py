"""QEMU's machine protocol: one command after the other. Events are passed over."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

TIMEOUT_S = 60.0  # of one command: an emulator on a busy machine is slow, not dead


class QmpError(Exception):
    """QEMU refused a command; says why."""


class Qmp:
    """A connection to a machine that has just been started. Raises OSError when it is not there in time."""

    def __init__(self, path: Path) -> None:
        self._socket = _connect(path)
        self._lines = self._socket.makefile("rb")
        self._answer("QMP")
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return what it answers. Raises QmpError."""
        names = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._socket.sendall(json.dumps({"execute": command, "arguments": names}).encode() + b"\n")
        return self._answer("return")

    def close(self) -> None:
        """Let go of the machine, which runs on."""
        self._lines.close()
        self._socket.close()

    def _answer(self, name: str) -> Any:
        for line in self._lines:
            message = json.loads(line)
            if "error" in message:
                raise QmpError(message["error"]["desc"])
            if name in message:
                return message[name]
        raise QmpError("the machine has ended")


def _connect(path: Path) -> socket.socket:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return connection
