"""A real camera by RTSP (a GStreamer server with H.264), a real feeder, a real daemon."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broker import free_port
from tests.support.device import ROOT, Device, wait_until
from tests.support.feeder import Feeder, committed, rows, wait_committed
from tests.support.parts import SYSTEM_PYTHON, require

USER, PASSWORD = "viewer", "hunter2+/@"
SERVER = ROOT / "tests" / "support" / "rtsp_server.py"


class Camera:
    """The server, which may be killed and started again at the same port."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._log = directory / "camera.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("wb") as log:
            command = [SYSTEM_PYTHON, str(SERVER), str(self.port), USER, PASSWORD]
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        wait_until(lambda: "up" in self._log.read_text(), 20, self._log.read_text)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


@pytest.fixture
def camera(tmp_path: Path) -> Iterator[Camera]:
    require("RTSP server")
    pytest.importorskip("av", reason="the extra edged[rtsp] is not installed")
    camera = Camera(tmp_path)
    camera.start()
    yield camera
    camera.kill()


def table(camera: Camera, secret: Path, **more: str) -> str:
    lines = "".join(f"{name} = {value}\n" for name, value in more.items())
    return (
        f'[[feeder]]\ntype = "rtsp"\nname = "door"\nmodel = "digits"\nurl = "rtsp://127.0.0.1:{camera.port}/cam"\n'
        f'username = "{USER}"\npassword_file = "{secret}"\nwidth = 8\nheight = 8\ntimeout_s = 5\n{lines}'
    )


def closes(counts: dict[str, int]) -> bool:
    ends = ("handed", "refused", "dropped", "skipped")
    return counts["received"] == sum(counts.get(name, 0) for name in ends)


@pytest.mark.slow
def test_pictures_come_also_after_the_camera_was_away_and_no_password_is_shown(tmp_path: Path, camera: Camera) -> None:
    secret = tmp_path / "secret"
    secret.write_text("wrong\n")
    with Device(tmp_path / "device", 1883, tables=table(camera, secret, rate_hz="5")) as device:
        with Feeder(device, "door") as feeder:
            device.start("daemon")
            feeder.start()
            feeder.wait_for("401 Unauthorized")
            secret.write_text(PASSWORD + "\n")
            wait_committed(device, 5)
            command_line = Path(f"/proc/{feeder.pid}/cmdline").read_bytes().decode()
            camera.kill()
            feeder.wait_for("the camera is away", times=2)
            before = committed(device)
            camera.start()
            wait_committed(device, before + 5)
            counts = feeder.stop()
        told = rows(device)
    assert closes(counts), counts
    assert counts["connections"] == 2
    assert counts["skipped"] > counts["handed"]  # 20 pictures a second, of which 5 are wanted
    assert counts["handed"] == len(told) == len({row["key"] for row in told})
    assert {row["kind"] for row in told} == {"result"}
    for secret_part in ("hunter2", f"{USER}:"):
        assert secret_part not in feeder.log() + command_line


@pytest.mark.slow
def test_while_the_daemon_is_slow_pictures_are_dropped_and_counted_and_the_latest_is_next(
    tmp_path: Path, camera: Camera
) -> None:
    tables = table(camera, tmp_path / "none").replace(
        f'password_file = "{tmp_path / "none"}"', 'password_env = "SECRET"'
    )
    with Device(tmp_path / "device", 1883, tables=tables) as device:
        with Feeder(device, "door") as feeder:
            device.start("daemon")
            device.wait_ready()
            feeder.start(SECRET=PASSWORD)
            wait_committed(device, 3)
            daemon = device.pid("daemon")
            assert daemon is not None
            os.kill(daemon, signal.SIGSTOP)
            time.sleep(2.0)
            os.kill(daemon, signal.SIGCONT)
            stood = committed(device)
            wait_committed(device, stood + 5)
            counts = feeder.stop()
        told = rows(device)
    assert closes(counts), counts
    assert counts["dropped"] >= 20, counts
    numbers = sorted(int(row["key"].rpartition(":")[2]) for row in told)
    gaps = [later - former for former, later in itertools.pairwise(numbers)]
    assert max(gaps) >= 20  # the pictures of two seconds, less the one that waited
    assert counts["handed"] == len(told)
