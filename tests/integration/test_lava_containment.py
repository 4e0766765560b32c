"""Lava's own runtime leaves nothing behind, whoever is killed: worker, child, daemon; and what it leaves unguarded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edged.bundle.loaded import Bundle
from edged.bundle.plans import ensure_plans
from edged.bundle.selftest import prove
from edged.engines.engine import WorkerEngine, open_engine
from edged.engines.life import Job, WorkerSpec
from edged.engines.worker.lava import containment
from edged.engines.worker.lava.containment import FOLDER, SEGMENT, SEGMENTS, mark, sweep
from edged.errors import EngineLost
from tests.support.bundles import make_bundle
from tests.support.lava import lava_python
from tests.support.tree import ROOT

GONE_S = 15.0
BUILT_S = 60.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("lava") / "sequence", kind="sequence")


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """Whatever a test makes is gone after it, without anybody's help."""
    before = set(traces())
    yield
    wait_until(lambda: set(traces()) <= before)


def traces() -> list[Path]:
    """Segments and directories of Lava's runtimes."""
    return [*SEGMENTS.glob("psm_*"), *Path(tempfile.gettempdir()).glob(f"{FOLDER}*")]


def group(leader: int) -> list[int]:
    """The living processes of a group but its leader."""
    members = []
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            stat = (path / "stat").read_text().rpartition(")")[2].split()
            if int(stat[2]) == leader and stat[0] != "Z" and int(path.name) != leader:
                members.append(int(path.name))
    return members


def started(pid: int) -> int:
    """When it was, in ticks since boot; numbers of processes begin anew some day."""
    return int(mark(pid).partition("-")[2])


def wait_until(condition: Callable[[], bool], timeout_s: float = GONE_S) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, f"not within {timeout_s:g} s: {[str(path) for path in traces()]}"
        time.sleep(0.05)


def in_sim(bundle: Bundle, cache: Path, use: Callable[[WorkerEngine], object], deadline_s: float = 30.0) -> None:
    async def main() -> None:
        plans = await ensure_plans(bundle, cache)
        spec = WorkerSpec("lava-sim", lava_python(), deadline_s=deadline_s, load_deadline_s=BUILT_S)
        async with open_engine(spec, Job(bundle, 4, plans, cache)) as engine:
            assert (await engine.infer(frames(bundle))).readout.any()
            done = use(engine)
            if asyncio.iscoroutine(done):
                await done

    asyncio.run(main())


def frames(bundle: Bundle) -> dict[str, np.ndarray]:
    return {"frames": np.full((bundle.timesteps, 1, 5), 1.5, np.float32)}


async def lost(engine: WorkerEngine, pid: int) -> str:
    """Wait until the worker is another one, or none, and say why the first was lost."""
    give_up = time.monotonic() + GONE_S
    while engine.facts().pid == pid or not engine.loss:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)
    return engine.loss


@pytest.mark.slow
def test_a_model_proves_itself_in_lavas_own_runtime_which_ends_with_the_worker(bundle: Bundle, tmp_path: Path) -> None:
    async def use(engine: WorkerEngine) -> None:
        report = await prove(engine, bundle)
        assert report.passed, report.reason
        assert len(group(engine.facts().pid or 0)) > 5

    in_sim(bundle, tmp_path, use)


def test_a_killed_worker_takes_everything_along(bundle: Bundle, tmp_path: Path) -> None:
    async def use(engine: WorkerEngine) -> None:
        pid = engine.facts().pid
        assert pid is not None
        assert any(mark(pid) in path.name for path in traces())
        children = group(pid)
        assert len(children) > 5
        os.kill(pid, signal.SIGKILL)
        await lost(engine, pid)
        wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))

    in_sim(bundle, tmp_path, use)


def test_a_killed_child_of_lavas_ends_the_worker_at_once(bundle: Bundle, tmp_path: Path) -> None:
    async def use(engine: WorkerEngine) -> None:
        pid = engine.facts().pid
        assert pid is not None
        children = group(pid)
        victim = max(children, key=started)  # last: a process of the network
        began = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        assert "a process of Lava's runtime has died" in await lost(engine, pid)
        assert time.monotonic() - began < 10  # and not at the deadline of the next call, 30 s
        wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))

    in_sim(bundle, tmp_path, use)


@pytest.mark.slow
def test_a_stopped_child_of_lavas_is_ended_by_the_deadline(bundle: Bundle, tmp_path: Path) -> None:
    async def use(engine: WorkerEngine) -> None:
        pid = engine.facts().pid
        assert pid is not None
        children = group(pid)
        for child in children:
            os.kill(child, signal.SIGSTOP)
        with pytest.raises(EngineLost, match="did not answer INFER"):
            await engine.infer(frames(bundle))
        wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))

    in_sim(bundle, tmp_path, use, deadline_s=4.0)


