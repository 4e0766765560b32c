"""USB from end to end: the kernel, our rule, the link, the daemon, an engine on the device, and its loss in mid-frame.

The stick is a gadget of the guest's own kernel; what comes back over its bulk endpoints is what the engine computes
with (``tests/vm/guest/usb_engine.py``). The daemon is the packaged service, started by the rule and by nobody else; its
workers run in the packaged units, with the one of TensorRT lent to the engine of these tests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.digits.data import held_out
from tests.vm.gadget import Gadget
from tests.vm.machine import Guest
from tests.vm.service import SPOOL, Service

BARE, READY, LOIHI = "1a6e:089a", "18d1:9302", "8086:0b01"
ON_STICK, ON_CPU = "tensorrt", "onnxruntime"
FRAMES = 40
CONFIG = f"""
[device]
id = "guest"
state_dir = "/var/lib/edged"
runtime_dir = "/run/edged"

[engines.tensorrt]
device = "coral"
deadline_s = 60
load_deadline_s = 300

[engines.onnxruntime]
deadline_s = 60
load_deadline_s = 300

[[pipeline]]
name = "digits"
model = "/usr/share/edged/models/digits"
engines = ["{ON_STICK}", "{ON_CPU}"]
standby = true
max_batch = 1

[[pipeline.source]]
type = "spool"
name = "spool"
path = "{SPOOL}"
"""
# The unit of an engine that has a device, and in it the engine of these tests.
UNIT = """
cp /srv/tree/tests/vm/guest/usb_engine.py /srv/
mkdir -p /etc/systemd/system/edged-worker-tensorrt@.service.d
cat >/etc/systemd/system/edged-worker-tensorrt@.service.d/usb.conf <<'END'
[Service]
ExecStart=
ExecStart=/opt/edged/bin/python -I -m edged.engines.attendant tensorrt --engine-file /srv/usb_engine.py
DeviceAllow=char-usb_device rw
END
systemctl daemon-reload
systemctl start edged-worker-tensorrt.socket
"""
PULL_IN_MID_FRAME = """
read_progress() { read -r begun done transfers </var/lib/edged/cache/usb-progress; }
read_progress
first=$done
until [ "$begun" -gt "$done" ] && [ "$done" -gt "$first" ] && [ "$transfers" -ge 1 ]; do read_progress; done
echo >/sys/kernel/config/usb_gadget/stick/UDC
sleep 1
read_progress
echo "$begun $done $transfers"
"""


@pytest.fixture(scope="module")
def gadget(guest: Guest) -> Gadget:
    return Gadget(guest)


@pytest.fixture(scope="module")
def service(guest: Guest) -> Service:
    service = Service(guest)
    service.configure(CONFIG)
    guest.shell(UNIT)
    return service


def devices(guest: Guest) -> list[dict[str, Any]]:
    """What ``edged devices`` says."""
    return [json.loads(line) for line in guest.run("edged", "devices", "--json").splitlines()]


def test_a_stick_of_the_table_gets_its_link_and_its_group_and_starts_the_service(
    guest: Guest, gadget: Gadget, service: Service
) -> None:
    assert service.state() == "inactive"
    gadget.plug(LOIHI)
    node = guest.run("readlink", "-e", "/dev/edged/loihi").strip()
    assert node.startswith("/dev/bus/usb/")
    assert guest.run("stat", "-c", "%G %a", node) == "edged 660\n"
    [stick] = devices(guest)
    assert (stick["kind"], stick["id"], stick["state"], stick["node"]) == ("accelerator", LOIHI, "ready", node)
    service.wait(lambda: service.state() == "active")
    gadget.pull()
    assert guest.shell("ls /dev/edged 2>/dev/null || true") == ""


def give(guest: Guest, folder: Path, first: int, count: int) -> None:
    """Hand frames in through the spool, all at once."""
    images = held_out()[0]
    folder /= f"frames-{first}"
    folder.mkdir()
    for number in range(first, first + count):
        np.save(folder / f"{number:04d}.npy", images[number])
    guest.copy(folder, "/var/lib/edged/given")
    guest.shell(f"cd /var/lib/edged; chown -R edged:edged given; mv given/* {SPOOL}/; rmdir given")


def test_a_frame_that_loses_its_stick_ends_on_the_next_engine_and_the_stick_is_used_again(
    guest: Guest, gadget: Gadget, service: Service, tmp_path: Path
) -> None:
    gadget.plug(BARE)
    took_s = service.wait(lambda: service.serving() == ON_STICK)
    give(guest, tmp_path, 0, FRAMES)
    begun, done, transfers = map(int, guest.run("/bin/sh", "-eu", given=PULL_IN_MID_FRAME).split())
    assert begun == done + 1 and transfers >= 1  # it began this frame, and never ended it

    def ended(count: int) -> bool:
        account = service.account("spool")
        return account["received"] == account["committed"] == count

    moved_s = service.wait(lambda: ended(FRAMES))
    rows = service.results()
    assert [row["kind"] for row in rows] == ["result"] * FRAMES
    assert len({row["key"] for row in rows}) == FRAMES
    used = [row["engine"] for row in rows]
    assert set(used) == {ON_STICK, ON_CPU} and used == sorted(used, key=[ON_STICK, ON_CPU].index)
    assert service.serving() == ON_CPU
    gadget.plug(READY)
    back_s = service.wait(lambda: service.serving() == ON_STICK)
    [stick] = devices(guest)
    assert (stick["id"], stick["state"], stick["user"]) == (READY, "in-use", f"engine {ON_STICK}")
    give(guest, tmp_path, FRAMES, 2)
    service.wait(lambda: ended(FRAMES + 2))
    assert [row["engine"] for row in service.results()[FRAMES:]] == [ON_STICK, ON_STICK]
    print(
        f"\nstick in use after {took_s:.0f} s, frames ended {moved_s:.0f} s after its loss, back after {back_s:.0f} s"
    )
