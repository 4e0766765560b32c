"""Feeders under systemd, from the real package: what they bring is stored once, whoever of them is killed or restarted.

One machine with systemd as process 1, its own broker and recordings that this file makes up. What a feeder's sandbox
denies stands in test_unit_denials.py.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support import careless_feeder
from tests.support.edge import CONFIG, results, status, wait_ready
from tests.support.event_files import saccade
from tests.support.package import as_version, install, installed, package
from tests.support.pid1 import Machine
from tests.support.tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PLANT, YARD = "edged-feed@plant.service", "edged-feed@yard.service"
RESTART_S = 10.0  # RestartSec= of the unit
EXPOSURE = 1.3
SENSOR = (
    "mosquitto_pub",
    "-h",
    "127.0.0.1",
    "-V",
    "5",
    "-u",
    "sensor",
    "-P",
    "sesame",
    "-q",
    "1",
    "-t",
    "plant/door/image",
    "-l",
)
LOAD, EVERY_S = 400, 0.01
RECORDINGS, LASTS_US = 15, 250_000
SETTINGS = """
[[pipeline]]
name = "motion"
model = "/srv/models/nmnist"

[[pipeline.source]]
type = "http"
name = "events"

[[feeder]]
type = "mqtt"
name = "plant"
model = "digits"
broker = "mqtt://127.0.0.1"
username = "feeder"
password_file = "/run/credentials/edged-feed@plant.service/password"

[[feeder.topic]]
filter = "plant/+/image"
payload = "json"
values = "image"
key = "field:id"

[[feeder]]
type = "events"
name = "yard"
model = "nmnist"
path = "/srv/recordings"
speed = 1.0
"""
# As docs/feeders.md has it.
OWN = {
    PLANT: "[Service]\nLoadCredential=password:/etc/edged/plant.password\n"
    "IPAddressDeny=any\nIPAddressAllow=localhost\n",
    YARD: "[Service]\nPrivateNetwork=yes\n",
}


@pytest.fixture(scope="module")
def edge() -> Iterator[Machine]:
    with installed() as booted:
        start_broker(booted)
        shutil.copytree(ROOT / "models/nmnist/bundle", booted.root / "srv/models/nmnist")
        booted.put(CONFIG, booted.run("cat", CONFIG).stdout + SETTINGS)
        booted.put("/etc/edged/plant.password", "open\n")
        booted.run("chmod", "600", "/etc/edged/plant.password")
        for unit, text in OWN.items():
            booted.put(f"/etc/systemd/system/{unit}.d/override.conf", text)
        booted.run("systemctl", "daemon-reload")
        booted.run("systemctl", "restart", "edged.service")
        wait_ready(booted)
        booted.run("systemctl", "enable", "--now", PLANT)
        wait_running(booted)
        yield booted


def start_broker(edge: Machine) -> None:
    """The distribution's own broker, which knows two users and keeps what it has to deliver."""
    edge.put("/etc/mosquitto/conf.d/own.conf", "listener 1883 127.0.0.1\npassword_file /etc/mosquitto/passwords\n")
    for name, word in (("feeder", "open"), ("sensor", "sesame")):
        edge.run("touch", "/etc/mosquitto/passwords")
        edge.run("mosquitto_passwd", "-b", "/etc/mosquitto/passwords", name, word)
    edge.run("chown", "mosquitto", "/etc/mosquitto/passwords")
    edge.run("systemctl", "unmask", "mosquitto.service")
    edge.run("systemctl", "start", "mosquitto.service")


def wait_running(edge: Machine) -> None:
    """Wait until the feeder of the broker says that it runs, in its line of systemctl status."""
    edge.eventually(lambda: edge.show(PLANT, "StatusText").startswith("running; "))


def say(edge: Machine, numbers: range) -> None:
    """Let the sensor send images, each with its number, and wait for the broker's word that it has them."""
    seven = np.load(ROOT / "debian/edged/seven.npy").ravel().tolist()
    lines = "".join(json.dumps({"id": number, "image": seven}) + "\n" for number in numbers)
    edge.run(*SENSOR, stdin=lines.encode())


class Load(threading.Thread):
    """Sends images, a hundred a second or so."""

    def __init__(self, edge: Machine, numbers: range) -> None:
        super().__init__()
        self._edge = edge
        self._numbers = numbers
        self.start()

    def run(self) -> None:
        for begin in range(self._numbers.start, self._numbers.stop, 20):
            say(self._edge, range(begin, min(begin + 20, self._numbers.stop)))
            time.sleep(20 * EVERY_S)


