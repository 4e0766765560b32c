"""The package edged-lava beside the package edged, on a machine with systemd as process 1: workers of Lava in units.

The machine is Debian 12, which has no Python 3.10: it is given this machine's, where docs/install.md says. One machine
serves all tests of this file, in which each leaves Lava serving; the last one takes the package away.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import greedy_engine
from tests.support.edge import CONFIG, feed, pid, results, status
from tests.support.lava import OF_A_DEVICE, bring_python, lava_python
from tests.support.package import as_version, install, installed, package
from tests.support.pid1 import Machine, need_machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WORKER = "edged-worker-lava@.service"
SOCKET = "edged-worker-lava.socket"
BACK_S = 120.0  # for Lava to serve again after a loss: a pause of 5 s first, then a start and a proof
BURST = 300  # frames: some seconds of work, so that a loss falls into it
MEMORY = 2 << 30  # of the unit
EXPOSURE = 1.3
ENGINES = 'engines = ["{}", "onnxruntime"]\nstandby = true\n'


@pytest.fixture(scope="module")
def deb() -> Path:
    need_machine()
    lava_python()
    return (
        Path(os.environ["EDGED_LAVA_DEB"])
        if "EDGED_LAVA_DEB" in os.environ
        else package("--lava", str(OF_A_DEVICE / "bin/python3.10"))
    )


@pytest.fixture(scope="module")
def edge(deb: Path) -> Iterator[Machine]:
    print(f"{deb.name}: {deb.stat().st_size / 1e6:.0f} MB")
    with installed() as booted:
        assert traces(booted) == set()
        booted.put(CONFIG, booted.run("cat", CONFIG).stdout + "\n[engines.lava]\ndeadline_s = 30\n")
        bring_python(booted.root)
        booted.run("ldconfig")
        began = time.monotonic()
        install(booted, deb)
        installed_s = time.monotonic() - began
        use(booted, "lava")
        feed(booted, "begin")
        booted.eventually(lambda: results(booted, "begin"))
        print(f"installed in {installed_s:.1f} s, first frame on Lava {time.monotonic() - began:.1f} s after the start")
        yield booted


@pytest.fixture(autouse=True)
def as_it_was(edge: Machine) -> Iterator[None]:
    """Undo what a test did to the unit."""
    yield
    if (edge.root / f"run/systemd/system/{WORKER}.d").exists():
        edge.revert(WORKER)
        use(edge, "lava")


def configure(edge: Machine, engine: str) -> None:
    """Name an engine of Lava's for the bundled model, as the guide says."""
    text = re.sub(r"^(engines|standby) = .*\n", "", edge.run("cat", CONFIG).stdout, flags=re.MULTILINE)
    edge.put(CONFIG, text.replace('digits"\n\n', f'digits"\n{ENGINES.format(engine)}\n', 1))
    edge.run("systemctl", "restart", "edged.service")


def use(edge: Machine, engine: str) -> None:
    """The same, and wait until it serves."""
    configure(edge, engine)
    edge.eventually(lambda: serving(edge).startswith(engine), BACK_S)
    edge.eventually(lambda: placed(edge).get("onnxruntime") == "proved", BACK_S)


def placed(edge: Machine) -> dict[str, str]:
    """How each engine of the pipeline stands."""
    return {one["name"]: one["placement"] for one in status(edge).get("engines", ())}


def loaded(edge: Machine, engine: str) -> int:
    """The process of an engine's worker, once it has the model; 0 before."""
    found = [one for one in status(edge).get("engines", ()) if one["name"] == engine and one["state"] == "ready"]
    return int(found[0]["pid"] or 0) if found else 0


def serving(edge: Machine) -> str:
    """The engine that has the frames, and its worker's process."""
    for one in status(edge).get("engines", ()):
        if one["placement"] == "serving" and one["state"] == "ready" and one["pid"]:
            return f"{one['name']} {one['pid']}"
    return ""


def worker(edge: Machine) -> int:
    """The process of the worker that serves."""
    return int(serving(edge).split()[1])


def unit_of(edge: Machine, process: int) -> str:
    """The unit in whose cgroup a process is."""
    found = re.search(r"/([^/\n]+\.service)", edge.run("cat", f"/proc/{process}/cgroup").stdout)
    return found[1] if found else ""


def units(edge: Machine) -> list[str]:
    """The units of workers of Lava."""
    lines = edge.run("systemctl", "list-units", "--plain", "--no-legend", "edged-worker-lava*").stdout.splitlines()
    return [line.split()[0] for line in lines]


