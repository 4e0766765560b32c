"""Cameras from the kernel on: real V4L2 devices of its test driver, our rule's links, and the installed service.

The driver (vivid) shows colour bars in whatever format it is asked for, and makes errors on request: buffers marked as
damaged, frames left out, a stream that dies. Unbinding it is what a pulled plug does: every node is gone in mid-stream.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import linuxpy  # type: ignore[import-untyped]  # it has annotations, and says so nowhere
import pytest
import typing_extensions

from tests.support.device import BUNDLE
from tests.vm.image import PYTHON
from tests.vm.machine import Guest
from tests.vm.service import Service

PACKAGES = f"/opt/edged/lib/python{PYTHON}/site-packages"
CAMERAS = {"yuyv": ("video0", "YUYV"), "nv12": ("video1", "NV12"), "any": ("video2", "auto")}
SENDS = {"yuyv": "YUYV 640x480", "nv12": "NV12 640x480", "any": "RGB3 640x480"}
CONFIG = """
[device]
id = "guest"

[engines.onnxruntime]
load_deadline_s = 180
deadline_s = 60

[[pipeline]]
name = "cameras"
model = "/srv/bundle"
policy = "drop-oldest"
queue = 2
"""
SOURCE = """
[[pipeline.source]]
type = "camera"
name = "{name}"
device = "/dev/edged/camera-{node}"
width = 640
height = 480
format = "{format}"
rate = {rate}
"""
SLOW_HZ, FAST_HZ = 2, 25  # three cameras at once in an emulator, and what the driver does at most at this size
FIGURES_S = 15


def bundle(folder: Path) -> Path:
    """The bundle ``digits``, whose preprocessing takes pictures of any size."""
    target = folder / "bundle"
    shutil.copytree(BUNDLE, target)
    manifest = json.loads((target / "manifest.json").read_text())
    steps = manifest["inputs"][0]["preprocess"]
    steps.insert(-1, {"op": "resize", "height": 8, "width": 8})
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


class Cameras(Service):
    """The service in a machine with three cameras."""

    def __init__(self, guest: Guest, folder: Path) -> None:
        super().__init__(guest)
        guest.copy(bundle(folder), "/srv/bundle")
        guest.copy(Path(linuxpy.__path__[0]), f"{PACKAGES}/linuxpy")
        guest.copy(Path(typing_extensions.__file__), f"{PACKAGES}/typing_extensions.py")
        self.shell("modprobe vivid n_devs=3 node_types=0x1,0x1,0x1; udevadm settle")
        self.quiet()

    def shell(self, script: str) -> str:
        return self._guest.shell(script, timeout_s=180)

    def results(self) -> list[dict[str, Any]]:
        told = self._guest.run("edged", "results", "--json", "--limit", "100000", timeout_s=300)
        return [json.loads(line) for line in told.splitlines()]

    def quiet(self) -> None:
        """Colour bars and nothing else: the driver writes the time into the picture."""
        for node, _ in CAMERAS.values():
            self.shell(f"v4l2-ctl -d /dev/{node} -c osd_text_mode=2")

    def start(self, rates: dict[str, int]) -> None:
        """Run with sources at these rates, and wait until it infers."""
        tables = "".join(
            SOURCE.format(name=name, node=CAMERAS[name][0], format=CAMERAS[name][1], rate=rate)
            for name, rate in rates.items()
        )
        self.configure(CONFIG + tables)
        self.shell("rm -f /run/edged/status.json; systemctl start edged.service")
        self.wait(lambda: self.status().get("state") == "ready")

    def sources(self) -> dict[str, dict[str, Any]]:
        """What the status says of each source."""
        return {one["name"]: one for pipeline in self.status().get("pipelines", ()) for one in pipeline["sources"]}

    def wait_all(self, fits: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until all sources are such."""

        def look() -> bool:
            found = self.sources()
            return len(found) == len(CAMERAS) and all(map(fits, found.values()))

        self.wait(look)

    def held(self) -> list[str]:
        """The cameras that the daemon has open, and the memory of theirs that it has mapped."""
        script = "cd /proc/$(systemctl show -P MainPID edged.service); ls -l fd; cat maps"
        return [line for line in self.shell(script).splitlines() if "/dev/video" in line]

    def property(self, name: str) -> int:
        """What systemd measures of the service, its workers among it."""
        return int(self.shell(f"systemctl show -P {name} edged.service"))


def returns(source: dict[str, Any]) -> int:
    """How often it was away: an emulator on busy cores lets a camera stand still now and then, too."""
    return sum(loss["count"] for loss in source["losses"] if loss["what"] == "times away and back")