def images(edge: Machine, numbers: range) -> Counter[str]:
    """How often each of these images is stored."""
    wanted = keys(numbers)
    return Counter(key for key in results(edge, "plant:") if key in wanted)


def keys(numbers: range) -> Counter[str]:
    """Every one of these images once."""
    return Counter(f"plant:plant/door/image:{number}" for number in numbers)


def kill(edge: Machine, unit: str) -> None:
    """End the main process of a unit."""
    edge.run("kill", "-KILL", edge.show(unit, "MainPID"))


def restarts(edge: Machine, unit: str) -> int:
    """How often systemd started it again by itself."""
    return int(edge.show(unit, "NRestarts"))


def test_messages_of_a_broker_become_results_under_their_own_names(edge: Machine) -> None:
    numbers = range(20)
    say(edge, numbers)
    edge.eventually(lambda: images(edge, numbers) == keys(numbers))
    rows = results(edge, "plant:")
    assert {(row["kind"], row["source"], row["body"]["label"]) for row in rows.values()} == {("result", "http", "7")}
    edge.eventually(lambda: "received=20 handed=20 refused=0 dropped=0" in edge.show(PLANT, "StatusText"))
    assert edge.run("stat", "--format=%U", f"/proc/{edge.show(PLANT, 'MainPID')}").stdout.strip() == "edged-feed"
    told = edge.run("systemd-analyze", "security", PLANT).stdout
    assert float(re.findall(r"Overall exposure level for \S+: ([0-9.]+)", told)[0]) <= EXPOSURE


def test_a_feeder_that_is_killed_under_load_comes_back_and_nothing_is_lost_or_doubled(edge: Machine) -> None:
    numbers = range(1000, 1000 + LOAD)
    load = Load(edge, numbers)
    edge.eventually(lambda: len(images(edge, numbers)) > 40)
    before = restarts(edge, PLANT)
    kill(edge, PLANT)
    load.join()
    done = len(images(edge, numbers))
    edge.eventually(lambda: images(edge, numbers) == keys(numbers))
    assert done < LOAD  # messages waited for it
    assert restarts(edge, PLANT) == before + 1
    wait_running(edge)


def test_a_restart_of_the_daemon_under_load_loses_nothing(edge: Machine) -> None:
    numbers = range(2000, 2000 + LOAD)
    before = restarts(edge, PLANT)
    load = Load(edge, numbers)
    edge.eventually(lambda: len(images(edge, numbers)) > 40)
    edge.run("systemctl", "restart", "edged.service")
    edge.eventually(lambda: len(images(edge, numbers)) > 150)
    kill(edge, "edged.service")
    load.join()
    edge.eventually(lambda: images(edge, numbers) == keys(numbers))
    assert restarts(edge, PLANT) == before


@pytest.mark.parametrize("program", ["/opt/edged/bin/edged-feed", "careless"])
def test_what_is_acknowledged_before_the_commit_would_be_lost_with_the_feeder(edge: Machine, program: str) -> None:
    """The second is the control of the two tests above."""
    numbers = range(3000, 3030) if program != "careless" else range(4000, 4030)
    there = "/opt/edged/careless_feeder.py"
    edge.put(there, Path(careless_feeder.__file__).read_text())
    command = program if program != "careless" else f"/opt/edged/bin/python -I {there}"
    edge.drop_in(PLANT, f"[Service]\nRestartSec=1\nExecStart=\nExecStart={command} run %i --config {CONFIG}\n")
    edge.run("systemctl", "restart", PLANT)
    wait_running(edge)
    edge.run("systemctl", "stop", "edged.socket", "edged.service")
    say(edge, numbers)
    edge.eventually(lambda: re.search(r"received=[1-9]", edge.show(PLANT, "StatusText")))
    kill(edge, PLANT)
    edge.run("systemctl", "start", "edged.socket", "edged.service")
    wait_ready(edge)
    edge.eventually(lambda: edge.show(PLANT, "StatusText").startswith("running; "))
    if program != "careless":
        edge.eventually(lambda: images(edge, numbers) == keys(numbers))
    time.sleep(2)
    lost = keys(numbers) - images(edge, numbers)
    edge.revert(PLANT)
    edge.run("systemctl", "restart", PLANT)
    wait_running(edge)
    assert bool(lost) == (program == "careless"), lost


