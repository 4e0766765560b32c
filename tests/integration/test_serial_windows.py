"""Windows from real lines: a pty that is pulled and returns under the real daemon, and a FIFO that waits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
import time
import tty
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.check import check
from edged.config import load
from edged.domain import Frame, FrameId
from edged.errors import ConfigError
from edged.ports import OnEnded
from edged.sources.sample_stream import Blocks, Framing, Raw, Windows, block
from edged.sources.serial_windows import SerialWindowsSource
from models.bearing import data, make
from tests.support.device import ROOT, Device, wait_until
from tests.support.recordings import data as recorded

BLOCK_BYTES = 1000  # 250 samples: no block ends where a window does
SETTLED = 25  # looks at an empty line in a row: half a second
SHARE = {"normal": "Normal", "ball": "B_7_DE12", "inner-race": "IR_14_DE12", "outer-race": "OR@6_21_DE12"}


class Line:
    """A serial line: a pty whose end for the daemon is found at ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sensor, self._end = os.openpty()
        tty.setraw(self._end)
        path.symlink_to(os.ttyname(self._end))

    def send(self, data_bytes: bytes) -> None:
        """Send, and wait until the daemon has read all of it."""
        left = memoryview(data_bytes)
        while left:
            left = left[os.write(self._sensor, left[:2048]) :]
            wait_until(lambda: self._waiting() == 0, 30)
        for _ in range(SETTLED):  # what was written reaches the other end a little later
            time.sleep(0.02)
            wait_until(lambda: self._waiting() == 0, 30)

    def _waiting(self) -> int:
        return int(struct.unpack("i", fcntl.ioctl(self._end, termios.FIONREAD, bytes(4)))[0])

    def pull(self) -> None:
        """The device is gone, and its path with it."""
        self._path.unlink()
        os.close(self._end)
        os.close(self._sensor)


def vibration() -> data.Signal:
    """A few seconds of the test part: every class in turn."""
    recorded("cwru_bearing")
    return np.concatenate([data.part(data.signal(name), "test")[: 5 * data.WINDOW] for name in SHARE.values()])


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_line_that_is_pulled_and_returns_loses_what_the_wire_lost_and_no_more(tmp_path: Path) -> None:
    samples = vibration()
    blocks = [samples[at : at + 250] for at in range(0, len(samples), 250)]
    wire = [block(number, one.astype("<f4").tobytes()) for number, one in enumerate(blocks)]
    first, second, missing = 23, 50, 3  # cut inside block 23; blocks 50 to 52 never arrive
    before, after = np.concatenate(blocks[:second]), np.concatenate(blocks[second + missing :])
    expected = [window for run in (before, after) for window in data.windows(run)]
    unused = len(before) % data.WINDOW
    table = (
        f'[[pipeline.source]]\ntype = "serial-windows"\nname = "sensor"\npath = "{tmp_path / "line"}"\n'
        f'sample = "f32le"\nwindow = {data.WINDOW}\nbaud = 921600\n'
    )
    with Device(tmp_path / "device", 1883, bundle=make.BUNDLE, pipeline=table) as device:
        device.start("daemon")
        wait_until(lambda: "No such file" in sensor(device).get("reason", ""), 30, device.log("daemon"))
        assert device.status()["state"] == "degraded"
        line = Line(tmp_path / "line")
        device.wait_ready()
        line.send(wire[0][5:] + b"".join(wire[:first]) + wire[first][:400])  # it begins in the middle of a block
        line.pull()
        wait_until(lambda: sensor(device).get("state") == "failed", 30, device.log("daemon"))
        line = Line(tmp_path / "line")
        line.send(b"".join(wire[first:second]))
        wait_until(lambda: sensor(device)["note"] == "times away and back: 1", 30, lambda: str(sensor(device)))
        line.pull()
        wait_until(lambda: sensor(device).get("state") == "failed", 30, device.log("daemon"))
        line = Line(tmp_path / "line")
        line.send(b"".join(wire[second + missing :]))
        for number, window in enumerate(expected):
            device.put(f"{number:04}.npy", window)
        wait_until(lambda: not device.spooled(), 60, device.log("daemon"))
        told_of = {
            "committed": len(expected),
            "received": len(expected),
            "rejected": 0,
            "dropped": 0,
            "state": "running",
        }
        wait_until(lambda: told_of.items() <= sensor(device).items(), 30, lambda: str(sensor(device)))
        note, losses, metrics = sensor(device)["note"], sensor(device)["losses"], scrape(device)
        rows = results(device)
        line.pull()
    assert note == f"blocks lost on the line: {missing}, samples in no window: {unused}, times away and back: 2"
    counted = {"blocks lost on the line": missing, "damaged on the way": 0, "samples in no window": unused}
    counted["times away and back"] = 2
    assert {loss["what"]: loss["count"] for loss in losses} == counted
    for what, count in counted.items():
        assert f'edged_source_losses_total{{source="sensor",pipeline="digits",what="{what}"}} {count}\n' in metrics
    by_line = [row["body"] for row in rows if row["source"] == "sensor"]
    by_spool = [row["body"] for row in sorted(rows, key=lambda row: str(row["key"])) if row["source"] == "spool"]
    assert len(by_line) == len(by_spool) == len(expected) >= 17
    assert [one["label"] for one in by_line] == [one["label"] for one in by_spool]
    assert {one["label"] for one in by_line} == set(SHARE)
    for one, other in zip(by_line, by_spool, strict=True):
        np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-4)


