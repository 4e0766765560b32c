"""Workers that are worn are replaced in peace: no call fails, no frame is tried twice, nothing counts as a loss."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edged.engines import life, process
from edged.engines.engine import WorkerEngine
from edged.engines.life import Job, WorkerSpec
from edged.engines.placed import PlacedEngine
from edged.errors import EngineLost
from tests.support import fault_engine
from tests.support.fault_engine import marker
from tests.support.plans import frames, make_job

SPEC = WorkerSpec("echo", deadline_s=2.0, load_deadline_s=20.0, engine_file=Path(fault_engine.__file__))


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "WATCH_S", 0.05)


@asynccontextmanager
async def running(spec: WorkerSpec, job: Job) -> AsyncIterator[WorkerEngine]:
    engine = WorkerEngine(spec, job, patience_s=20.0)
    task = asyncio.create_task(engine.run())
    try:
        await engine.wait_ready()
        yield engine
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ask_many(engine: WorkerEngine | PlacedEngine, count: int) -> set[int | None]:
    """Ask one call after the other, four at a time; returns the workers that were seen."""
    pids: set[int | None] = set()

    async def ask(first: int) -> None:
        for seed in range(first, count, 4):
            inputs = frames(2, seed)
            answer = await engine.infer(inputs)
            np.testing.assert_array_equal(answer.readout, inputs["x"][:, :3])
            pids.add(engine.facts().pid)
            await asyncio.sleep(0.002)

    await asyncio.gather(*(ask(first) for first in range(4)))
    return pids - {None}


def test_after_so_many_calls_a_new_worker_takes_its_place(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(replace(SPEC, recycle_calls=60), make_job(tmp_path)) as engine:
            assert len(await ask_many(engine, 400)) >= 3
            assert (engine.lost, engine.crashes) == (0, 0)

    asyncio.run(main())


def test_control_without_a_limit_the_worker_stays(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(SPEC, make_job(tmp_path)) as engine:
            assert len(await ask_many(engine, 400)) == 1

    asyncio.run(main())


def test_a_worker_that_grows_is_replaced_before_the_limit_takes_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(replace(SPEC, memory_limit_bytes=330 << 20), make_job(tmp_path)) as engine:
            await ask_many(engine, 20)
            await asyncio.sleep(0.2)  # its first memory is seen
            former, inputs = engine.facts().pid, frames(1)
            inputs["x"][0, 0] = marker("leak")
            await engine.infer(inputs)  # 256 MiB
            async with asyncio.timeout(10):
                while engine.facts().pid in (former, None) or engine.facts().state != "ready":
                    await asyncio.sleep(0.01)
            await ask_many(engine, 20)
            assert (engine.lost, engine.crashes, engine.loss) == (0, 0, "")

    asyncio.run(main())


def test_control_what_grows_over_the_limit_at_once_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "WATCH_S", 1.0)  # between two looks it is over the limit

    async def main() -> None:
        async with running(replace(SPEC, memory_limit_bytes=200 << 20), make_job(tmp_path)) as engine:
            inputs = frames(1)
            inputs["x"][0, 0] = marker("leak")
            with contextlib.suppress(EngineLost):  # where the look comes in the middle of it
                await engine.infer(inputs)
            async with asyncio.timeout(10):
                while not engine.lost:
                    await asyncio.sleep(0.01)
            assert "MiB of memory" in engine.loss

    asyncio.run(main())


def test_where_several_engines_may_serve_a_replacement_moves_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        first = replace(SPEC, engine="first", recycle_calls=60)

        async def proved(engine: WorkerEngine) -> float | None:
            await engine.infer(frames(1))
            return None

        engine = PlacedEngine([first, replace(SPEC, engine="second")], make_job(tmp_path), proved)
        task = asyncio.create_task(engine.run())
        await engine.wait_serving(None)
        assert len(await ask_many(engine, 400)) >= 3
        assert [one.act for one in engine.decisions] == ["try", "serve"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with pytest.raises(EngineLost):
            await engine.infer(frames(1))

    asyncio.run(main())


def test_what_a_worker_starts_counts_as_its_memory() -> None:
    code = "import sys, time; held = bytearray(b'x' * (64 << 20)); print(len(held), flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        family = process._family(os.getpid())
        assert child.pid in family
        assert process._proportional_bytes(child.pid) > 64 << 20
        child.kill()
