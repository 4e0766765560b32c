"""Everything of the TensorRT engine that only a GPU can show, in one command. Skipped by name where there is none.

    EDGED_TENSORRT_PYTHON=/usr/bin/python3 scripts/test --slow tests/system/test_tensorrt_gpu.py -s

``EDGED_TENSORRT_PYTHON`` is an interpreter with NumPy and TensorRT (on a Jetson: the system's). If it has ONNX Runtime
with CUDA besides, that is timed too. ``EDGED_TENSORRT_ENGINES`` names the engines, ``tensorrt`` where it is left out;
``EDGED_TENSORRT_CYCLES`` how often a model is loaded and unloaded, 2,000. Written against the real API, as the bindings
and TensorRT for RTX confirm it, but it has not run on a GPU yet.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from edged.bundle.golden_form import load_golden
from edged.bundle.loaded import Bundle
from edged.bundle.plans import ensure_plans
from edged.bundle.selftest import prove
from edged.engines.engine import WorkerEngine, open_engine
from edged.engines.life import Job, WorkerLife, WorkerSpec
from edged.errors import EngineError, EngineLost
from tests.support.parts import optional
from tests.support.tensorrt import bundles
from tests.support.tree import ROOT

ENGINES = os.environ.get("EDGED_TENSORRT_ENGINES", "tensorrt").split(",")
CYCLES = int(os.environ.get("EDGED_TENSORRT_CYCLES", "2000"))
BUILD_S = 1800.0
MAX_BATCH = 8
ROUNDS = 300
FLAT_BYTES = (
    32 << 20
)  # that the driver and the allocator may keep; a leak of one small model a cycle is a hundred times that

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter whose worker greets: with a driver, a GPU and TensorRT."""
    found = os.environ.get("EDGED_TENSORRT_PYTHON", "")
    if not found:
        optional("a GPU with TensorRT", "EDGED_TENSORRT_PYTHON names its interpreter")

    async def meet() -> str:
        life = WorkerLife(WorkerSpec(ENGINES[0], found))
        try:
            hello = await life.meet()
        except EngineError as error:
            pytest.fail(f"EDGED_TENSORRT_PYTHON is set, but {await life.end(error)}", pytrace=False)
        await life.end()
        return hello.engine_version

    print(f"\n{ENGINES[0]} {asyncio.run(meet())}")
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, so that plans are built once."""
    return tmp_path_factory.mktemp("cache")


def spec(engine: str, python: str) -> WorkerSpec:
    return WorkerSpec(engine, python, deadline_s=30.0, load_deadline_s=BUILD_S, memory_limit_bytes=16 << 30)


def window(bundle: Bundle, batch: int) -> dict[str, np.ndarray]:
    entry, samples = bundle.inputs[0], load_golden(bundle)["free.input"].astype(np.float32)
    rows = np.resize(samples, (batch, *samples.shape[1:]))
    return {entry.name: np.ascontiguousarray(np.swapaxes(rows, 0, 1) if entry.sequence else rows)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bundle", bundles(), ids=lambda bundle: bundle.name)
def test_every_model_proves_itself(python: str, cache: Path, bundle: Bundle, engine: str) -> None:
    async def main() -> None:
        plans = await ensure_plans(bundle, cache, [engine])
        began = time.monotonic()
        async with open_engine(spec(engine, python), Job(bundle, MAX_BATCH, plans, cache)) as running:
            report = await prove(running, bundle)
            facts = running.facts()
            print(f"\n{engine} {bundle.name}: {facts.plan}, loaded and proved in {time.monotonic() - began:.1f} s")
            for check in report.checks:
                print(f"    {check.name}: {check.detail}")
        assert report.passed, report.reason

    asyncio.run(main())


async def timed(engine: WorkerEngine, feed: dict[str, np.ndarray]) -> tuple[float, float]:
    """Median microseconds in the engine, and from the pipeline's side."""
    inside, outside = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        inside.append((await engine.infer(feed)).engine_ns / 1000)
        outside.append(1e6 * (time.perf_counter() - began))
    return statistics.median(inside[20:]), statistics.median(outside[20:])


