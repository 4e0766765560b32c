"""A device comes and goes under an engine with real workers: the work goes on elsewhere, and returns with it."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edged.engines.engine import WorkerEngine
from edged.engines.placed import PlacedEngine
from edged.errors import EngineLost
from edged.placement import State
from tests.integration.test_placed_engine import FIRST, SECOND, placed, takes_all, until
from tests.support.fault_engine import marker
from tests.support.parts import require
from tests.support.plans import frames, make_job
from tests.support.tree import ROOT
from tests.support.umock import command

PULLED = "it was unplugged"
ON_STICK = replace(FIRST, device="coral")


async def until_state(engine: PlacedEngine, name: str, state: State) -> None:
    async with asyncio.timeout(10):
        while engine.placement.sites[name].state is not state:
            await asyncio.sleep(0.01)


def test_an_engine_whose_device_is_pulled_loses_its_worker_and_returns_with_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with placed(make_job(tmp_path), ON_STICK, SECOND) as engine:
            assert engine.devices == {"first": "coral"}
            for _ in range(2):
                assert engine.working() == ("first",)
                engine.tell_device("first", PULLED)
                answer = await engine.infer(frames(1))  # waits for the next engine, raises nothing
                assert answer.engine == "second" and engine.working() == ("second",)
                first = engine.all_facts()[0]
                assert (first.placement, first.reason, first.pid) == ("absent", PULLED, None)
                engine.tell_device("first", "")
                await until(engine, "first")
                assert (await engine.infer(frames(1))).engine == "first"
                await until_state(engine, "second", State.IDLE)

    asyncio.run(main())


def test_a_frame_that_is_with_the_device_comes_back_at_once(tmp_path: Path) -> None:
    """The worker hangs in its device: the caller hears of it long before the deadline of its call."""

    async def main() -> None:
        spec = replace(ON_STICK, deadline_s=30.0)
        async with placed(make_job(tmp_path), spec, SECOND) as engine:
            inputs = frames(1)
            inputs["x"][0, 0] = marker("hang")
            call = asyncio.create_task(engine.infer(inputs))
            await asyncio.sleep(0.2)
            engine.tell_device("first", PULLED)
            with pytest.raises(EngineLost):
                async with asyncio.timeout(5):
                    await call
            assert (await engine.infer(frames(1))).engine == "second"

    asyncio.run(main())


@pytest.mark.slow
def test_a_device_that_is_pulled_while_its_engine_is_proved_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        slow = asyncio.Event()

        async def examine(engine: WorkerEngine) -> float | None:
            if engine.name == "first":
                await slow.wait()
            return await takes_all(engine)

        engine = PlacedEngine([ON_STICK, SECOND], make_job(tmp_path), examine)
        running = asyncio.create_task(engine.run())
        await until_state(engine, "first", State.TRYING)
        engine.tell_device("first", PULLED)
        await until(engine, "second")
        assert engine.placement.sites["first"].state is State.ABSENT
        slow.set()
        np.testing.assert_equal((await engine.infer(frames(1))).engine, "second")
        engine.tell_device("first", "")
        await until(engine, "first")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert engine.working() == ()

    asyncio.run(main())


def test_an_engine_whose_device_never_came_is_not_started(tmp_path: Path) -> None:
    async def main() -> None:
        engine = PlacedEngine([ON_STICK], make_job(tmp_path), takes_all)
        engine.tell_device("first", "there is no device coral")
        running = asyncio.create_task(engine.run())
        with pytest.raises(EngineLost, match="there is no device coral"):
            await engine.wait_serving(1)
        assert engine.decisions == type(engine.decisions)([], maxlen=engine.decisions.maxlen)
        engine.tell_device("first", "")  # plugged in at last
        await until(engine, "first")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moves_the_work", "tells_the_daemon"])
def test_a_stick_that_udev_sees_come_and_go(name: str, tmp_path: Path) -> None:
    """The whole way: made-up stick, udev's events, table of devices, placement, real workers."""
    require("umockdev", "udev tools")
    scenario = command(name, str(tmp_path))
    done = subprocess.run(scenario, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
