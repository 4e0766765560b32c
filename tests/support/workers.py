"""An engine with its worker under test: kept alive for a while, asked to misbehave, waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np

from edged.engines.engine import WorkerEngine
from edged.engines.life import Job, WorkerSpec
from edged.supervisor import Budget
from tests.support.fault_engine import marker
from tests.support.plans import frames

QUICK = Budget(first_s=0.02, longest_s=0.05, failures=3, quarantine_s=0.4)


@contextlib.asynccontextmanager
async def running(job: Job, spec: WorkerSpec, budget: Budget = QUICK) -> AsyncIterator[WorkerEngine]:
    """The engine while it runs; it has stopped afterwards."""
    engine = WorkerEngine(spec, job, budget=budget, patience_s=20.0)
    task = asyncio.create_task(engine.run())
    try:
        yield engine
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert engine.facts().state == "stopped"


def acting(act: str) -> dict[str, np.ndarray[Any, Any]]:
    """Two frames, of which the second has the engine of ``fault_engine`` do something."""
    inputs = frames(2)
    inputs["x"][1, 0] = marker(act)
    return inputs


async def eventually(true: Callable[[], bool], within_s: float = 5.0) -> None:
    """Return once it is true; TimeoutError after ``within_s``."""
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.01)


async def assert_echoes(engine: WorkerEngine) -> None:
    """It serves: the engine of ``fault_engine`` answers with what it was given."""
    inputs = frames(3, seed=5)
    np.testing.assert_array_equal((await engine.infer(inputs)).readout, inputs["x"][:, :3])


def children() -> set[int]:
    """The children of this process that nobody has reaped."""
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def alive(pid: int) -> bool:
    """Whether a process runs: a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