def sensor(device: Device) -> dict[str, Any]:
    """What the status says of the line."""
    facts = [source for one in device.status().get("pipelines", ()) for source in one["sources"]]
    return next((source for source in facts if source["name"] == "sensor"), {})


def scrape(device: Device) -> str:
    """What Prometheus would read."""
    host, port = device.address()
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def results(device: Device) -> list[dict[str, Any]]:
    """All results in the order of the stream."""
    command = [sys.executable, "-m", "edged", "results", "--json", "--limit", "1000", "--config", str(device.config)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return sorted(map(json.loads, told.stdout.splitlines()), key=lambda row: int(row["seq"]))


# FIFOs, without a daemon


class Gate:
    """An intake that takes frames only while it is open, as a full queue with the policy ``block``."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.frames: list[Frame] = []

    async def offer(self, frame: Frame, _on_ended: OnEnded) -> None:
        await self.open.wait()
        self.frames.append(frame)

    async def reject(self, _frame: FrameId, _received_ns: int, _reason: str, _on_ended: OnEnded) -> None:
        raise AssertionError("a line rejects nothing")

    def overtaken(self, _source: str) -> None:
        raise AssertionError("a line overtakes nothing")


def source(path: Path, told: list[tuple[str, str]], framing: Framing | None = None) -> SerialWindowsSource:
    windows = Windows("s16le", 1, 100, 100, 1.0)
    return SerialWindowsSource(
        "fifo", path, 115200, framing or Raw(2), windows, lambda reason, note, _: told.append((reason, note))
    )


@contextlib.asynccontextmanager
async def running(one: SerialWindowsSource, intake: Gate) -> Any:
    task = asyncio.create_task(one.run(intake))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def writer(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def test_a_fifo_keeps_its_writer_waiting_while_nothing_can_be_taken(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    samples = np.arange(200_000).astype("<i2").tobytes()
    told: list[tuple[str, str]] = []

    async def main() -> None:
        gate = Gate()
        async with running(source(fifo, told), gate):
            await until(lambda: "nobody writes" in told[-1][0] if told else False)
            with writer(fifo) as fd:
                sent, deadline = 0, time.monotonic() + 1.5
                while time.monotonic() < deadline:
                    with contextlib.suppress(BlockingIOError):
                        sent += os.write(fd, samples[sent : sent + 4096])
                    await asyncio.sleep(0.001)
                assert 0 < sent < 128 << 10  # the pipe, and what was read before the gate
                assert gate.frames == []
                gate.open.set()
                while sent < len(samples):
                    with contextlib.suppress(BlockingIOError):
                        sent += os.write(fd, samples[sent : sent + 4096])
                    await asyncio.sleep(0)
                await until(lambda: len(gate.frames) == 2000)
                assert told[-1] == ("", "")
            got = np.concatenate([np.asarray(frame.payload)[0] for frame in gate.frames])
            np.testing.assert_array_equal(got, np.frombuffer(samples, "<i2"))
            assert len({frame.id.key for frame in gate.frames}) == 2000
            await until(lambda: "nobody writes" in told[-1][0])
            with writer(fifo) as fd:  # another writer, on the FIFO that stayed open
                os.write(fd, samples[:200])
                await until(lambda: len(gate.frames) == 2001)

    asyncio.run(main())


class Sink(Gate):
    """An intake that never makes its source wait, as a queue that drops."""

    async def offer(self, _frame: Frame, _on_ended: OnEnded) -> None:
        return


@pytest.mark.timeout(30)
def test_a_writer_without_end_leaves_the_event_loop_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setattr(os, "read", lambda _fd, size: bytes(size))  # there is always more

    async def main() -> None:
        async with running(source(fifo, []), Sink()):
            for _ in range(100):
                await asyncio.sleep(0.001)

    asyncio.run(main())


def test_what_is_no_line_is_refused_and_what_is_away_is_waited_for(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    (tmp_path / "file").write_bytes(b"abc")

    async def main() -> None:
        for path in (tmp_path / "file", Path("/dev/null")):
            with pytest.raises(ConfigError, match="is no line"):
                await source(path, []).run(Gate())
        gate = Gate()
        gate.open.set()
        async with running(source(tmp_path / "later", told, Blocks(2)), gate):
            await until(lambda: bool(told))
            assert os.strerror(errno.ENOENT) in told[-1][0]
            os.mkfifo(tmp_path / "part")
            with contextlib.ExitStack() as stack:
                stack.callback(os.close, os.open(tmp_path / "part", os.O_RDONLY | os.O_NONBLOCK))
                fd = stack.enter_context(writer(tmp_path / "part"))
                (tmp_path / "part").rename(tmp_path / "later")
                os.write(fd, block(0, bytes(400)))
                await until(lambda: len(gate.frames) == 2)
            assert told[-1] == ("", "")

    asyncio.run(main())


def test_a_check_tells_what_is_wrong_with_the_path_of_a_line(tmp_path: Path) -> None:
    table = f'[[pipeline.source]]\ntype = "serial-windows"\nname = "sensor"\npath = "{tmp_path / "line"}"\n'
    device = Device(tmp_path / "device", 1883, pipeline=f'{table}sample = "f32le"\nwindow = 64\n')

    def problem() -> str:
        found = check(load(device.config))
        return next(one.problem for one in found if one.what == f"line {tmp_path / 'line'}")

    assert "waits for it" in problem()
    (tmp_path / "line").write_bytes(b"")
    assert "no serial line" in problem()
    (tmp_path / "line").unlink()
    os.mkfifo(tmp_path / "line")
    assert problem() == ""