def kill(edge: Machine, unit: str) -> None:
    """End the main process of a unit."""
    edge.run("kill", "-KILL", edge.show(unit, "MainPID"))


def processes_of(edge: Machine, unit: str) -> list[str]:
    """The processes in the cgroup of a unit."""
    found = edge.run("sh", "-c", f"grep -sl {unit} /proc/[0-9]*/cgroup || true").stdout
    return re.findall(r"/proc/(\d+)/", found)


def back(edge: Machine, lost: str) -> None:
    """Wait until a worker of Lava other than the lost one serves, and see a frame of its own.

    The status is written once a second: for that long it may still name the lost one.
    """
    edge.eventually(lambda: serving(edge).startswith("lava ") and serving(edge) != lost, BACK_S)
    name = f"back{time.monotonic_ns()}"
    feed(edge, name)
    edge.eventually(lambda: results(edge, name))
    assert engines_of(results(edge, name)) == {"lava": 1}


def engines_of(rows: dict[str, dict[str, Any]]) -> Counter[str]:
    """How many frames each engine answered. Fails where one got no result."""
    assert Counter(row["kind"] for row in rows.values()) == {"result": len(rows)}
    return Counter(str(row["engine"]) for row in rows.values())


def traces(edge: Machine) -> set[str]:
    """Whatever carries Lava's name on the machine; the journal tells of the past, and may."""
    found = edge.run("find", "/", "-xdev", "-regex", "/\\(proc\\|var/log\\)", "-prune", "-o",
                     "(", "-name", "*edged-lava*", "-o", "-name", "*worker-lava*", ")", "-print").stdout  # fmt: skip
    # systemd itself keeps a note of each unit that ran until the next boot.
    found += edge.run("find", "/run", "/tmp", "/dev/shm", "-path", "/run/systemd", "-prune", "-o",
                      "-name", "*lava*", "-print").stdout  # fmt: skip
    return set(found.split())


def test_a_worker_of_lava_runs_in_a_unit_of_its_own(edge: Machine) -> None:
    feed(edge, "first")
    edge.eventually(lambda: results(edge, "first"))
    rows = results(edge, "first")
    assert engines_of(rows) == {"lava": 1}
    assert [row["body"]["label"] for row in rows.values()] == ["7"]
    process = worker(edge)
    unit = unit_of(edge, process)
    assert unit.startswith("edged-worker-lava@") and unit in units(edge)
    assert unit_of(edge, pid(edge)) == "edged.service"
    assert int(edge.show(unit, "MemoryMax")) == MEMORY
    assert edge.run("stat", "--format=%U", f"/proc/{process}").stdout.strip() == "edged-worker"
    assert edge.run("readlink", f"/proc/{process}/exe").stdout.startswith(str(OF_A_DEVICE))
    told = edge.run("systemd-analyze", "security", unit).stdout
    assert float(re.findall(r"Overall exposure level for \S+: ([0-9.]+)", told)[0]) <= EXPOSURE


def test_a_check_proves_the_model_in_such_a_unit(edge: Machine) -> None:
    """Though no interpreter is named in the configuration; without the unit there is none."""
    said = edge.run("edged", "check").stdout
    assert re.search(r"ok.* on lava$", said, re.MULTILINE), said
    edge.run("systemctl", "stop", SOCKET)
    without = edge.run("edged", "check", check=False)
    edge.run("systemctl", "start", SOCKET)
    assert without.returncode != 0
    assert "install the package of lava" in without.stdout


def test_a_killed_unit_hands_its_frames_to_the_next_engine_and_comes_back(edge: Machine) -> None:
    daemon, lost, unit = pid(edge), serving(edge), unit_of(edge, worker(edge))
    feed(edge, "killed", BURST)
    edge.eventually(lambda: len(results(edge, "killed")) > 10)
    kill(edge, unit)
    edge.eventually(lambda: len(results(edge, "killed")) == BURST, BACK_S)
    answered = engines_of(results(edge, "killed"))
    print(f"of {BURST} frames, with the main process of {unit} killed: {dict(answered)}")
    assert answered["lava"] > 0 and answered["onnxruntime"] > 0
    back(edge, lost)
    assert pid(edge) == daemon
    assert unit not in units(edge)


