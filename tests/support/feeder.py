"""A real ``edged-feed`` process, and what the daemon has stored of its frames."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Self

from tests.support.device import ROOT, Device, wait_until


class Feeder:
    """``edged-feed run NAME`` of a device, started again as often as a test likes. Leaving the block ends it."""

    def __init__(self, device: Device, name: str, *, program: Sequence[str] = ("-m", "edged.feeders")) -> None:
        self.log_file = device.config.parent / f"feeder-{name}.log"
        self._command = [sys.executable, *program, "run", name, "--config", str(device.config)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, **environment: str) -> None:
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=os.environ | environment
            )

    def stop(self, timeout_s: float = 20) -> dict[str, int]:
        """End it as systemd would; its counters."""
        assert self._process is not None
        self._process.terminate()
        assert self._process.wait(timeout_s) == 0, self.log()
        return self.counts()

    def wait(self, timeout_s: float = 60) -> int:
        """Its exit code, when it ends by itself."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_for(self, said: str, times: int = 1, timeout_s: float = 30) -> None:
        """Wait until its log holds something."""
        wait_until(lambda: self.log().count(said) >= times, timeout_s, self.log)

    def counts(self) -> dict[str, int]:
        """The counters of its last words."""
        last = self.log().strip().splitlines()[-1]
        return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", last)}


def rows(device: Device) -> list[dict[str, Any]]:
    """What is stored, through the command that a person would use."""
    command = [sys.executable, "-m", "edged", "results", "--json", "--limit", "100000", "--config", str(device.config)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in told.stdout.splitlines()]


def committed(device: Device, source: str = "http") -> int:
    """How many frames of a source have a result, as the daemon last wrote."""
    sources = [one for pipeline in device.status().get("pipelines", []) for one in pipeline["sources"]]
    return sum(one["committed"] for one in sources if one["name"] == source)


def wait_committed(device: Device, count: int, timeout_s: float = 80) -> None:
    """Wait until so many frames have a result."""
    wait_until(lambda: committed(device) >= count, timeout_s, lambda: f"{device.status()}\n{device.log('daemon')()}")


def settled(device: Device, quiet_s: float = 2.0) -> int:
    """How many frames have a result once no more come."""
    last, since = committed(device), time.monotonic()
    while time.monotonic() - since < quiet_s:
        time.sleep(0.05)
        now = committed(device)
        if now != last:
            last, since = now, time.monotonic()
    return last
