"""A store that can be filled from a test, a real edged-sync beside it, and the proof of what a subscriber heard."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cloud_sync.contract.accounting import StreamAccount
from cloud_sync.contract.messages import ResultEvent
from cloud_sync.contract.results import unpack
from edged.buffer.store import SegmentStore, StoreSettings
from edged.domain import Entry, FrameId, Kind, Receipt
from tests.support.broker import Heard

ROOT = Path(__file__).resolve().parents[2]
FLEET, DEVICE = "test", "cam-1"
BASE = f"edged/v1/{FLEET}/{DEVICE}"


def entry(number: int, stream: str = "digits", body: bytes = b"") -> Entry:
    """One result; its frame is named after the number."""
    return Entry(
        stream=stream,
        kind=Kind.RESULT,
        source="spool",
        frame=FrameId("spool", f"{stream}-{number}"),
        received_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        body=body or json.dumps({"label": str(number % 10), "scores": [0.125, 1e-7, 3.0]}).encode(),
        model="digits@1.0.0",
        digest="ab" * 32,
        engine="onnxruntime",
    )


class Store:
    """The daemon's store, run in a thread so that a plain test can commit."""

    def __init__(self, state_dir: Path, *, priorities: dict[str, int] | None = None, cap_mb: int = 64) -> None:
        settings = StoreSettings(
            directory=state_dir / "buffer",
            cap_bytes=cap_mb << 20,
            segment_bytes=1 << 20,
            keep_s=3600.0,
            ack_file=state_dir / "sync" / "ack.json",
            priorities=priorities or {},
        )
        state_dir.mkdir(parents=True, exist_ok=True)
        self._store = SegmentStore(settings, DEVICE)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="store-loop", daemon=True)
        self._next = 0

    @property
    def epoch(self) -> str:
        return self._store.epoch

    def commit(self, entries: Iterable[Entry]) -> list[Receipt]:
        """Commit and wait for the medium."""
        return asyncio.run_coroutine_threadsafe(self._store.commit(list(entries)), self._loop).result(30)

    def fill(self, count: int, stream: str = "digits") -> None:
        """Commit so many results, some at a time."""
        for first in range(self._next, self._next + count, 100):
            last = min(first + 100, self._next + count)
            self.commit(entry(number, stream) for number in range(first, last))
        self._next += count

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._store.open(), self._loop).result(30)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._store.close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Sync:
    """A real edged-sync in a process of its own. Leaving the block stops it and expects exit code 0."""

    def __init__(self, directory: Path, url: str, **sync: object) -> None:
        self.state_dir = directory / "state"
        self.config = directory / "edged.toml"
        self._log = directory / "sync.log"
        lines = [f"{key} = {json.dumps(value)}" for key, value in sync.items()]
        self.config.write_text(
            f'[device]\nid = "{DEVICE}"\nstate_dir = "{self.state_dir}"\nruntime_dir = "{directory / "run"}"\n'
            f'[sync]\nbroker = "{url}"\nfleet = "{FLEET}"\n' + "\n".join(lines) + "\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def status(self) -> dict[str, Any]:
        """What it last wrote of itself; empty before."""
        try:
            read: dict[str, Any] = json.loads((self.state_dir / "sync" / "status.json").read_text())
        except OSError:
            return {}
        return read

    @property
    def acked(self) -> dict[str, int]:
        """The cursor as the daemon reads it, by stream."""
        try:
            read = json.loads((self.state_dir / "sync" / "ack.json").read_text())
        except OSError:
            return {}
        return {ack["stream"]: ack["seq"] for ack in read["acks"]}

    def start(self) -> None:
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "cloud_sync.device", "run", "--config", str(self.config)]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self, timeout_s: float = 10.0) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGTERM)
        code = self.process.wait(timeout_s)
        self.process = None
        return code

    def wait(self, true: Callable[[dict[str, Any]], Any], timeout_s: float = 15.0) -> dict[str, Any]:
        """Wait until the status says something. Fails with status and log."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status = self.status
            if status and true(status):
                return status
            time.sleep(0.02)
        raise AssertionError(f"edged-sync did not come to say so: {self.status}\n{self.log}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process is not None and kind is not None:
            self.kill()
        elif self.process is not None:
            assert self.stop() == 0, self.log


def events(heard: Iterable[Heard]) -> list[ResultEvent]:
    """The result events among what was heard, each proved by its own digest."""
    return [unpack(message.payload) for message in heard if "/result/" in message.topic]


def account(heard: Iterable[Heard], stream: str = "digits") -> StreamAccount:
    """The account of one stream over everything that was heard."""
    result = StreamAccount(stream)
    for event in events(heard):
        if event.data.stream == stream:
            result.feed_event(event.data)
    return result


def delivered(heard: Iterable[Heard], stream: str = "digits") -> int:
    """How many numbers of a stream arrived at least once."""
    return sum(len(report.delivered) for report in account(heard, stream).report())


def has(rows: int, stream: str = "digits") -> Callable[[list[Heard]], bool]:
    """Whether so many numbers of a stream arrived; for ``Ear.wait``."""
    return lambda heard: delivered(heard, stream) >= rows


def frames(heard: Iterable[Heard]) -> list[str]:
    """The frames of all rows, a row that came again counted once."""
    rows = {
        (event.data.epoch, event.data.stream, row.seq): row.key for event in events(heard) for row in event.data.rows
    }
    return sorted(key for key in rows.values() if key)