@pytest.fixture(scope="module")
def machine(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Cameras:
    return Cameras(guest, tmp_path_factory.mktemp("cameras"))


@pytest.fixture(scope="module")
def cameras(machine: Cameras) -> Iterator[Cameras]:
    """The service, with a source for each camera."""
    machine.start(dict.fromkeys(CAMERAS, SLOW_HZ))
    yield machine
    machine.shell("systemctl stop edged.service")


def test_pictures_of_three_formats_become_the_same_results(cameras: Cameras) -> None:
    cameras.wait_all(lambda one: one["committed"] >= 5 and one["state"] == "running")
    for name, one in cameras.sources().items():
        assert one["note"].startswith(f"{SENDS[name]} at {SLOW_HZ} frames/s")
    labels = {(row["source"], row["body"]["label"]) for row in cameras.results() if row["kind"] == "result"}
    assert {name for name, _ in labels} == set(CAMERAS)
    assert len({label for _, label in labels}) == 1  # the bars are the same, whatever they travelled as
    users = {f"/dev/{node}": f"source {name}" for name, (node, _) in CAMERAS.items()}
    cameras.wait(lambda: users == {one["node"]: one["user"] for one in cameras.status()["devices"] if one["user"]})


def test_cameras_pulled_in_mid_stream_come_back_and_their_accounts_close(cameras: Cameras) -> None:
    before = cameras.sources()
    assert len(cameras.held()) >= len(CAMERAS)
    cameras.shell("echo vivid.0 >/sys/bus/platform/drivers/vivid/unbind; udevadm settle; ! test -e /dev/edged/camera")
    cameras.wait_all(lambda one: one["state"] == "failed")
    told = cameras.status()
    assert told["state"] == "degraded"
    assert all(any(f"/dev/edged/camera-{node}: No such" in reason for reason in told["reasons"])
               for node, _ in CAMERAS.values())  # fmt: skip
    assert cameras.held() == []
    cameras.wait_all(lambda one: one["in_flight"] == 0)
    time.sleep(5)  # what had come by then is in the account
    gone = cameras.sources()
    time.sleep(5)
    for name, one in cameras.sources().items():
        assert one["received"] == gone[name]["received"] == one["committed"] + one["rejected"] + one["dropped"]
    cameras.shell("echo vivid.0 >/sys/bus/platform/drivers/vivid/bind; udevadm settle")
    cameras.quiet()
    cameras.wait_all(lambda one: one["committed"] > gone[one["name"]]["committed"] + 3 and one["state"] == "running")
    for name, one in cameras.sources().items():
        assert one["note"].startswith(SENDS[name])
        assert returns(one) > returns(before[name])
        assert one["received"] > before[name]["received"]


def test_what_the_driver_damages_is_rejected_and_what_it_leaves_out_is_told(cameras: Cameras) -> None:
    assert not any(row.get("kind") == "rejected" for row in cameras.results())
    for _ in range(3):
        cameras.shell("v4l2-ctl -d /dev/video0 -c inject_v4l2_buf_flag_error=1")
        time.sleep(1.5)
    cameras.wait(lambda: cameras.sources()["yuyv"]["rejected"] > 0)
    damaged = [row for row in cameras.results() if row.get("kind") == "rejected"]
    assert {row["source"] for row in damaged} == {"yuyv"}
    assert all("marked the frame as damaged" in row["body"]["error"]["message"] for row in damaged)
    cameras.shell("v4l2-ctl -d /dev/video1 -c percentage_of_dropped_buffers=60")
    cameras.wait(lambda: "missed by the driver" in cameras.sources()["nv12"]["note"])
    cameras.shell("v4l2-ctl -d /dev/video1 -c percentage_of_dropped_buffers=0")


def test_a_stream_that_dies_is_opened_anew(cameras: Cameras) -> None:
    before = cameras.sources()["any"]
    cameras.shell("v4l2-ctl -d /dev/video2 -c inject_fatal_streaming_error=1")
    cameras.wait(lambda: returns(cameras.sources()["any"]) > returns(before))
    cameras.wait(lambda: cameras.sources()["any"]["committed"] > before["committed"] + 2)


def test_the_stream_holds_every_frame_that_came(cameras: Cameras) -> None:
    cameras.shell("echo vivid.0 >/sys/bus/platform/drivers/vivid/unbind")  # nothing is under way when it is stopped
    cameras.wait_all(lambda one: one["state"] == "failed" and one["in_flight"] == 0)
    time.sleep(5)
    cameras.shell("systemctl stop edged.service")
    rows = cameras.results()
    for name, one in cameras.sources().items():
        own = [row for row in rows if row["source"] == name]
        counts: Counter[str] = Counter()
        for row in own:
            counts[row["kind"]] += row["count"]
        assert counts["result"] + counts["error"] == one["committed"]
        assert (counts["rejected"], counts["dropped"]) == (one["rejected"], one["dropped"])
        shed = sum(row["count"] for row in own if row["kind"] == "dropped" and code(row) != "overtaken")
        numbers = [int(row["key"].rpartition("-")[2]) for row in own if row["key"]]
        assert len(numbers) == len(set(numbers))
        assert max(numbers) == len(numbers) + shed  # the source numbers what it hands over, and that is here
    cameras.shell("echo vivid.0 >/sys/bus/platform/drivers/vivid/bind; udevadm settle")


def code(row: dict[str, Any]) -> str:
    """Why there is no result."""
    return str(row["body"]["error"]["code"])


def test_figures_of_one_camera_at_its_full_rate(machine: Cameras, capsys: pytest.CaptureFixture[str]) -> None:
    machine.start({"yuyv": FAST_HZ})
    before = machine.sources()["yuyv"]["received"]
    machine.wait(lambda: machine.sources()["yuyv"]["received"] > before + 10)
    first, used, began = machine.sources()["yuyv"], machine.property("CPUUsageNSec"), time.monotonic()
    time.sleep(FIGURES_S)
    last, share = (
        machine.sources()["yuyv"],
        (machine.property("CPUUsageNSec") - used) / 1e9 / (time.monotonic() - began),
    )
    memory_mb = machine.property("MemoryCurrent") / 1e6
    machine.shell("systemctl stop edged.service")
    passed = {key: last[key] - first[key] for key in ("received", "committed", "dropped", "rejected")}
    with capsys.disabled():
        print(f"\none camera, {last['note']}: {passed} in about {FIGURES_S} s")
        print(
            f"the service took {share * 100:.0f} % of one core of this machine and {memory_mb:.0f} MB, with its worker"
        )
    assert passed["received"] == passed["committed"] + passed["rejected"] + passed["dropped"]
    assert passed["committed"] > 0
