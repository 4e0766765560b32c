"""A spare worker: the next one loads at once, a dead spare is replaced, and none is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from edged.engines import spare as spares
from edged.engines.engine import WorkerEngine
from edged.engines.life import WorkerSpec
from edged.engines.placed import PlacedEngine
from edged.placement import Placement, State
from tests.support import fault_engine
from tests.support.plans import frames, make_job

SPEC = WorkerSpec("echo", deadline_s=2.0, load_deadline_s=20.0, engine_file=Path(fault_engine.__file__))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "PAUSE_S", 0.05)


@asynccontextmanager
async def running(tmp_path: Path, *, spare: bool = True) -> AsyncIterator[WorkerEngine]:
    engine = WorkerEngine(SPEC, make_job(tmp_path), patience_s=20.0)
    task = asyncio.create_task(engine.run())
    try:
        await engine.wait_ready()
        if spare:
            engine.keep_spare()
        yield engine
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def spare_pid(engine: WorkerEngine, other_than: int | None = None) -> int:
    async with asyncio.timeout(20):
        while True:
            life = engine._spare._life
            if life is not None and life.hello is not None and life.pid not in (None, other_than):
                assert life.pid is not None
                return life.pid
            await asyncio.sleep(0.01)


async def answers(engine: WorkerEngine | PlacedEngine) -> int | None:
    """Ask; returns the worker that was seen."""
    inputs = frames(2)
    np.testing.assert_array_equal((await engine.infer(inputs)).readout, inputs["x"][:, :3])
    return engine.facts().pid


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


async def lost(engine: WorkerEngine) -> None:
    async with asyncio.timeout(10):
        while engine.stands:
            await asyncio.sleep(0.001)


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_the_spare_is_the_next_worker_and_another_one_takes_its_place(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as engine:
            first = await spare_pid(engine)
            kill(engine.facts().pid)
            await lost(engine)
            assert await answers(engine) == first
            second = await spare_pid(engine)
            assert second != first
            kill(engine.facts().pid)
            await lost(engine)
            assert await answers(engine) == second
            third = await spare_pid(engine)
        assert all(is_gone(pid) for pid in (first, second, third))

    asyncio.run(main())


def test_control_without_one_the_next_worker_is_new(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, spare=False) as engine:
            kill(engine.facts().pid)
            await lost(engine)
            await answers(engine)
            assert engine._spare._life is None

    asyncio.run(main())


def test_a_spare_that_dies_is_replaced_and_harms_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as engine:
            worker, first = engine.facts().pid, await spare_pid(engine)
            kill(first)
            second = await spare_pid(engine, other_than=first)
            assert await answers(engine) == worker
            assert (engine.lost, engine.facts().restarts) == (0, 0)
        assert is_gone(second)

    asyncio.run(main())


def test_with_a_standby_the_engine_that_serves_has_a_spare_which_outlives_that_it_gave_way(tmp_path: Path) -> None:
    async def proved(engine: WorkerEngine) -> float | None:
        await engine.infer(frames(1))
        return None

    async def main() -> None:
        specs = [SPEC, WorkerSpec("other", load_deadline_s=20.0, engine_file=SPEC.engine_file)]
        placement = Placement(["echo", "other"], standby=True)
        engine = PlacedEngine(specs, make_job(tmp_path), proved, placement)
        task = asyncio.create_task(engine.run())
        await engine.wait_serving(None)
        first = engine._posts["echo"].engine
        pid = await spare_pid(first)
        async with asyncio.timeout(20):
            while placement.sites["other"].state is not State.PROVED:
                await asyncio.sleep(0.01)
            kill(first.facts().pid)
            while engine.name != "other" or first in engine._engines():
                await asyncio.sleep(0.01)
        assert await answers(engine) is not None
        assert await spare_pid(first) == pid
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert is_gone(pid)

    asyncio.run(main())
