"""An engine that is ended while it ends its worker: the worker is reaped all the same, and calls hear of it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from edged.engines.engine import WorkerEngine
from edged.engines.life import BYE_S, WorkerLife, WorkerSpec
from edged.errors import EngineAway
from tests.support import fault_engine
from tests.support.plans import frames, make_job

SPEC = WorkerSpec("echo", deadline_s=5.0, load_deadline_s=20.0, engine_file=Path(fault_engine.__file__))
PATIENCE_S = 0.05  # with a worker that was asked to go and does not: less than it gets


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
