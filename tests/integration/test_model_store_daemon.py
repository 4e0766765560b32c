"""Installed models in a whole daemon: updates under load, models that fail, kills in a trial, commands either way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.bundle.archive import pack
from edged.bundle.store import control, requests
from edged.bundle.store.store import read_store
from tests.support.bundles import make_bundle
from tests.support.device import ROOT, wait_until
from tests.support.installed import ENDLESS, Unit, left_behind, models_of_results, under_load
from tests.support.parts import require
from tests.support.releases import release, wrong_weights
from tests.support.store import Key, make_key


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
        "6 with a strange key": release(folder, make_key(folder, "strange"), 6).path,
        "7 of another kind": release(folder, key, 7, source=make_bundle(folder / "kind").path).path,
    }


@pytest.fixture
def unit(tmp_path: Path, key: Key) -> Iterator[Unit]:
    with Unit(tmp_path / "device", key) as unit:
        yield unit


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
    wait_until(lambda: unit.status()["pipelines"][0]["sources"][0]["committed"] == unit.fed, 10)
    assert (source["rejected"], source["dropped"]) == (0, 0)
    results = models_of_results(unit)
    assert set(results) == {"digits@1.0.1", "digits@1.0.2"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("3 with wrong weights", "failed its self-test"),
        pytest.param("4 with no graph", "graph is refused", marks=pytest.mark.slow),
    ],
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


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_what_may_not_be_installed_is_refused_and_changes_nothing(
    unit: Unit, releases: dict[str, Path], tmp_path: Path
) -> None:
    corrupt = tmp_path / "corrupt.tar"
    pack(releases["2"], corrupt)
    with corrupt.open("r+b") as file:
        file.seek(corrupt.stat().st_size // 2)
        file.write(b"\xff\x00\xff")
    unit.start("daemon")
    unit.activate(releases["2"])
    unit.do("install", str(releases["4 with no graph"]), "--trial")
    unit.wait_for("digits@1.0.2", _2="active", _4="failed")
    wait_until(lambda: not left_behind(unit), 10)  # its files go after its record is written
    before = contents(unit.state / "models")
    for state in ("up", "down"):
        if state == "down":
            assert unit.stop("daemon") == 0
        for path, complaint in (
            (releases["1"], "release counter 1, 2 was committed before"),
            (releases["2"], "is installed already: active"),
            (releases["4 with no graph"], "failed on this device before: its graph is refused"),
            (releases["5 unsigned"], "is not signed"),
            (releases["6 with a strange key"], "a key that is not trusted here"),
            (corrupt, "sha256"),
        ):
            done = unit.model("install", str(path), "--trial")
            assert done.returncode == 1, (state, path, done)
            assert complaint in done.stderr, (state, path, done.stderr)
            assert contents(unit.state / "models") == before, (state, path)
            assert list((unit.state / "sync" / "incoming").iterdir()) == []


@pytest.mark.parametrize(
    ("signum", "left"),
    [(signal.SIGSEGV, "failed"), pytest.param(signal.SIGKILL, "rolled-back", marks=pytest.mark.slow)],
)
def test_a_model_whose_workers_crash_on_trial_is_condemned_and_one_whose_workers_are_killed_is_not(
    tmp_path: Path, key: Key, releases: dict[str, Path], signum: signal.Signals, left: str
) -> None:
    with Unit(tmp_path / "device", key, ENDLESS) as unit:
        unit.start("daemon")
        unit.do("install", str(releases["1"]), "--trial")
        unit.wait_for("digits@1.0.1", _1="trial")
        unit.do("commit", "digits")
        with under_load(unit):
            unit.do("install", str(releases["2"]), "--trial")
            unit.wait_for("digits@1.0.2", _1="active", _2="trial")
            killed = set[int]()
            while unit.records()[2] == "trial":
                pid = unit.status()["engines"][0]["pid"]
                if pid is not None and pid not in killed:
                    killed.add(pid)
                    os.kill(pid, signum)
                time.sleep(0.05)
            unit.wait_for("digits@1.0.1")
        assert len(killed) >= 2
        assert unit.records() == {1: "active", 2: left}
        assert set(models_of_results(unit)) == {"digits@1.0.1", "digits@1.0.2"}  # one result a frame, and no error
        wait_until(lambda: f"1.0.2 {left}: " in unit.status()["models"][0]["trial"], 10, unit.log("daemon"))
        assert signum.name in unit.status()["models"][0]["trial"]
        again = unit.model("install", str(releases["2"]))
        assert again.returncode == 1
        assert ("failed on this device before" in again.stderr) is (left == "failed")
        assert unit.model("trial", "digits").returncode == (1 if left == "failed" else 0)


@pytest.mark.slow
def test_a_model_that_takes_none_of_the_frames_costs_no_frame(unit: Unit, releases: dict[str, Path]) -> None:
    unit.start("daemon")
    unit.activate(releases["1"])
    with under_load(unit):
        unit.do("install", str(releases["7 of another kind"]), "--trial")
        unit.wait_for("digits@1.0.1", _1="active", _7="rolled_back")
        slot = next(s for s in json.loads(unit.do("list", "--json"))["models"] if s["release_counter"] == 7)
        assert "a frame got no result" in slot["reason"] and slot["proved_on"]
    assert set(models_of_results(unit)) == {"digits@1.0.1"}


@pytest.mark.slow
def test_frames_wait_while_the_only_model_was_taken_back(tmp_path: Path, key: Key, releases: dict[str, Path]) -> None:
    with Unit(tmp_path / "device", key, ENDLESS) as unit:
        unit.start("daemon")
        unit.do("install", str(releases["2"]), "--trial")
        unit.wait_for("digits@1.0.2", _2="trial")
        unit.feed(5)
        wait_until(lambda: not unit.spooled(), 20, unit.log("daemon"))
        assert "there is no other" in unit.do("rollback", "digits")
        wait_until(lambda: unit.status()["state"] == "failed", 20, unit.log("daemon"))
        assert "no model digits is active" in unit.status()["reasons"][0]
        assert unit.status()["models"][0]["slot"] == "none"
        unit.feed(5)
        time.sleep(1)
        assert len(unit.spooled()) == 5
        assert unit.pid("worker") is None
        unit.do("install", str(releases["1"]), "--trial")
        unit.wait_for("digits@1.0.1", _1="trial", _2="rolled_back")
        assert models_of_results(unit) == {"digits@1.0.1": 5, "digits@1.0.2": 5}


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_commands_are_refused_with_a_reason_and_without_harm(unit: Unit) -> None:
    for state in ("down", "up"):
        if state == "up":
            unit.start("daemon")
            wait_until(lambda: (unit.runtime / control.SOCKET).exists(), 20, unit.log("daemon"))
        for arguments, complaint in (
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
    open_to_others(unit.runtime)
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


def test_what_root_installs_belongs_to_the_daemons_user(tmp_path: Path, key: Key, releases: dict[str, Path]) -> None:
    require("root")
    nobody = 65534  # may not run this interpreter, perhaps, so nothing is signed here
    with Unit(tmp_path / "device", key, "[models]\nallow_unsigned = true\n") as unit:
        for path in (unit.state, *unit.state.rglob("*")):
            os.chown(path, nobody, nobody)
        open_to_others(unit.state)
        assert "NOT signed" in unit.do("install", str(releases["5 unsigned"]), "--trial")
        made = [unit.state / "models", unit.state / "sync"]
        owners = {str(path): path.stat().st_uid for place in made for path in (place, *place.rglob("*"))}
        assert set(owners.values()) == {nobody}, owners
        assert len(owners) > 8
        assert unit.records() == {5: "trial"}


def open_to_others(folder: Path) -> None:
    """Let other users reach a folder, as they do on a device."""
    for place in (folder, *folder.parents):
        if place != Path(place.root) and place.stat().st_uid == os.geteuid():
            place.chmod(place.stat().st_mode | 0o011)
