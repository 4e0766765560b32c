"""Installed models in a whole daemon: updates under load, models that fail, kills in a trial, commands either way."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edged.bundle.store import control, requests
from edged.bundle.store.store import read_store
from models.digits.data import held_out
from tests.support.device import ROOT, Device, wait_until
from tests.support.parts import require
from tests.support.releases import release, wrong_weights
from tests.support.store import Key, make_key

QUICK = "[models]\ntrial_results = 5\ntrial_s = 0.5\n"
ENDLESS = "[models]\ntrial_results = 5\ntrial_s = 3600\n"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory, key: Key) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("releases")
    return {
        "1": release(folder, key, 1).path,
        "2": release(folder, key, 2).path,
        "3 with wrong weights": release(folder, key, 3, model=wrong_weights()).path,
        "4 with no graph": release(folder, key, 4, model=b"\0" * 1000).path,
        "5 unsigned": release(folder, None, 5).path,
    }


class Unit(Device):
    """A device whose pipeline names the installed model ``digits``."""

    def __init__(self, directory: Path, key: Key, models: str = QUICK) -> None:
        super().__init__(directory, 1883, bundle=Path("digits"), buffer=models)
        trust = self.state / "trust"
        trust.mkdir(parents=True)
        (trust / "release.pem").write_bytes(key.public_file.read_bytes())

    def model(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edged", "model", *arguments, "--config", str(self.config)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    def do(self, *arguments: str) -> str:
        done = self.model(*arguments)
        assert done.returncode == 0, done.stderr + self.log("daemon")()
        return done.stdout

    def slots(self) -> dict[int, str]:
        """State by release counter."""
        listed = json.loads(self.do("list", "--json"))["models"]
        return {slot["release_counter"]: slot["state"] for slot in listed}

    def records(self) -> dict[int, str]:
        """The same, straight from the disk."""
        return {s.release_counter: s.state.value for r in read_store(self.state / "models")[0] for s in r.slots}

    def runs(self) -> str:
        """The model that the pipeline runs, when it runs."""
        status = self.status()
        if status.get("pid") != self.pid("daemon") or status.get("state") not in ("ready", "degraded"):
            return ""
        return str(status["pipelines"][0]["model"]) if status["pipelines"][0]["engine"] else ""

    def wait_for(self, model: str, **records: str) -> None:
        expected = {int(name[1:]): state.replace("_", "-") for name, state in records.items()}
        wait_until(
            lambda: self.runs() == model and (not expected or self.records() == expected),
            40,
            lambda: f"{self.runs()} {self.records()}\n{self.log('daemon')()}",
        )

    def activate(self, path: Path) -> None:
        """Install and commit a release."""
        self.do("install", str(path), "--trial")
        counter = int(path.name.rpartition("-")[2])
        with under_load(self):
            wait_until(lambda: self.records().get(counter) == "active", 40, self.log("daemon"))

    def feed(self, count: int) -> None:
        images = held_out()[0]
        for _ in range(count):
            self.fed = getattr(self, "fed", 0) + 1
            self.put(f"{self.fed:06d}.npy", images[self.fed % len(images)])


@pytest.fixture
def unit(tmp_path: Path, key: Key) -> Iterator[Unit]:
    with Unit(tmp_path / "device", key) as unit:
        yield unit


def models_of_results(unit: Unit) -> Counter[str]:
    """How many results each model gave, from the buffer."""
    command = [sys.executable, "-m", "edged", "results", "--json", "--limit", "100000", "--config", str(unit.config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    rows: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kind"] for row in rows} == {"result"}
    return Counter(str(row["model"]) for row in rows)


class Load(threading.Thread):
    """Feeds the device until told to stop."""

    def __init__(self, unit: Unit) -> None:
        super().__init__(daemon=True)
        self.unit = unit
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.01):
            if len(self.unit.spooled()) < 20:
                self.unit.feed(1)


@contextlib.contextmanager
def under_load(unit: Unit) -> Iterator[None]:
    load = Load(unit)
    load.start()
    try:
        yield
    finally:
        load.done.set()
        load.join()


def test_an_update_under_load_loses_no_frame_and_a_rollback_neither(unit: Unit, releases: dict[str, Path]) -> None:
    unit.do("install", str(releases["1"]))  # without a daemon
    assert unit.slots() == {1: "staged"}
    unit.start("daemon")
    wait_until(lambda: unit.status().get("state") == "failed", 20, unit.log("daemon"))
    assert "no model digits is active" in unit.status()["reasons"][0]
    unit.do("trial", "digits")  # with one
    with under_load(unit):
        unit.wait_for("digits@1.0.1", _1="active")
        assert "is on trial" in unit.do("install", str(releases["2"]), "--trial")
        unit.wait_for("digits@1.0.2", _1="previous", _2="active")
        wait_until(lambda: unit.status()["models"][0]["slot"] == "active", 10, unit.log("daemon"))
        model = unit.status()["models"][0]
        assert (model["version"], model["signer"], model["selftest"]) == ("1.0.2", "release.pem", "passed")
        unit.do("rollback", "digits")
        unit.wait_for("digits@1.0.1", _1="active", _2="rolled_back")
    wait_until(lambda: not unit.spooled(), 20, unit.log("daemon"))
    source = unit.status()["pipelines"][0]["sources"][0]
    fed = getattr(unit, "fed", 0)
    wait_until(lambda: unit.status()["pipelines"][0]["sources"][0]["committed"] == fed, 10)
    assert (source["rejected"], source["dropped"]) == (0, 0)
    results = models_of_results(unit)
    assert results.total() == fed
    assert set(results) == {"digits@1.0.1", "digits@1.0.2"}


@pytest.mark.parametrize(
    ("bad", "reason"), [("3 with wrong weights", "failed its self-test"), ("4 with no graph", "graph is refused")]
)
def test_a_bad_model_fails_beside_the_good_one_and_is_not_taken_again(
    unit: Unit, releases: dict[str, Path], bad: str, reason: str
) -> None:
    unit.start("daemon")
    unit.activate(releases["1"])
    with under_load(unit):
        unit.do("install", str(releases[bad]), "--trial")
        counter = int(bad[0])
        wait_until(lambda: unit.records().get(counter) == "failed", 40, unit.log("daemon"))
        assert unit.runs() == "digits@1.0.1"
        refused = unit.model("install", str(releases[bad]))
        assert refused.returncode == 1
        assert reason in refused.stderr
    assert set(models_of_results(unit)) == {"digits@1.0.1"}
    assert sorted(path.name for path in (unit.state / "models" / "digits").iterdir() if path.is_dir()) == [
        slot["digest"] for slot in json.loads(unit.do("list", "--json"))["models"] if slot["state"] == "active"
    ]


@pytest.mark.slow
def test_a_daemon_that_is_killed_in_each_trial_returns_to_the_good_model_and_condemns_nobody(
    tmp_path: Path, key: Key, releases: dict[str, Path]
) -> None:
    with Unit(tmp_path / "device", key, ENDLESS) as unit:
        unit.start("daemon")
        unit.do("install", str(releases["1"]), "--trial")
        unit.wait_for("digits@1.0.1", _1="trial")
        unit.do("commit", "digits")  # its self-test passed: a person may decide
        unit.do("install", str(releases["2"]), "--trial")
        for start in range(3):
            unit.wait_for("digits@1.0.2", _1="active", _2="trial")
            unit.kill("daemon")
            wait_until(lambda: unit.pid("daemon") is None, 5)
            unit.revive()
            assert unit.starts["daemon"] == start + 2
        unit.wait_for("digits@1.0.1", _1="active", _2="rolled_back")
        slot = json.loads(unit.do("list", "--json"))["models"][1]
        assert "started 3 times" in slot["reason"]
        unit.do("trial", "digits")
        unit.wait_for("digits@1.0.2", _1="active", _2="trial")


@pytest.mark.slow
def test_kills_between_any_two_states_always_leave_a_model_running(unit: Unit, releases: dict[str, Path]) -> None:
    unit.start("daemon")
    unit.activate(releases["1"])

    def killed() -> None:
        unit.kill("daemon")
        wait_until(lambda: unit.pid("daemon") is None, 5)
        unit.revive()

    unit.do("install", str(releases["2"]))
    killed()
    unit.wait_for("digits@1.0.1", _1="active", _2="staged")
    unit.do("trial", "digits")
    killed()
    unit.wait_for("digits@1.0.2", _1="active", _2="trial")
    unit.feed(6)
    unit.wait_for("digits@1.0.2", _1="previous", _2="active")
    killed()
    unit.wait_for("digits@1.0.2", _1="previous", _2="active")
    unit.do("rollback", "digits")
    killed()
    unit.wait_for("digits@1.0.1", _1="active", _2="rolled_back")


def test_a_damaged_slot_gives_way_to_the_previous_one_and_a_reinstall_heals_the_last(
    unit: Unit, releases: dict[str, Path]
) -> None:
    unit.start("daemon")
    unit.activate(releases["1"])
    unit.activate(releases["2"])
    assert unit.stop("daemon") == 0
    for counter in (2, 1):
        slot = next(s for s in json.loads(unit.do("list", "--json"))["models"] if s["release_counter"] == counter)
        with (unit.state / "models" / "digits" / slot["digest"] / "model.onnx").open("r+b") as file:
            file.seek(5000)
            file.write(b"\xff\xff\xff")
        unit.start("daemon")
        if counter == 2:
            unit.wait_for("digits@1.0.1", _1="active")
            unit.stop("daemon")
    wait_until(lambda: "is damaged" in "".join(unit.status().get("reasons", [])), 20, unit.log("daemon"))
    assert unit.records() == {1: "active"}
    unit.do("install", str(releases["1"]))  # the floor is 2 by now, but a repair installs nothing new
    unit.wait_for("digits@1.0.1", _1="active")


def test_proofs_are_kept_and_a_second_start_is_short(unit: Unit, releases: dict[str, Path]) -> None:
    unit.start("daemon")
    unit.activate(releases["1"])
    slot = json.loads(unit.do("list", "--json"))["models"][0]
    assert slot["proved_on"] and slot["proved_on"][0].startswith("onnxruntime ")
    before = read_store(unit.state / "models")[0]
    unit.stop("daemon")
    unit.start("daemon")
    unit.wait_for("digits@1.0.1", _1="active")
    assert read_store(unit.state / "models")[0] == before


def test_commands_are_refused_with_a_reason_and_without_harm(unit: Unit, releases: dict[str, Path]) -> None:
    for state in ("down", "up"):
        if state == "up":
            unit.start("daemon")
            wait_until(lambda: (unit.runtime / control.SOCKET).exists(), 20, unit.log("daemon"))
        for arguments, complaint in (
            (("install", str(releases["5 unsigned"])), "is not signed"),
            (("install", str(unit.config)), "the archive"),
            (("install", "nowhere.tar"), "cannot be copied"),
            (("trial", "digits"), "has nothing staged"),
            (("commit", "digits"), "nothing on trial"),
            (("rollback", "digits"), "no previous version"),
            (("remove", "digits"), "used by a pipeline"),
            (("remove", "faces"), "no model faces"),
            (("remove", "../x"), "" if state == "down" else "no request"),
        ):
            done = unit.model(*arguments)
            assert done.returncode == 1, (state, arguments, done)
            assert complaint in done.stderr, (state, arguments)
            assert "Traceback" not in done.stderr
    assert unit.slots() == {}
    assert list((unit.state / "sync" / "incoming").iterdir()) == []


def test_what_edged_sync_brings_is_staged_by_the_daemon(unit: Unit, key: Key, releases: dict[str, Path]) -> None:
    unit.start("daemon")
    folder = unit.state / "sync" / "incoming"
    wait_until(folder.is_dir, 20, unit.log("daemon"))
    for name in ("1", "5 unsigned"):
        command = [sys.executable, "-m", "edged", "bundle", "pack", str(releases[name]), str(folder / f".{name[0]}")]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        (folder / f".{name[0]}").rename(folder / f"{name[0]}.tar")
    wait_until(lambda: not list(folder.iterdir()), 20, unit.log("daemon"))
    assert unit.records() == {1: "staged"}


def test_a_stranger_on_the_socket_is_not_heard(unit: Unit) -> None:
    require("root")
    unit.start("daemon")
    wait_until(lambda: (unit.runtime / control.SOCKET).exists(), 20, unit.log("daemon"))
    (unit.runtime / control.SOCKET).chmod(0o777)  # as if the permissions were no protection
    for place in (unit.runtime, *unit.runtime.parents):
        if place != Path(place.root) and place.stat().st_uid == os.geteuid():
            place.chmod(place.stat().st_mode | 0o011)
    code = (
        "import os, sys; from pathlib import Path; from edged.bundle.store import control, requests;"
        "os.setgid(65534); os.setuid(65534);"
        "print(control.ask(Path(sys.argv[1]), requests.Rollback('digits')))"
    )
    command = [sys.executable, "-c", code, str(unit.runtime)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "user 65534 may not change models" in done.stdout, done.stdout + done.stderr
    answer = control.ask(unit.runtime, requests.Rollback("digits"))
    assert isinstance(answer, requests.Refusal) and "no previous version" in answer.message  # root is heard