UNGUARDED = (
    "import edged.engines.worker.lava.runtime as r; r.enclose = lambda: None; r.watch = lambda *_: lambda: None; "
)
RUN = """\
import sys, time
from pathlib import Path
from edged.engines.worker.lava import sim
from edged.engines.worker.lava.network import read
from edged.engines.worker.lava.spec import read_graph, read_spec
place = Path(sys.argv[1])
spec = read_spec(place)
model = sim.make(read(read_graph(place), spec), spec, place)
print("built", flush=True)
time.sleep(600)
"""


@pytest.fixture
def place(bundle: Bundle, tmp_path: Path) -> Path:
    """A directory with what a network is built from."""
    plans = asyncio.run(ensure_plans(bundle, tmp_path / "cache"))
    (tmp_path / "step.onnx").write_bytes((plans / "step.onnx").read_bytes())
    (tmp_path / "manifest.json").write_bytes((bundle.path / "manifest.json").read_bytes())
    return tmp_path


def start(place: Path, code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [lava_python(), "-c", code, str(place)], cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "built\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.4, 0.8, 1.2, 1.6, 2.0, 2.4])
def test_a_worker_that_is_killed_while_it_starts_leaves_nothing(place: Path, delay_s: float) -> None:
    process = subprocess.Popen(
        [lava_python(), "-c", RUN, str(place)], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL
    )
    time.sleep(delay_s)
    process.kill()
    process.wait()
    wait_until(lambda: not group(process.pid))


def test_control_without_the_guard_processes_and_segments_stay(place: Path) -> None:
    before = set(traces())
    process = start(place, UNGUARDED + RUN)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)
    left, orphans = set(traces()) - before, group(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    wait_until(lambda: not group(process.pid))
    after = set(traces()) - before
    for path in after:
        path.unlink()
    assert len(orphans) > 5
    assert left and after  # nobody removes a segment whose processes were all killed
    assert process.stdout is not None
    process.stdout.close()


def guards(worker: int) -> list[int]:
    found = subprocess.run(["pgrep", "-f", f"containment.py {worker} "], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def test_what_a_guard_leaves_that_was_killed_with_its_worker_is_swept_by_the_next_start(place: Path) -> None:
    process = start(place, RUN)
    mine = mark(process.pid)
    os.kill(process.pid, signal.SIGSTOP)  # it cannot replace the guard
    (guard,) = guards(process.pid)
    os.kill(guard, signal.SIGKILL)
    sweep()
    held = [path for path in traces() if mine in path.name]
    assert any(path.name.startswith(SEGMENT) for path in held)  # it lives: nothing of it was touched
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert [path for path in traces() if mine in path.name] == held
    sweep()
    assert not [path for path in traces() if mine in path.name]
    assert process.stdout is not None
    process.stdout.close()


def test_a_killed_guard_is_replaced_and_the_next_one_takes_everything_along(place: Path) -> None:
    process = start(place, RUN)
    mine = mark(process.pid)
    for _ in range(3):
        (guard,) = guards(process.pid)
        os.kill(guard, signal.SIGKILL)
        wait_until(lambda was=guard: guards(process.pid) not in ([], [was]))  # type: ignore[misc]  # bound in the loop
    assert any(mine in path.name for path in traces())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not group(process.pid) and not [path for path in traces() if mine in path.name])
    assert process.stdout is not None
    process.stdout.close()


def test_a_start_sweeps_though_it_never_loads_a_model() -> None:
    left = SEGMENTS / f"{SEGMENT}{os.getpid()}-1_ab"  # of a process that had this one's number
    left.touch()
    code = "from edged.engines.worker.lava import sim"
    for more, stays in (("", True), ("; sim.Engine()", False)):  # the first is the control
        subprocess.run([lava_python(), "-c", code + more], cwd=ROOT, check=True, timeout=60)
        assert left.exists() is stays


def test_a_number_that_was_given_again_protects_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containment, "SEGMENTS", tmp_path)
    own, stranger = f"{SEGMENT}{mark(os.getpid())}_ab", f"{SEGMENT}{os.getpid()}-1_ab"
    odd = f"{SEGMENT}x-y_ab"
    for name in (own, stranger, odd, "psm_1234"):
        (tmp_path / name).touch()
    sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([own, "psm_1234"])


DAEMON = """\
import asyncio, sys
from pathlib import Path
from edged.bundle.loaded import open_bundle
from edged.bundle.plans import ensure_plans
from edged.engines.engine import open_engine
from edged.engines.life import Job, WorkerSpec
async def main():
    bundle, cache = open_bundle(Path(sys.argv[1])), Path(sys.argv[2])
    job = Job(bundle, 1, await ensure_plans(bundle, cache), cache)
    async with open_engine(WorkerSpec("lava-sim", sys.argv[3], load_deadline_s=60.0), job) as engine:
        print(engine.facts().pid, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.slow
def test_a_killed_daemon_takes_everything_along(bundle: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DAEMON, str(bundle.path), str(tmp_path), lava_python()]
    daemon = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    worker = int(daemon.stdout.readline())
    children = group(worker)
    assert len(children) > 5
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in [worker, *children]))
