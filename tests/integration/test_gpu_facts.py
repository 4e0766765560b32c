"""What a worker tells of its GPU, on test doubles of the driver and of NVIDIA's management library. No GPU."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from edged.bundle.plans import ensure_plans
from edged.engines import life
from edged.engines.engine import WorkerEngine, open_engine
from edged.engines.life import Job, WorkerSpec
from edged.status import INTEGRATED, GpuFacts
from tests.support.bundles import make_bundle
from tests.support.tensorrt import FakeGpu

CARD = "0000:01:00.0"
BY_CUDA = {"memory_used_bytes": 1 << 30, "memory_total_bytes": 2 << 30}


@pytest.fixture
def gpu(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Its worker is asked often."""
    monkeypatch.setattr(life, "WATCH_S", 0.05)
    return gpu


def told(gpu: FakeGpu, folder: Path, spec: WorkerSpec, wanted_s: float = 10.0) -> tuple[GpuFacts | None, int]:
    """What the worker tells once it tells the load, or after a while; and how many frames it answered meanwhile."""

    async def main() -> tuple[GpuFacts | None, int]:
        bundle = make_bundle(folder / "dense")
        plans = await ensure_plans(bundle, folder, [spec.engine])
        frame = {bundle.inputs[0].name: np.zeros((1, *bundle.inputs[0].shape), np.float32)}
        async with open_engine(spec, Job(bundle, 1, plans, folder)) as engine:
            return await watched(engine, frame)

    async def watched(engine: WorkerEngine, frame: dict[str, np.ndarray]) -> tuple[GpuFacts | None, int]:
        frames, found = 0, None
        until = asyncio.get_running_loop().time() + wanted_s
        while asyncio.get_running_loop().time() < until:
            await engine.infer(frame)
            frames += 1
            found = engine.gpu()
            if found is not None and found.load_percent is not None:
                break
            await asyncio.sleep(0.1)
        return found, frames

    return asyncio.run(main())


def spec_of(gpu: FakeGpu) -> WorkerSpec:
    return WorkerSpec("tensorrt", gpu.python, deadline_s=30.0, load_deadline_s=90.0)


def test_a_card_tells_load_memory_and_temperature(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CUDA_CARD", "1")
    found, _ = told(gpu, tmp_path, spec_of(gpu))
    assert found == GpuFacts(
        id=CARD,
        name="a test double, no GPU",
        told_by="tensorrt",
        load_percent=37,
        memory_used_bytes=1_500_000_000,
        memory_total_bytes=4_000_000_000,
        temperature_c=61,
    )


@pytest.mark.parametrize("mode", ["none", "jetson"])
def test_what_the_library_does_not_know_is_left_out(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("FAKE_NVML", mode)
    found, _ = told(gpu, tmp_path, spec_of(gpu), wanted_s=1.0)
    assert found == GpuFacts(id=INTEGRATED, name="a test double, no GPU", told_by="tensorrt", **BY_CUDA)


def test_one_figure_that_fails_costs_no_other(gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVML", "broken")
    found, _ = told(gpu, tmp_path, spec_of(gpu), wanted_s=1.0)
    assert found is not None
    assert (found.load_percent, found.temperature_c, found.memory_total_bytes) == (None, 61, 4_000_000_000)


def test_a_library_that_never_answers_costs_no_frame(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_NVML", "hang")
    found, frames = told(gpu, tmp_path, spec_of(gpu), wanted_s=2.0)
    assert frames > 5
    assert found == GpuFacts(id=INTEGRATED, name="a test double, no GPU", told_by="tensorrt", **BY_CUDA)


def test_a_worker_of_another_engine_tells_of_no_gpu(gpu: FakeGpu, tmp_path: Path) -> None:
    assert told(gpu, tmp_path, WorkerSpec("onnxruntime"), wanted_s=0.5)[0] is None