def test_control_while_nobody_kills_it_all_frames_are_lavas(edge: Machine) -> None:
    feed(edge, "unharmed", BURST)
    edge.eventually(lambda: len(results(edge, "unharmed")) == BURST, BACK_S)
    assert engines_of(results(edge, "unharmed")) == {"lava": BURST}


def greedy(edge: Machine, limit: str) -> None:
    """Workers of Lava that take 600 MiB for a white frame, in a unit with such a limit."""
    there = "/opt/edged/greedy_engine.py"
    edge.put(there, Path(greedy_engine.__file__).read_text())
    start = "/opt/edged/bin/python -I -m edged.engines.attendant lava --python /opt/edged-lava/bin/python"
    greed = "GREED_MIB=600 GREED_OF=edged.engines.worker.lava.cpu"
    edge.drop_in(
        WORKER,
        f"[Service]\nMemoryMax={limit}\nEnvironment={greed}\nExecStart=\nExecStart={start} --engine-file {there}\n",
    )
    use(edge, "lava")


def test_a_worker_over_its_memory_ends_alone_and_its_frame_is_answered_by_the_next_engine(edge: Machine) -> None:
    greedy(edge, "400M")
    daemon, lost = pid(edge), serving(edge)
    other = [one for one in status(edge)["engines"] if one["name"] == "onnxruntime"]
    feed(edge, "greedy", value="white")
    edge.eventually(lambda: results(edge, "greedy"))
    assert engines_of(results(edge, "greedy")) == {"onnxruntime": 1}
    edge.eventually(lambda: serving(edge) == f"onnxruntime {other[0]['pid']}", within_s=10)
    back(edge, lost)
    assert pid(edge) == daemon


def test_control_with_room_the_same_worker_answers(edge: Machine) -> None:
    greedy(edge, "infinity")
    feed(edge, "roomy", value="white")
    edge.eventually(lambda: results(edge, "roomy"))
    assert engines_of(results(edge, "roomy")) == {"lava": 1}


def test_lavas_own_runtime_keeps_to_its_unit(edge: Machine) -> None:
    """Its processes are in the cgroup, its shared memory is the unit's alone, and none of it is left after a kill."""
    configure(edge, "lava-sim")
    edge.eventually(lambda: loaded(edge, "lava-sim"))  # and then it proves the model, which takes it a minute
    process = loaded(edge, "lava-sim")
    unit = unit_of(edge, process)
    processes = processes_of(edge, unit)
    names = edge.run("nsenter", f"--target={process}", "--mount", "ls", "/dev/shm").stdout.split()
    print(f"{unit}: {len(processes)} processes, {len(names)} segments of shared memory")
    assert len(processes) > 5
    assert [name for name in names if name.startswith("psm_edged_")]
    assert not [name for name in edge.run("ls", "/dev/shm").stdout.split() if name.startswith("psm_")]
    kill(edge, unit)
    edge.eventually(lambda: processes_of(edge, unit) == [])
    use(edge, "lava")


def test_upgrade_removal_and_purge_leave_nothing_and_the_daemon_goes_on(
    edge: Machine, deb: Path, tmp_path: Path
) -> None:
    daemon, lost = pid(edge), serving(edge)
    assert traces(edge)
    install(edge, as_version(deb, "99.0", tmp_path))
    assert edge.run("dpkg-query", "--show", "--showformat=${Version}", "edged-lava").stdout == "99.0"
    back(edge, lost)  # its files are gone

    edge.run("systemctl", "disable", SOCKET)
    edge.run("/var/lib/dpkg/info/edged-lava.postinst", "configure", "99.0")
    assert edge.run("systemctl", "is-enabled", SOCKET, check=False).stdout.strip() == "disabled"
    edge.run("systemctl", "enable", SOCKET)

    edge.put(f"/etc/systemd/system/{WORKER}.d/override.conf", "[Service]\nMemoryMax=3G\n")
    feed(edge, "removed", BURST)
    edge.run("dpkg", "--remove", "edged-lava", timeout_s=120)
    assert units(edge) == []
    edge.eventually(lambda: len(results(edge, "removed")) == BURST, BACK_S)
    feed(edge, "after")
    edge.eventually(lambda: results(edge, "after"))
    assert engines_of(results(edge, "after")) == {"onnxruntime": 1}
    engines_of(results(edge, "removed"))
    assert pid(edge) == daemon
    assert not (edge.root / "opt/edged-lava").exists()
    edge.run("dpkg", "--purge", "edged-lava", timeout_s=120)
    assert traces(edge) == set()
