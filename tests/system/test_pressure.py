"""A device that gets hot under load asks less of itself, says so everywhere, and goes back when it has cooled down.

The daemon, its worker and its load are real; the temperature is that of a made-up /proc and /sys.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.digits.data import Images, held_out
from tests.support.device import BUNDLE, ROOT, Device, wait_until
from tests.support.kernel import Tree

pytestmark = pytest.mark.slow

RATE_HZ = 50.0  # of the camera; the engine could do many times as much
DWELL_S = 1.0

TABLES = """
[pressure]
enabled = {enabled}
root = "{root}"
look_every_s = 0.2
dwell_s = {dwell_s}
step_s = 3600.0

[[pipeline]]
name = "toy"
model = "{bundle}"
policy = "drop-oldest"
priority = 1
[[pipeline.source]]
type = "replay"
name = "camera"
path = "{frames}"
rate_hz = {rate_hz}
loop = true

[[pipeline]]
name = "archive"
model = "{bundle}"
priority = 1
[[pipeline.source]]
type = "spool"
name = "archive"
path = "{archive}"
"""


class Load(threading.Thread):
    """Keeps a spool filled, until it is ended."""

    def __init__(self, spool: Path, images: Images) -> None:
        super().__init__(daemon=True)
        self.put = 0
        self._spool, self._images = spool, images
        self._over = threading.Event()

    def left(self) -> int:
        """Frames that lie in the spool."""
        return len(list(self._spool.glob("*.npy")))

    def run(self) -> None:
        while not self._over.is_set():
            for _ in range(max(0, 100 - self.left())):
                part = self._spool / ".part"
                with part.open("wb") as file:
                    np.save(file, self._images[self.put % len(self._images)])
                part.rename(self._spool / f"{self.put:06d}.npy")
                self.put += 1
            self._over.wait(0.02)

    def end(self) -> None:
        self._over.set()
        self.join()


@contextmanager
def hot_device(directory: Path, *, enabled: bool) -> Iterator[tuple[Device, Tree, list[Load]]]:
    """A device with a camera and an archive of low priority and a spool of a higher one, all under load; it is cool."""
    tree = Tree(directory / "kernel")
    tree.zone(0, "cpu-thermal", 50.0)
    tree.memory(total_kb=1_000_000, available_kb=800_000)
    images = held_out()[0]
    np.save(directory / "frames.npy", images[:50])
    (directory / "archive").mkdir()
    tables = TABLES.format(
        enabled=str(enabled).lower(),
        root=tree.root,
        dwell_s=DWELL_S,
        bundle=BUNDLE,
        frames=directory / "frames.npy",
        rate_hz=RATE_HZ,
        archive=directory / "archive",
    )
    with Device(directory / "device", 1883, tables=tables) as device:
        device.start("daemon")
        device.wait_ready()
        loads = [Load(device.spool, images), Load(directory / "archive", images)]
        for load in loads:
            load.start()
        try:
            yield device, tree, loads
        finally:
            for load in loads:
                load.end()


def sources(device: Device) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for lane in device.status()["pipelines"] for one in lane["sources"]}


def rates(device: Device, seconds: float) -> dict[str, float]:
    """Results a second of each source."""

    def stored() -> tuple[float, dict[str, int]]:
        status = device.status()
        return float(status["uptime_s"]), {name: int(one["committed"]) for name, one in sources(device).items()}

    began_s, before = stored()
    time.sleep(seconds)
    ended_s, after = stored()
    return {name: (after[name] - before[name]) / (ended_s - began_s) for name in after}


def is_stored(device: Device, name: str, load: Load) -> bool:
    """Whether everything that a load has put in has its end."""
    return int(sources(device)[name]["received"]) == load.put


def level(device: Device) -> str:
    return str(device.status()["pressure"]["level"])


def rows(device: Device, stream: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "edged", "results", "--json", "--limit", "100000", "--stream", stream]
    done = subprocess.run([*command, "--config", device.config], cwd=ROOT, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_hot_device_slows_the_least_important_stream_down_and_goes_back_late(tmp_path: Path) -> None:
    with hot_device(tmp_path, enabled=True) as (device, tree, loads):
        cool = rates(device, 2.0)
        assert level(device) == "normal"

        tree.zone(0, "cpu-thermal", 97.0)
        wait_until(lambda: level(device) == "critical", 5, device.log("daemon"))
        wait_until(lambda: device.status()["state"] == "degraded", 5)
        assert "pressure: critical: temperature (cpu-thermal) 97.0 °C" in device.status()["reasons"]
        hot = rates(device, 3.0)
        shares = {lane["name"]: lane["share_percent"] for lane in device.status()["pipelines"]}
        assert shares == {"toy": 10.0, "archive": 10.0, "digits": 50.0}

        tree.zone(0, "cpu-thermal", 84.0)  # below the limits, but not by their margin
        wait_until(lambda: level(device) == "tight", 5, device.log("daemon"))
        time.sleep(2 * DWELL_S)
        assert level(device) == "tight"
        cooled_s = time.monotonic()
        tree.zone(0, "cpu-thermal", 60.0)
        wait_until(lambda: level(device) == "normal", 10, device.log("daemon"))
        assert time.monotonic() - cooled_s > DWELL_S * 0.8
        again = rates(device, 2.0)

        for load in loads:
            load.end()
        for name, load in zip(("spool", "archive"), loads, strict=True):
            wait_until(partial(is_stored, device, name, load), 60, device.log("daemon"))
        told, books = device.status(), sources(device)
        assert device.stop("daemon") == 0
        print(f"\nresults a second, cool: {cool}, hot: {hot}, cool again: {again}")

        assert min(cool["camera"], again["camera"]) > 0.6 * RATE_HZ
        assert 0.02 * RATE_HZ < hot["camera"] < 0.2 * RATE_HZ
        # The machine may do something else meanwhile, which slows both of these; they have the same work.
        assert 0.05 < hot["archive"] / hot["spool"] < 0.45
        assert 0.5 < cool["archive"] / cool["spool"] < 2
        for name, load in zip(("spool", "archive"), loads, strict=True):
            assert (books[name]["committed"], books[name]["dropped"], load.left()) == (load.put, 0, 0)

        stream = rows(device, "toy")
        dropped = [row for row in stream if row["kind"] == "dropped"]
        shed = next(lane["shed_by_pressure"] for lane in told["pipelines"] if lane["name"] == "toy")
        assert {row["body"]["error"]["code"] for row in dropped} == {"pressure"}
        assert any("temperature (cpu-thermal) 97.0 °C" in row["body"]["error"]["message"] for row in dropped)
        assert sum(row["count"] for row in dropped) == shed > 0.5 * RATE_HZ
        assert [row["seq"] for row in stream] == list(range(1, len(stream) + 1))
        assert not [row for row in rows(device, "digits") + rows(device, "archive") if row["kind"] != "result"]


def test_the_control_without_the_policy_goes_on_as_before(tmp_path: Path) -> None:
    with hot_device(tmp_path, enabled=False) as (device, tree, _):
        tree.zone(0, "cpu-thermal", 97.0)
        assert rates(device, 2.0)["camera"] > 0.6 * RATE_HZ
        assert (level(device), device.status()["state"]) == ("off", "ready")
        assert sources(device)["camera"]["dropped"] == 0