@pytest.mark.parametrize("bundle", bundles(), ids=lambda bundle: bundle.name)
def test_latency_and_throughput_beside_others(python: str, cache: Path, tmp_path: Path, bundle: Bundle) -> None:
    """Prints: one frame and a full batch, on TensorRT, on ONNX Runtime's CPU, and with CUDA where it is installed."""

    async def main() -> None:
        plans = await ensure_plans(bundle, cache, ENGINES)
        for batch in (1, MAX_BATCH):
            feed = window(bundle, batch)
            for one in (*(spec(engine, python) for engine in ENGINES), WorkerSpec("onnxruntime")):
                async with open_engine(one, Job(bundle, MAX_BATCH, plans, cache)) as running:
                    inside, outside = await timed(running, feed)
                rate = 1e6 * batch / outside
                print(f"\n{bundle.name}, batch {batch}, {one.engine}: {inside:.0f} µs in the engine", end="")
                print(f", {outside:.0f} µs with the wire, {rate:.0f} frames/s", end="")
            np.savez(tmp_path / "feed.npz", **feed)  # type: ignore[arg-type]  # numpy reads names as its own options
            command = [python, "-m", "tests.support.tensorrt_peer", str(plans / "window-unrolled.onnx")]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run([*command, str(tmp_path / "feed.npz")], cwd=ROOT, env=environment, check=True,
                                  capture_output=True, text=True)  # fmt: skip
            print(f"\n{bundle.name} batch {batch} ONNX Runtime with CUDA: {done.stdout.strip().splitlines()[-1]}")

    asyncio.run(main())


def test_loading_and_unloading_keeps_the_memory_flat(python: str, cache: Path) -> None:
    bundle = next(bundle for bundle in bundles() if bundle.name == "digits")
    plans = asyncio.run(ensure_plans(bundle, cache, ["tensorrt"]))
    command = [python, "-m", "tests.support.tensorrt_cycles", str(bundle.path), str(plans), str(cache), str(CYCLES)]
    package = ["tensorrt_rtx"] if ENGINES[0] == "tensorrt-rtx" else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *package], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{CYCLES} cycles: free on the GPU {report['free']}, held by the process {report['own']}")
    assert report["free"][1] - report["free"][-1] < FLAT_BYTES
    assert report["own"][-1] - report["own"][1] < FLAT_BYTES


@pytest.mark.parametrize("part", ["step", "window"])
def test_a_kill_in_a_build_leaves_no_half_plan(python: str, tmp_path: Path, part: str) -> None:
    bundle = next(bundle for bundle in bundles() if bundle.name == "nmnist")
    plans = asyncio.run(ensure_plans(bundle, tmp_path, [ENGINES[0]]))
    job = Job(bundle, 1, plans, tmp_path)

    async def killed() -> None:
        life = WorkerLife(spec(ENGINES[0], python))
        starting = asyncio.create_task(life.start(job, lambda _: None))
        while f"building the {part} plan" not in life.stage and not starting.done():
            await asyncio.sleep(0.01)
        assert not starting.done(), "the build was over before it could be killed"
        assert life.pid is not None
        os.kill(life.pid, signal.SIGKILL)
        with pytest.raises(EngineLost):
            await starting
        await life.end(EngineLost("killed"))

    async def proved() -> None:
        async with open_engine(spec(ENGINES[0], python), job) as running:
            report = await prove(running, bundle)
            assert report.passed, report.reason

    asyncio.run(killed())
    assert not list((tmp_path / "tensorrt").rglob(f"{part}.plan*"))
    asyncio.run(proved())
    assert list((tmp_path / "tensorrt").rglob("step.plan.json"))
