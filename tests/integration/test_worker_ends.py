"""What a worker leaves behind when it ends, by itself, with its engine or with its daemon: nothing.

An engine that is ended while it ends its worker reaps it all the same, and calls hear of it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edged.engines.engine import WorkerEngine
from edged.engines.life import BYE_S, Job, WorkerLife, WorkerSpec
from edged.errors import EngineAway, EngineLost
from edged.supervisor import Budget
from tests.support import fault_engine
from tests.support.plans import frames, make_job
from tests.support.workers import acting, alive, assert_echoes, children, eventually, running

ENGINE_FILE = Path(fault_engine.__file__)
SPEC = WorkerSpec("echo", deadline_s=5.0, load_deadline_s=20.0, engine_file=ENGINE_FILE)
MARK = f"EDGED_TEST={os.getpid()}".encode()
PATIENCE_S = 0.05  # with a worker that was asked to go and does not: less than it gets


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path)


def test_an_engine_that_is_cancelled_twice_reaps_its_worker(tmp_path: Path) -> None:
    async def main() -> None:
        engine = WorkerEngine(SPEC, make_job(tmp_path))
        task = asyncio.create_task(engine.run())
        await engine.wait_ready()
        pid = engine.facts().pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # it will not answer BYE
        began = time.monotonic()
        for timeout_s in (PATIENCE_S, BYE_S):
            task.cancel()
            await asyncio.wait([task], timeout=timeout_s)
        assert task.cancelled()
        assert time.monotonic() - began < BYE_S
        with pytest.raises(ProcessLookupError):  # a zombie would still be found
            os.kill(pid, 0)
        async with asyncio.timeout(1.0):
            with pytest.raises(EngineAway):
                await engine.infer(frames(1))

    asyncio.run(main())


def test_a_worker_whose_end_was_cut_short_can_be_ended_again() -> None:
    async def main() -> None:
        life = WorkerLife(SPEC)
        pid = (await life.meet()).pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await life.end()
        assert life.ended.is_set()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert str(await life.end()) == "the worker was stopped"

    asyncio.run(main())


@pytest.mark.parametrize("turns", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_restarts_leave_no_process_no_descriptor_no_memory(job: Job, turns: int) -> None:
    def descriptors() -> list[str]:
        return sorted(link for link in map(_link, Path("/proc/self/fd").iterdir()) if link)

    async def main() -> None:
        budget = Budget(first_s=0.001, longest_s=0.01, failures=1000)
        async with running(job, SPEC, budget=budget) as engine:
            await assert_echoes(engine)
            gc.collect()  # what earlier tests left
            before, shm, mapped = descriptors(), sorted(Path("/dev/shm").iterdir()), _mapped()
            for turn in range(turns):
                with pytest.raises(EngineLost):
                    await engine.infer(acting(("exit", "segfault", "garbage", "family", "engine")[turn % 5]))
            await assert_echoes(engine)
            assert _mapped() == mapped, "not even until the next collection"
            gc.collect()
            assert len(descriptors()) == len(before), (before, descriptors())
            assert sorted(Path("/dev/shm").iterdir()) == shm
            assert len(children()) == 1
            assert engine.facts().restarts == turns

    asyncio.run(main())
    assert children() == set()


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def _mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:edged-tensors")


def test_children_of_a_worker_end_with_it(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*MARK.decode().split("="))

    async def main() -> None:
        async with running(job, SPEC) as engine:
            await engine.infer(acting("children"))

            assert _sleepers(), "the control: it has left a child behind"
            with pytest.raises(EngineLost):
                await engine.infer(acting("exit"))
            await eventually(lambda: not _sleepers())

    asyncio.run(main())


def _sleepers() -> list[Path]:
    """Children of workers of this process: they have its environment."""
    return [
        path
        for path in Path("/proc").glob("[0-9]*")
        if b"time.sleep(600)" in _read(path / "cmdline") and MARK in _read(path / "environ")
    ]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


DAEMON = """
import asyncio, sys, tempfile
from pathlib import Path
from edged.engines import life
from edged.engines.engine import open_engine
from edged.engines.life import WorkerSpec
from tests.support.plans import frames, make_job
from tests.support.workers import acting, alive, assert_echoes, children, eventually, running
from tests.support.workers import QUICK, acting, eventually, running
from tests.support.fault_engine import marker

async def main():
    job = make_job(Path(sys.argv[1]))
    spec = WorkerSpec("echo", deadline_s=60, engine_file=Path(sys.argv[2]))
    if sys.argv[3] == "unprotected":
        real = life.command
        life.command = lambda python, arguments: real(python, [*arguments[:3], *arguments[5:]])  # without --parent
    async with open_engine(spec, job) as engine:
        print(engine.facts().pid, flush=True)
        inputs = frames(1)
        if sys.argv[3] != "idle":
            inputs["x"][0, 0] = marker("hang")
            await engine.infer(inputs)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("work", ["idle", "busy", "unprotected"])
def test_a_worker_ends_within_a_second_of_its_killed_daemon(tmp_path: Path, work: str) -> None:
    command = [sys.executable, "-c", DAEMON, str(tmp_path), str(ENGINE_FILE), work]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        time.sleep(0.2)
        assert alive(pid)
        daemon.kill()
        deadline = time.monotonic() + 1.0
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        if work == "unprotected":  # the control: a busy worker that does not follow its parent outlives it
            assert alive(pid)
            os.kill(pid, signal.SIGKILL)
        else:
            assert not alive(pid)


def test_a_worker_stops_politely(job: Job) -> None:
    async def main() -> None:
        async with running(job, SPEC) as engine:
            await assert_echoes(engine)
            life = engine._life
            assert life is not None
        assert life._process is not None
        assert life._process.ending() == "exited with code 0 (OK)"

    asyncio.run(main())
