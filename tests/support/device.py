"""A whole device for system tests: real daemon and edged-sync, started again when they die, as systemd does it.

The broker is the caller's. Nothing here judges: ``Ledger`` keeps what a subscriber saw, tests compare.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from cloud_sync.contract.accounting import StreamAccount
from cloud_sync.contract.messages import Row
from cloud_sync.contract.results import unpack

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "models" / "digits" / "bundle"
COMMANDS = {
    "daemon": [sys.executable, "-m", "edged", "run"],
    "sync": [sys.executable, "-m", "cloud_sync.device", "run"],
}


class Device:
    """One device in ``directory`` that delivers to the broker at ``broker_port``. Leaving the block stops it."""

    def __init__(
        self,
        directory: Path,
        broker_port: int,
        *,
        bundle: Path = BUNDLE,
        buffer: str = "",
        pipeline: str = "",
        tables: str = "",
    ) -> None:
        self.state = directory / "state"
        self.runtime = directory / "run"
        self.spool = directory / "spool"
        self.spool.mkdir(parents=True)
        self.config = directory / "edged.toml"
        self._logs = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self.starts: dict[str, int] = defaultdict(int)
        self.config.write_text(
            f'[device]\nid = "edge-1"\nstate_dir = "{self.state}"\nruntime_dir = "{self.runtime}"\n'
            f"[http]\nport = 0\n[buffer]\nsegment_mb = 1\ncap_mb = 64\n{buffer}\n{tables}\n"
            f'[[pipeline]]\nname = "digits"\nmodel = "{bundle}"\n{pipeline}\n'
            f'[[pipeline.source]]\ntype = "spool"\nname = "spool"\npath = "{self.spool}"\n'
            '[[pipeline.source]]\ntype = "http"\nname = "http"\n'
            f'[sync]\nbroker = "mqtt://127.0.0.1:{broker_port}"\nfleet = "test"\n'
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self._processes)):
            self.stop(name)

    def start(self, name: str) -> None:
        """Start ``daemon`` or ``sync``; what it says is appended to its log."""
        with (self._logs / f"{name}.log").open("ab") as log:
            command = [*COMMANDS[name], "--config", str(self.config)]
            self._processes[name] = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        self.starts[name] += 1

    def stop(self, name: str, timeout_s: float = 20) -> int:
        """Stop a process as systemd would, and return its exit code."""
        process = self._processes.pop(name, None)
        if process is None:
            return 0
        process.terminate()
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise

    def pid(self, name: str) -> int | None:
        """The pid of ``daemon``, ``sync`` or ``worker``, None while there is none."""
        if name != "worker":
            process = self._processes.get(name)
            return process.pid if process is not None and process.poll() is None else None
        daemon = self.pid("daemon")
        for child in children(daemon) if daemon is not None else ():
            if b"edged.engines.worker" in _command_line(child):
                return child
        return None

    def kill(self, name: str) -> bool:
        """SIGKILL; False when there was nothing to kill."""
        pid = self.pid(name)
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
        return False

    def revive(self) -> None:
        """Start again what has died."""
        for name, process in list(self._processes.items()):
            if process.poll() is not None:
                self.start(name)

    def status(self) -> dict[str, Any]:
        """What the daemon last wrote of itself; empty before."""
        try:
            facts: dict[str, Any] = json.loads((self.runtime / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return facts

    def address(self) -> tuple[str, int]:
        """Where the console listens."""
        facts = json.loads((self.runtime / "http.json").read_text())
        return facts["host"], facts["port"]

    def wait_ready(self, timeout_s: float = 30) -> None:
        """Wait until this daemon infers."""
        wait_until(
            lambda: self.status().get("pid") == self.pid("daemon") and self.status().get("state") == "ready",
            timeout_s,
            self.log("daemon"),
        )

    def log(self, name: str) -> Callable[[], str]:
        """The log of a process, to be read when a wait fails."""
        return lambda: (self._logs / f"{name}.log").read_text(errors="replace")[-4000:]

    def put(self, name: str, image: NDArray[np.generic]) -> None:
        """Hand a frame in through the spool."""
        file = io.BytesIO()
        np.save(file, image)
        part = self.spool / f".{name}"
        part.write_bytes(file.getvalue())
        part.rename(self.spool / name)

    def spooled(self) -> list[str]:
        """Frames that still lie in the spool."""
        return [path.name for path in self.spool.iterdir() if path.is_file() and not path.name.startswith(".")]


class Ledger:
    """A subscriber that keeps every row by its frame, on a thread of its own. Use as a context manager."""

    def __init__(self, broker_port: int, stream: str = "digits") -> None:
        self.account = StreamAccount(stream)
        self.rows: dict[str, list[Row]] = defaultdict(list)  # frame key without its digest → rows
        self.historical = 0
        self.in_order = True
        self._last: dict[str, int] = defaultdict(int)
        self._client = Client(CallbackAPIVersion.VERSION2, "ledger", protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe(f"edged/v1/+/+/result/{stream}", qos=1)
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)
        self._client.connect_async("127.0.0.1", broker_port, clean_start=False)

    def __enter__(self) -> Self:
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def doubled(self) -> list[str]:
        """Frames that were delivered under two sequence numbers."""
        return [key for key, rows in self.rows.items() if len(rows) > 1]

    def _on_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        data = unpack(bytes(message.payload)).data
        new = self.account.feed_event(data).new
        self.historical += data.historical
        for row in data.rows:
            if row.seq in new:
                self.in_order &= row.seq > self._last[data.epoch]
                self._last[data.epoch] = row.seq
                self.rows[(row.key or "").partition("#")[0]].append(row)


def wait_until(condition: Callable[[], bool], timeout_s: float, why: Callable[[], str] = str) -> None:
    """Poll until true. Fails the test with what ``why`` says when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(0.01)


def pss_mb(pid: int) -> float:
    """Proportional set size of a process in MiB (proc(5), smaps_rollup)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no Pss of process {pid}")


def descendants(pid: int) -> list[int]:
    """Every process that a process started, and that these started."""
    return [one for child in children(pid) for one in (child, *descendants(child))]


def children(pid: int) -> Sequence[int]:
    """The processes that a process started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
