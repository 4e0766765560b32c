"""What a worker process costs beside the same session in this process. Prints a table, decides nothing.

``scripts/test --bench tests/bench/test_bench_engine.py``
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]  # ships no stubs
import pytest

from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.plans import ensure_plans
from edged.domain import Array
from edged.engines.engine import WorkerEngine, open_engine
from edged.engines.life import Job, WorkerSpec
from tests.support import fault_engine
from tests.support.bundles import make_bundle
from tests.support.device import BUNDLE, pss_mb
from tests.support.plans import frames, make_job

ROUNDS = 5  # A B A B …: both sides see the same weather
CALLS = 400  # a round
STARTS = 5


def windows(bundle: Bundle, batch: int) -> dict[str, Array]:
    random = np.random.default_rng(0)
    spec = bundle.inputs[0]
    shape = (bundle.timesteps, batch, *spec.shape) if spec.sequence else (batch, *spec.shape)
    return {spec.name: random.random(shape, dtype=np.float32)}


def session(plan: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return ort.InferenceSession(str(plan), options, providers=["CPUExecutionProvider"])


def here(same: ort.InferenceSession, inputs: Mapping[str, Array]) -> list[float]:
    """Microseconds of each call in this process."""
    taken = []
    for _ in range(CALLS):
        began = time.perf_counter_ns()
        same.run(None, inputs)
        taken.append((time.perf_counter_ns() - began) / 1000)
    return taken


async def there(engine: WorkerEngine, inputs: Mapping[str, Array]) -> tuple[list[float], list[float]]:
    """Microseconds of each call to the worker, and of the engine in it."""
    taken, inside = [], []
    for _ in range(CALLS):
        began = time.perf_counter_ns()
        inference = await engine.infer(inputs)
        taken.append((time.perf_counter_ns() - began) / 1000)
        inside.append(inference.engine_ns / 1000)
    return taken, inside


async def both(engine: WorkerEngine, inputs: Mapping[str, Array]) -> float:
    """Microseconds a call when two callers keep both slots filled."""
    began = time.perf_counter_ns()
    await asyncio.gather(there(engine, inputs), there(engine, inputs))
    return (time.perf_counter_ns() - began) / 1000 / (2 * CALLS)


def row(name: str, near: list[float], wire: list[float], inside: list[float], batch: int, two_us: float) -> str:
    beside_us = (statistics.median(wire) - statistics.median(inside)) / batch
    ends = "".join(f"{statistics.median(some):9.0f}{sorted(some)[len(some) * 99 // 100]:9.0f}" for some in (near, wire))
    return f"{name:24}{ends}{statistics.median(inside):9.0f}{beside_us:14.1f}{two_us:15.0f}"


@pytest.mark.bench
@pytest.mark.timeout(300)
def test_round_trips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table: list[str] = []

    async def echo() -> None:
        spec = WorkerSpec("echo", engine_file=Path(fault_engine.__file__))
        async with open_engine(spec, make_job(tmp_path / "echo")) as engine:
            await there(engine, frames(1))
            wire, inside = await there(engine, frames(1))
            table.append(row("the wire alone, batch 1", [0.0], wire, inside, 1, await both(engine, frames(1))))

    async def compare(name: str, bundle: Bundle) -> None:
        job = Job(bundle, 8, await ensure_plans(bundle, tmp_path / "cache"), tmp_path / "cache")
        async with open_engine(WorkerSpec("onnxruntime"), job) as engine:
            same = session(job.plan_dir / f"{engine.facts().plan}.onnx")
            for batch in (1, 8):
                inputs = windows(bundle, batch)
                near, wire, inside = [], [], []
                for _ in range(ROUNDS):
                    near += here(same, inputs)
                    far = await there(engine, inputs)
                    wire += far[0]
                    inside += far[1]
                table.append(row(f"{name}, batch {batch}", near, wire, inside, batch, await both(engine, inputs)))

    asyncio.run(echo())
    asyncio.run(compare("conv 1x8x8", make_bundle(tmp_path / "conv", kind="conv")))
    asyncio.run(compare("digits", open_bundle(BUNDLE)))
    with capsys.disabled():
        print(f"\n{'µs a call':24}{'here p50':>9}{'p99':>9}{'wire p50':>9}{'p99':>9}{'engine':>9}", end="")
        print(f"{'beside/frame':>14}{'two in flight':>15}", *table, sep="\n")


@pytest.mark.bench
@pytest.mark.timeout(300)
def test_starts_and_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = open_bundle(BUNDLE)

    async def start(cache: Path, plans: Path) -> tuple[float, float]:
        async with open_engine(WorkerSpec("onnxruntime"), Job(bundle, 8, plans, cache)) as engine:
            await engine.infer(windows(bundle, 8))
            assert engine._life is not None
            assert engine._life.pid is not None
            return engine._life.start_s, pss_mb(engine._life.pid)

    async def measure() -> dict[str, list[tuple[float, float]]]:
        plans = await ensure_plans(bundle, tmp_path / "cache")
        cold = [await start(tmp_path / f"cold-{turn}", plans) for turn in range(STARTS)]
        return {"cold": cold, "warm": [await start(tmp_path / "cold-0", plans) for _ in range(STARTS)]}

    found = asyncio.run(measure())
    with capsys.disabled():
        print(f"\n{bundle.name}: from the worker's spawn to LOADED, median of {STARTS}")
        for name, starts in found.items():
            start_s, pss = (statistics.median(values) for values in zip(*starts, strict=True))
            print(f"  {name} plan cache {start_s:.3f} s, the worker's PSS {pss:.0f} MiB")
