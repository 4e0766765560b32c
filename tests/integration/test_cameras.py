"""A camera that is not there, and what is no camera, under the real daemon. Real cameras: tests/vm/test_cameras.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edged.check import me, places
from edged.config import load
from tests.support.device import Device, wait_until

TABLES = """
[[pipeline.source]]
type = "camera"
name = "door"
device = "camera"
width = 640
height = 480

[[pipeline.source]]
type = "camera"
name = "null"
device = "/dev/null"
"""


def test_a_camera_that_is_away_is_told_and_holds_nothing_up(tmp_path: Path) -> None:
    with Device(tmp_path / "device", 1883, pipeline=TABLES) as device:
        device.start("daemon")
        wait_until(lambda: device.status().get("state") == "degraded", 60, device.log("daemon"))
        camera = device.config.parent / "camera"
        wait_until(
            lambda: (
                set(device.status()["reasons"])
                == {
                    f"source door: {camera}: No such file or directory",
                    "source null: /dev/null: this is no camera of V4L2",
                }
            ),
            30,
            lambda: str(device.status()["reasons"]),
        )
        device.put("one.npy", np.zeros((8, 8), np.uint8))
        wait_until(lambda: not device.spooled(), 30, device.log("daemon"))
        camera.symlink_to("/dev/zero")  # something comes, and it is the wrong thing
        wait_until(
            lambda: f"source door: {camera}: this is no camera of V4L2" in device.status()["reasons"],
            30,
            lambda: str(device.status()["reasons"]),
        )
        facts = {one["name"]: one for pipeline in device.status()["pipelines"] for one in pipeline["sources"]}
        assert (facts["door"]["state"], facts["door"]["received"], facts["spool"]["committed"]) == ("failed", 0, 1)
        assert device.stop("daemon") == 0


def test_check_says_what_is_wrong_with_a_camera(tmp_path: Path) -> None:
    with Device(tmp_path / "device", 1883, pipeline=TABLES) as device:
        (device.config.parent / "camera").write_text("a file")
        told = {one.what: one.problem for one in places(load(device.config), me()) if one.what.startswith("camera")}
        assert told == {f"camera {device.config.parent / 'camera'}": "is no camera", "camera /dev/null": ""}
        (device.config.parent / "camera").unlink()
        [first, _] = [one for one in places(load(device.config), me()) if one.what.startswith("camera")]
        assert first.problem == "is not there; the source waits for it"
