"""Runs in the guest: starts the programs that the host asks for, and tells line by line what they say.

Stdlib only. One JSON object a line over a virtio port, both ways. From the host: ``{"id", "argv", "input"}`` starts a
program, ``{"id", "signal"}`` sends it a signal. To the host: ``{"up"}`` once, the seconds since the kernel started;
``{"id", "out"}`` and ``{"id", "err"}`` for each line of a program, ``{"id", "exit"}`` when it has ended and has no more
to say.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import Any, BinaryIO


class Agent:
    """One port and the programs that were started over it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def serve(self) -> None:
        """Do what the host asks for until the machine ends."""
        self.tell({"up": time.clock_gettime(time.CLOCK_BOOTTIME)})
        for line in os.fdopen(os.dup(self._port), "rb"):  # a port can be opened once only
            asked = json.loads(line)
            if "signal" in asked:
                self._signal(asked["id"], asked["signal"])
            else:
                threading.Thread(target=self._run, args=(asked,)).start()

    def tell(self, message: dict[str, Any]) -> None:
        """One line, whole, at once."""
        with self._lock:
            data = memoryview(json.dumps(message).encode() + b"\n")
            while data:
                data = data[os.write(self._port, data) :]

    def _run(self, asked: dict[str, Any]) -> None:
        number = asked["id"]
        try:
            process = subprocess.Popen(
                asked["argv"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self.tell({"id": number, "err": str(error)})
            self.tell({"id": number, "exit": 127})
            return
        self._running[number] = process
        assert process.stdin and process.stdout and process.stderr
        listeners = [
            threading.Thread(target=self._listen, args=(number, name, pipe))
            for name, pipe in (("out", process.stdout), ("err", process.stderr))
        ]
        for listener in listeners:
            listener.start()
        try:
            process.stdin.write(asked["input"].encode())
            process.stdin.close()
        except BrokenPipeError:
            pass  # it did not want to know
        for listener in listeners:
            listener.join()
        self.tell({"id": number, "exit": process.wait()})

    def _listen(self, number: int, name: str, pipe: BinaryIO) -> None:
        for line in pipe:
            self.tell({"id": number, name: line.decode(errors="replace").rstrip("\n")})

    def _signal(self, number: int, signal: int) -> None:
        process = self._running.get(number)
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal)


if __name__ == "__main__":
    Agent(os.open(sys.argv[1], os.O_RDWR)).serve()
