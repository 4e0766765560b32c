"""Who ended a worker: its own doing (and its model's), or somebody else. Trials are judged by that."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from edged.engines.engine import WorkerEngine
from edged.engines.life import Job, WorkerSpec
from edged.errors import EngineCrashed, EngineLost
from edged.supervisor import Budget
from tests.support import fault_engine
from tests.support.fault_engine import marker
from tests.support.plans import frames, make_job

SPEC = WorkerSpec("echo", deadline_s=1.0, load_deadline_s=20.0, engine_file=Path(fault_engine.__file__))
QUICK = Budget(first_s=0.02, longest_s=0.05, failures=3, quarantine_s=0.4)


@asynccontextmanager
async def running(job: Job) -> AsyncIterator[WorkerEngine]:
    engine = WorkerEngine(SPEC, job, budget=QUICK, patience_s=20.0)
    task = asyncio.create_task(engine.run())
    try:
        yield engine
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("act", ["segfault", "exit", "hang", "garbage", "engine"])
def test_what_a_worker_does_with_a_model_is_its_own_doing(tmp_path: Path, act: str) -> None:
    async def main() -> None:
        async with running(make_job(tmp_path)) as engine:
            inputs = frames(2)
            inputs["x"][1, 0] = marker(act)
            with pytest.raises(EngineCrashed):
                await engine.infer(inputs)
            await engine.infer(frames(2))
            assert (engine.crashes, engine.facts().restarts) == (1, 1)
        assert engine.crashes == 1, "the end that we asked for is nobody's crash"

    asyncio.run(main())


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_others_end_did_nothing(tmp_path: Path, signum: signal.Signals) -> None:
    async def main() -> None:
        async with running(make_job(tmp_path)) as engine:
            await engine.infer(frames(1))
            inputs = frames(1)
            inputs["x"][0, 0] = marker("hang")
            call = asyncio.create_task(engine.infer(inputs))
            await asyncio.sleep(0.2)
            pid = engine.facts().pid
            assert pid is not None
            os.kill(pid, signum)
            with pytest.raises(EngineLost, match=signum.name) as caught:
                await call
            assert not isinstance(caught.value, EngineCrashed)
            await engine.infer(frames(2))
            assert (engine.crashes, engine.facts().restarts) == (0, 1)
            assert engine.facts().reason == "" and signum.name in engine.loss, "though the next one is well"

    asyncio.run(main())


@pytest.mark.parametrize(("act", "crashed"), [("segfault", True), ("exit", False), ("hang", False)])
def test_before_it_serves_only_a_fault_is_its_own(tmp_path: Path, act: str, crashed: bool) -> None:
    async def main() -> None:
        job = make_job(tmp_path)
        model = replace(job.model, path=Path(f"/load-{act}"))  # type: ignore[type-var]  # a PlannedModel
        engine = WorkerEngine(replace(SPEC, load_deadline_s=2.0), replace(job, model=model), budget=QUICK)
        task = asyncio.create_task(engine.run())
        with pytest.raises(EngineLost) as caught:
            await engine.wait_ready()
        assert isinstance(caught.value, EngineCrashed) is crashed
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