def recordings(edge: Machine, name: str) -> Counter[str]:
    """Make some recordings of a small event camera; the keys of their frames."""
    made = Counter[str]()
    edge.run("rm", "-rf", "/srv/recordings")
    (edge.root / "srv/recordings").mkdir(mode=0o755)
    for number in range(RECORDINGS):
        rng = np.random.default_rng(number + len(name))
        times = np.sort(rng.integers(0, LASTS_US, 2000)).tolist()
        places = rng.integers(0, 34, (2000, 2)).tolist()
        signs = rng.integers(0, 2, 2000).tolist()
        data = saccade((x, y, p, t) for (x, y), p, t in zip(places, signs, times, strict=True))
        (edge.root / f"srv/recordings/{name}-{number:02}.bs2").write_bytes(data)
        made[f"yard:{name}-{number:02}.bs2:{hashlib.sha256(data).hexdigest()[:16]}"] = 1
    return made


def played(edge: Machine, name: str) -> Counter[str]:
    """How often each of these recordings is stored."""
    return Counter(list(results(edge, f"yard:{name}-")))


def committed(edge: Machine, pipeline: str) -> int:
    """How many frames of a pipeline's sources are stored, by the daemon's own account."""
    [found] = [one for one in status(edge)["pipelines"] if one["name"] == pipeline]
    return sum(source["committed"] for source in found["sources"])


def test_recordings_are_fed_once_though_the_feeder_is_killed(edge: Machine) -> None:
    wanted = recordings(edge, "killed")
    edge.run("systemctl", "start", YARD)
    edge.eventually(lambda: len(played(edge, "killed")) >= 3)
    kill(edge, YARD)
    assert len(played(edge, "killed")) < RECORDINGS
    edge.eventually(lambda: played(edge, "killed") == wanted, within_s=RESTART_S + 30)
    edge.eventually(lambda: edge.show(YARD, "ActiveState") == "inactive")  # all was fed: it does not begin anew
    said = edge.journal("--unit", YARD)
    assert said.count("Scheduled restart job") == 1
    assert f"yard: received={RECORDINGS} handed={RECORDINGS} duplicates=" in said
    assert {row["kind"] for row in results(edge, "yard:killed-").values()} == {"result"}
    edge.eventually(lambda: committed(edge, "motion") == RECORDINGS)


def test_without_the_restart_the_rest_would_not_be_fed(edge: Machine) -> None:
    """The control of the test above."""
    wanted = recordings(edge, "alone")
    edge.drop_in(YARD, "[Service]\nRestart=no\n")
    edge.run("systemctl", "start", YARD)
    edge.eventually(lambda: len(played(edge, "alone")) >= 3)
    kill(edge, YARD)
    time.sleep(RESTART_S + 3)
    fed = played(edge, "alone")
    edge.revert(YARD)
    edge.run("systemctl", "reset-failed", YARD, check=False)
    assert fed < wanted


def test_a_wrong_password_is_told_and_its_correction_is_noticed(edge: Machine) -> None:
    edge.put("/etc/edged/plant.password", "wrong\n")
    edge.run("systemctl", "restart", PLANT)
    edge.eventually(lambda: "refuses us: Not authorized" in edge.show(PLANT, "StatusText"))
    edge.put("/etc/edged/plant.password", "open\n")
    edge.run("systemctl", "restart", PLANT)
    wait_running(edge)
    assert "wrong" not in edge.journal("--unit", PLANT)


def test_an_upgrade_restarts_a_feeder_and_a_purge_takes_it_away(edge: Machine, tmp_path: Path) -> None:
    before = edge.show(PLANT, "MainPID")
    numbers = range(5000, 5010)
    install(edge, as_version(package(), "99.0", tmp_path))
    assert edge.show(PLANT, "MainPID") not in (before, "0")
    say(edge, numbers)
    edge.eventually(lambda: images(edge, numbers) == keys(numbers), within_s=60)
    edge.run("dpkg", "--remove", "edged", timeout_s=120)
    assert edge.run("systemctl", "list-units", "--plain", "--no-legend", "edged*").stdout == ""
    edge.run("dpkg", "--purge", "edged", timeout_s=120)
    assert edge.run("find", "/etc/systemd", "-name", "*edged*").stdout == ""
    assert "edged" not in edge.run("cat", "/etc/passwd", "/etc/group").stdout
