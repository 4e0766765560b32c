"""ONNX Runtime in a real worker: parity with the same session in this process, batches, steps, the plan cache."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]  # ships no stubs
import pytest

from edged.domain import Array
from edged.engines.engine import WorkerEngine, open_engine
from edged.engines.life import Job, WorkerSpec
from edged.errors import EngineError
from tests.support.plans import CLASSES, TIMESTEPS, frames, make_job

T = TypeVar("T")
FULL = 8192  # bytes: more than the shared memory of one small frame, less than a plan
SPEC = WorkerSpec("onnxruntime", deadline_s=20.0)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_job(tmp_path_factory.mktemp("engine"))


def with_engine(job: Job, use: Callable[[WorkerEngine], Awaitable[T]], spec: WorkerSpec = SPEC) -> T:
    async def main() -> T:
        async with open_engine(spec, job) as engine:
            return await use(engine)

    return asyncio.run(main())


def in_process(job: Job, plan: str = "window-unrolled") -> ort.InferenceSession:
    return ort.InferenceSession(str(job.plan_dir / f"{plan}.onnx"), providers=["CPUExecutionProvider"])


def test_every_batch_size_gives_what_the_session_gives_in_process(job: Job) -> None:
    session = in_process(job)

    async def use(engine: WorkerEngine) -> None:
        for batch in range(1, job.max_batch + 1):
            inputs = frames(batch, seed=batch)
            inference = await engine.infer(inputs)
            np.testing.assert_allclose(inference.readout, session.run(None, inputs)[0], rtol=1e-5, atol=1e-6)
            assert inference.engine_ns > 0

    with_engine(job, use)


def test_calls_in_flight_together_do_not_mix(job: Job) -> None:
    session = in_process(job)
    batches = [frames(1 + seed % job.max_batch, seed) for seed in range(40)]

    async def use(engine: WorkerEngine) -> None:
        answers = await asyncio.gather(*(engine.infer(inputs) for inputs in batches))
        for inputs, answer in zip(batches, answers, strict=True):
            np.testing.assert_allclose(answer.readout, session.run(None, inputs)[0], rtol=1e-5, atol=1e-6)

    with_engine(job, use)


def test_steps_from_zero_states_are_the_window(job: Job) -> None:
    async def use(engine: WorkerEngine) -> None:
        inputs = frames(2)
        states = {spec.name: np.zeros((2, *spec.shape), np.float32) for spec in job.model.states}
        total = np.zeros((2, CLASSES), np.float32)
        for _ in range(TIMESTEPS):
            outputs, states = await engine.step(inputs, states)
            total += outputs[job.model.output]
        assert set(states) == {spec.name for spec in job.model.states}
        window = await engine.infer(inputs)
        np.testing.assert_allclose(total / TIMESTEPS, window.readout, rtol=1e-5, atol=1e-6)

    with_engine(job, use)


def test_a_batch_that_does_not_fit_is_refused_and_the_worker_stays(job: Job) -> None:
    wrong: list[dict[str, Array]] = [
        {"x": np.zeros((job.max_batch + 1, 8), np.float32)},
        {"x": np.zeros((0, 8), np.float32)},
        {"x": np.zeros((1, 9), np.float32)},
        {"x": np.zeros((1, 8), np.float64)},
        {"y": np.zeros((1, 8), np.float32)},
        {},
    ]

    async def use(engine: WorkerEngine) -> None:
        pid = engine.facts().pid
        for inputs in wrong:
            with pytest.raises(EngineError):
                await engine.infer(inputs)
        await engine.infer(frames(1))
        assert engine.facts().pid == pid

    with_engine(job, use)


def test_a_second_start_reads_the_plan_and_gives_the_same_bits(job: Job, tmp_path: Path) -> None:
    cold_job = Job(job.model, job.max_batch, job.plan_dir, tmp_path)

    async def use(engine: WorkerEngine) -> tuple[bytes, str]:
        return (await engine.infer(frames(3))).readout.tobytes(), engine.facts().plan

    cold = with_engine(cold_job, use)
    kept = sorted(path.name for path in (tmp_path / "onnxruntime").glob("*/*"))
    assert kept == ["window.onnx", "window.onnx.json"]
    before = next(tmp_path.glob("onnxruntime/*/window.onnx")).stat().st_mtime_ns
    assert with_engine(cold_job, use) == cold
    assert next(tmp_path.glob("onnxruntime/*/window.onnx")).stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["flip", "truncate", "record", "empty record", "notes", "no record"])
def test_a_damaged_plan_is_built_again(job: Job, tmp_path: Path, damage: str) -> None:
    cold_job = Job(job.model, job.max_batch, job.plan_dir, tmp_path)

    async def use(engine: WorkerEngine) -> bytes:
        return (await engine.infer(frames(3))).readout.tobytes()

    cold = with_engine(cold_job, use)
    plan = next(tmp_path.glob("onnxruntime/*/window.onnx"))
    record = plan.with_name("window.onnx.json")
    good = plan.read_bytes()
    if damage == "flip":
        plan.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    elif damage == "truncate":
        plan.write_bytes(good[: len(good) // 2])
    elif damage == "record":
        record.write_text("[]")
    elif damage == "notes":
        record.write_text(record.read_text().replace('"form"', '"farm"'))
    elif damage == "empty record":
        record.write_text("{}")
    else:
        record.unlink()
    damaged = plan.read_bytes(), record.read_bytes() if record.exists() else b""
    assert with_engine(cold_job, use) == cold
    assert (plan.read_bytes(), record.read_bytes()) != damaged


def test_without_a_place_to_write_the_engine_runs_without_a_cache(job: Job, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    session = in_process(job)

    async def use(engine: WorkerEngine) -> None:
        readout = (await engine.infer(frames(2))).readout
        np.testing.assert_allclose(readout, session.run(None, frames(2))[0], rtol=1e-5, atol=1e-6)
        states = {spec.name: np.zeros((2, *spec.shape), np.float32) for spec in job.model.states}
        await engine.step(frames(2), states)

    with_engine(Job(job.model, job.max_batch, job.plan_dir, tmp_path / "file" / "cache"), use)


def test_a_disk_that_is_full_costs_the_cache_and_nothing_else(job: Job, tmp_path: Path) -> None:
    async def use(engine: WorkerEngine) -> None:
        await engine.infer(frames(1))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, before[1]))  # the worker inherits it: every longer write fails
    try:
        with_engine(Job(job.model, 1, job.plan_dir, tmp_path), use)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("onnxruntime/*/window.onnx*"))
    with_engine(Job(job.model, 1, job.plan_dir, tmp_path), use)  # the control
    assert min(path.stat().st_size for path in tmp_path.glob("onnxruntime/*/window.onnx")) > FULL


def test_a_plan_that_does_not_fit_the_model_says_so(job: Job, tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir()
    for name in ("window-unrolled", "window-scan", "step"):
        (tmp_path / "plans" / f"{name}.onnx").write_bytes((job.plan_dir / "step.onnx").read_bytes())
    wrong = Job(job.model, job.max_batch, tmp_path / "plans", tmp_path / "cache")

    async def use(engine: WorkerEngine) -> None:
        raise AssertionError("it must not load")

    with pytest.raises(EngineError, match="the plan wants an input 'v1'"):
        with_engine(wrong, use)


def test_a_missing_plan_says_so(job: Job, tmp_path: Path) -> None:
    async def use(engine: WorkerEngine) -> None:
        raise AssertionError("it must not load")

    with pytest.raises(EngineError, match=r"window-unrolled\.onnx"):
        with_engine(Job(job.model, 1, tmp_path / "nowhere", tmp_path), use)
