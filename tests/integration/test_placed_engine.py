"""One model on two engines in real workers: which one serves, and what becomes of calls when it is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edged.engines.engine import WorkerEngine
from edged.engines.life import Job, WorkerSpec
from edged.engines.placed import Examine, PlacedEngine
from edged.errors import BundleError, EngineError, EngineLost, EngineRefused
from edged.placement import Patience, Placement, State
from edged.supervisor import Budget
from tests.support import fault_engine
from tests.support.fault_engine import marker
from tests.support.plans import frames, make_job

FIRST = WorkerSpec("first", deadline_s=1.0, load_deadline_s=20.0, engine_file=Path(fault_engine.__file__))
SECOND = replace(FIRST, engine="second")
SLOW_RESTART = Budget(first_s=2.0, longest_s=2.0)
IMPATIENT = Patience(urgent_s=0.05, urgent_longest_s=0.2, return_s=0.3, longest_s=0.5, steady_s=60.0)


async def takes_all(engine: WorkerEngine) -> float | None:
    """A proof that everything passes."""
    await engine.infer(frames(1))
    return None


@asynccontextmanager
async def placed(
    job: Job,
    *specs: WorkerSpec,
    examine: Examine = takes_all,
    budget: Budget | None = None,
    attempts: int | None = None,
    standby: bool = False,
) -> AsyncIterator[PlacedEngine]:
    placement = Placement([spec.engine for spec in specs], standby=standby, patience=IMPATIENT)
    engine = PlacedEngine(specs, job, examine, placement, budget)
    task = asyncio.create_task(engine.run())
    try:
        await engine.wait_serving(attempts)
        yield engine
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(engine: PlacedEngine, name: str, timeout_s: float = 10.0) -> None:
    """Wait until an engine has the frames."""
    async with asyncio.timeout(timeout_s):
        while (site := engine.placement.serving) is None or site.engine != name or site.state is not State.SERVING:
            await asyncio.sleep(0.01)


def pid_of(engine: PlacedEngine, name: str) -> int:
    pid = next(facts.pid for facts in engine.all_facts() if facts.name == name)
    assert pid is not None
    return pid


def test_the_preferred_engine_serves_and_the_other_has_no_worker(tmp_path: Path) -> None:
    async def main() -> None:
        async with placed(make_job(tmp_path), FIRST, SECOND) as engine:
            inputs = frames(2)
            answer = await engine.infer(inputs)
            np.testing.assert_array_equal(answer.readout, inputs["x"][:, :3])
            assert (answer.engine, engine.name) == ("first", "first")
            first, second = engine.all_facts()
            assert (first.placement, second.placement, second.pid) == ("serving", "idle", None)
            assert [(one.engine, one.act) for one in engine.decisions] == [("first", "try"), ("first", "serve")]

    asyncio.run(main())


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV])
def test_calls_that_wait_go_to_the_next_engine_when_the_worker_dies(tmp_path: Path, signum: signal.Signals) -> None:
    async def main() -> None:
        async with placed(make_job(tmp_path), FIRST, SECOND, budget=SLOW_RESTART) as engine:
            os.kill(pid_of(engine, "first"), signum)
            start = time.monotonic()
            answers = await asyncio.gather(
                *(engine.infer(frames(1, seed)) for seed in range(20)), return_exceptions=True
            )
            lost = [answer for answer in answers if isinstance(answer, EngineLost)]
            assert len(lost) <= 2, "only what was with the worker comes back as lost"
            again = [await engine.infer(frames(1, seed)) for seed in range(20)]
            assert {answer.engine for answer in again} == {"second"}
            assert time.monotonic() - start < 2.0

    asyncio.run(main())


@pytest.mark.parametrize("act", ["hang", "stop", "garbage", "engine"])
def test_whatever_takes_the_worker_the_next_engine_serves_within_a_deadline(tmp_path: Path, act: str) -> None:
    async def main() -> None:
        async with placed(make_job(tmp_path), FIRST, SECOND, budget=SLOW_RESTART) as engine:
            inputs = frames(1)
            inputs["x"][0, 0] = marker(act)
            with pytest.raises(EngineLost):
                await engine.infer(inputs)
            start = time.monotonic()
            assert (await engine.infer(frames(1))).engine == "second"
            assert time.monotonic() - start < FIRST.deadline_s

    asyncio.run(main())


def test_a_healed_engine_takes_its_place_again_and_no_call_is_lost(tmp_path: Path) -> None:
    async def main() -> None:
        async with placed(make_job(tmp_path), FIRST, SECOND, budget=SLOW_RESTART) as engine:
            os.kill(pid_of(engine, "first"), signal.SIGKILL)
            await until(engine, "second")
            used = set()
            async with asyncio.timeout(10):
                while "first" not in used or engine.name != "first":
                    used.add((await engine.infer(frames(2))).engine)  # raises nothing while it moves
            assert used == {"first", "second"}
            assert [one.reason for one in engine.decisions][-1] == "it is preferred, and proved the model"

    asyncio.run(main())


def test_a_lost_worker_is_counted_though_its_engine_gave_way(tmp_path: Path) -> None:
    async def main() -> None:
        async with placed(make_job(tmp_path), FIRST, SECOND, standby=True) as engine:
            for number, victim in enumerate(("first", "second", "first"), 1):
                async with asyncio.timeout(10):  # while the frames move, the one that they leave may end in peace
                    while [facts.placement for facts in engine.all_facts()] != ["serving", "proved"]:
                        await asyncio.sleep(0.01)
                os.kill(pid_of(engine, victim), signal.SIGKILL)
                async with asyncio.timeout(10):  # it is reaped first
                    while engine.lost < number:
                        await asyncio.sleep(0.01)
                assert (engine.lost, engine.crashes) == (number, 0)
                assert "SIGKILL" in engine.loss
        assert (engine.lost, engine.crashes) == (3, 0), "what is ended in peace is not lost"

    asyncio.run(main())


def test_a_worker_that_is_back_first_keeps_the_frames(tmp_path: Path) -> None:
    async def main() -> None:
        slow = {"second": 1.0}

        async def examine(engine: WorkerEngine) -> float | None:
            await asyncio.sleep(slow.get(engine.name, 0.0))
            return await takes_all(engine)

        async with placed(make_job(tmp_path), FIRST, SECOND, examine=examine, budget=Budget(first_s=0.01)) as engine:
            os.kill(pid_of(engine, "first"), signal.SIGKILL)
            await asyncio.sleep(0.05)
            assert (await engine.infer(frames(1))).engine == "first"
            async with asyncio.timeout(10):
                while engine.all_facts()[1].placement != "idle":
                    await asyncio.sleep(0.02)
            assert engine.name == "first"

    asyncio.run(main())


def test_a_standby_takes_over_without_a_start(tmp_path: Path) -> None:
    async def main() -> None:
        async with placed(make_job(tmp_path), FIRST, SECOND, budget=SLOW_RESTART, standby=True) as engine:
            async with asyncio.timeout(10):
                while engine.all_facts()[1].placement != "proved":
                    await asyncio.sleep(0.01)
            os.kill(pid_of(engine, "first"), signal.SIGKILL)
            start = time.monotonic()
            await until(engine, "second")
            assert (await engine.infer(frames(1))).engine == "second"
            assert time.monotonic() - start < 0.3

    asyncio.run(main())


def test_a_standby_that_dies_is_started_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with placed(make_job(tmp_path), FIRST, SECOND, standby=True) as engine:
            async with asyncio.timeout(10):
                while engine.all_facts()[1].placement != "proved":
                    await asyncio.sleep(0.01)
                former = pid_of(engine, "second")
                os.kill(former, signal.SIGKILL)
                while engine.all_facts()[1].pid in (None, former) or engine.all_facts()[1].placement != "proved":
                    await asyncio.sleep(0.01)
            assert (await engine.infer(frames(1))).engine == "first"

    asyncio.run(main())


def test_an_engine_whose_results_are_wrong_is_not_used_for_this_model(tmp_path: Path) -> None:
    async def main() -> None:
        async def examine(engine: WorkerEngine) -> float | None:
            if engine.name == "first":
                raise BundleError("steps: largest error 7 of its bound")
            return await takes_all(engine)

        async with placed(make_job(tmp_path), FIRST, SECOND, examine=examine) as engine:
            assert (await engine.infer(frames(1))).engine == "second"
            first, _ = engine.all_facts()
            assert (first.placement, first.pid) == ("unfit", None)
            assert first.reason == "steps: largest error 7 of its bound"

    asyncio.run(main())


def test_an_engine_whose_interpreter_is_missing_is_absent_and_the_next_one_serves(tmp_path: Path) -> None:
    async def main() -> None:
        away = replace(FIRST, python=str(tmp_path / "python"))
        async with placed(make_job(tmp_path), away, SECOND) as engine:
            assert engine.name == "second"
            assert engine.all_facts()[0].placement == "absent"
            assert "no interpreter" in engine.all_facts()[0].reason

    asyncio.run(main())


def test_where_no_engine_takes_the_model_each_one_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        async def refuse(engine: WorkerEngine) -> float | None:
            raise BundleError(f"{engine.name} is wrong")

        with pytest.raises(BundleError, match="first: first is wrong; second: second is wrong"):
            async with placed(make_job(tmp_path), FIRST, SECOND, examine=refuse):
                pass

    asyncio.run(main())


def test_an_engine_that_refuses_the_model_is_not_asked_again(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(EngineRefused, match="node mul_3"):
            async with placed(make_job(tmp_path / "load-refuse"), FIRST, SECOND):
                pass  # patience is for what may heal

    asyncio.run(main())


def test_without_patience_a_model_that_no_engine_loads_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(EngineError, match="no engine can run it"):
            async with placed(make_job(tmp_path / "load-engine"), FIRST, SECOND, attempts=2):
                pass

    asyncio.run(main())


def test_calls_end_with_the_engine(tmp_path: Path) -> None:
    async def main() -> None:
        async with placed(make_job(tmp_path), FIRST, SECOND) as engine:
            await engine.infer(frames(1))
        with pytest.raises(EngineLost, match="was stopped"):
            await engine.infer(frames(1))
        assert all(facts.pid is None for facts in engine.all_facts())

    asyncio.run(main())


def test_workers_killed_at_random_lose_no_call_that_is_asked_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with placed(make_job(tmp_path), FIRST, SECOND) as engine:
            chance, killed, answered = np.random.default_rng(5), 0, 0
            while killed < 4 or answered < 200:
                inputs = frames(2, answered)
                if chance.random() < 0.02 and engine.facts().pid is not None:
                    os.kill(pid_of(engine, engine.name), signal.SIGKILL)
                    killed += 1
                while True:
                    try:
                        answer = await engine.infer(inputs)
                        break
                    except EngineLost:
                        continue
                np.testing.assert_array_equal(answer.readout, inputs["x"][:, :3])
                answered += 1
                await asyncio.sleep(0.005)
            assert {one.engine for one in engine.decisions} == {"first", "second"}

    asyncio.run(main())
