"""The TensorRT worker on test doubles of the driver and of the package: its own logic, no GPU and no TensorRT.

What the doubles run is ONNX Runtime in the host's memory. They are as strict as the real ones where those are
documented, and they fill new memory with NaN, so what passes here did reset states, wait, copy and place everything.
Plans, and builds that end early, are in ``test_tensorrt_plan_cache.py``.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from edged.bundle.golden_form import load_golden
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.readout import scores
from edged.bundle.graph.spec import ReadoutSpec
from edged.bundle.loaded import Bundle
from edged.bundle.plans import ensure_plans
from edged.bundle.selftest import prove
from edged.bundle.writer import write_bundle
from edged.engines.engine import WorkerEngine, open_engine
from edged.engines.life import Job, WorkerLife, WorkerSpec
from edged.engines.worker.tensorrt.spec import Spec
from edged.errors import EngineError, EngineRefused
from edged.ready import Recipe, make_ready
from tests.support.bundles import Kind, make_bundle
from tests.support.tensorrt import MAX_BATCH, FakeGpu, bundles, on_tensorrt, plan_of, spec_of
from tests.support.tree import ROOT

T = TypeVar("T")
SLOW = pytest.mark.slow


# Numbers


@pytest.mark.parametrize("kind", ["sequence", pytest.param("conv", marks=SLOW), pytest.param("cuba", marks=SLOW)])
def test_a_model_proves_itself(gpu: FakeGpu, tmp_path: Path, kind: Kind) -> None:
    bundle = make_bundle(tmp_path / kind, kind=kind)

    async def use(engine: WorkerEngine) -> None:
        report = await prove(engine, bundle)
        assert report.passed, report.reason
        assert engine.facts().version == "10.3.0 on a test double, no GPU (sm_87)"

    on_tensorrt(gpu, bundle, tmp_path / "cache", use)


@pytest.mark.slow
@pytest.mark.parametrize("bundle", bundles(), ids=lambda bundle: bundle.name)
def test_every_bundled_model_proves_itself(gpu: FakeGpu, tmp_path: Path, bundle: Bundle) -> None:
    async def use(engine: WorkerEngine) -> None:
        report = await prove(engine, bundle)
        assert report.passed, report.reason

    on_tensorrt(gpu, bundle, tmp_path, use)


def test_float16_is_held_to_data_of_its_own(gpu: FakeGpu, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "dense")
    golden = {name: value for name, value in load_golden(bundle).items() if not name.startswith("fp16.")}
    model = check_step_graph(bundle.read("model.onnx"), bundle.spec)
    old = write_bundle(tmp_path / "old", manifest=bundle.manifest, model=model, golden=golden, report={}, card="")

    async def reason(of: Bundle, engine: WorkerEngine) -> str:
        return (await prove(engine, of)).reason

    spec = spec_of(gpu, "tensorrt-fp16")
    assert on_tensorrt(gpu, bundle, tmp_path, partial(reason, bundle), spec) == ""
    refused = on_tensorrt(gpu, old, tmp_path, partial(reason, old), spec)
    assert "no golden data in float16, so those of float32 decided" in refused, "the control"


@pytest.mark.slow
@pytest.mark.parametrize("bundle", bundles(), ids=lambda bundle: bundle.name)
def test_every_bundled_model_proves_itself_in_float16(gpu: FakeGpu, tmp_path: Path, bundle: Bundle) -> None:
    async def use(engine: WorkerEngine) -> None:
        report = await prove(engine, bundle)
        assert report.passed, report.reason

    on_tensorrt(gpu, bundle, tmp_path, use, spec_of(gpu, "tensorrt-fp16"))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["steps", "window"])
@pytest.mark.parametrize("kind", ["dense", "sequence"])
def test_both_forms_of_a_window_are_onnx_runtimes(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, form: str
) -> None:
    """Every batch, three times in a row: call by call, recorded, and launched; in both slots; with other frames."""
    bundle = make_bundle(tmp_path / kind, kind=kind)
    if form == "steps":
        monkeypatch.setenv("FAKE_TENSORRT_FAIL", "window")
    entry, rng = bundle.inputs[0], np.random.default_rng(0)
    batches = [batch for batch in (*range(1, MAX_BATCH + 1), 2, 1, MAX_BATCH) for _ in range(3)]
    shapes = [((bundle.timesteps,) if entry.sequence else ()) + (batch, *entry.shape) for batch in batches]
    frames = [{entry.name: (rng.integers(0, 17, shape) / 16).astype(np.float32)} for shape in shapes]

    async def answers(engine: WorkerEngine) -> tuple[str, list[Any]]:
        return engine.facts().plan, [(await engine.infer(frame)).readout for frame in frames]

    plan, found = on_tensorrt(gpu, bundle, tmp_path / "cache", answers)
    if form == "window":
        remembered = next((tmp_path / "cache").rglob("choice.json"))
        record = json.loads(remembered.read_text())
        assert set(record["notes"]["us"]) == {"steps", "window"}
        plan, found = choosing(gpu, bundle, tmp_path / "cache", "window", answers)
    assert plan == f"tensorrt-f32-{form}"

    async def wanted() -> list[Any]:
        job = Job(bundle, MAX_BATCH, await ensure_plans(bundle, tmp_path), tmp_path)
        async with open_engine(WorkerSpec("onnxruntime"), job) as engine:
            return [(await engine.infer(frame)).readout for frame in frames]

    for one, other in zip(found, asyncio.run(wanted()), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def choosing(gpu: FakeGpu, bundle: Bundle, cache: Path, form: str, use: Callable[[WorkerEngine], Awaitable[T]]) -> T:
    """With the choice of a form already made, as an earlier start would have left it."""
    from edged.engines.worker.plan_cache import PlanCache

    plans = next((cache / "tensorrt" / "plans").iterdir())
    keeper = PlanCache(plans.parent, plans.name)
    with keeper.scratch() as scratch:
        assert scratch is not None
        (scratch / "choice").write_bytes(b"")
        keeper.keep("choice", scratch / "choice", {"form": form, "us": {"steps": 1.0, "window": 1.0}})
    return on_tensorrt(gpu, bundle, cache, use)


@pytest.mark.parametrize("kind", ["mean", "sum", "last", "max", "first_spike"])
def test_a_readout_is_the_reference_s(kind: Any) -> None:
    outputs = np.random.default_rng(0).normal(0, 1, (7, 3, 4)).astype(np.float32)
    for start, stop in ((0, 7), (2, 5), (6, 7)):
        found = Spec("y", {}, kind, start, stop).read_out(outputs)
        np.testing.assert_allclose(found, scores(outputs, ReadoutSpec(kind, start, stop)), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_version_that_cannot_be_recorded_goes_on_without(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_UNRECORDED", "1")
    bundle = make_bundle(tmp_path / "dense")

    async def use(engine: WorkerEngine) -> str:
        return (await prove(engine, bundle)).reason

    assert on_tensorrt(gpu, bundle, tmp_path / "cache", use) == ""


@pytest.mark.parametrize("version", ["8.5.2.2", "11.4.0.106"])
def test_every_version_s_branch_proves_a_model(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_VERSION", version)
    bundle = make_bundle(tmp_path / "dense")

    async def use(engine: WorkerEngine) -> tuple[str, str]:
        return (await prove(engine, bundle)).reason, engine.facts().version.split()[0]

    assert on_tensorrt(gpu, bundle, tmp_path / "cache", use) == ("", version)


# Refusals


def test_without_a_gpu_the_engine_says_what_cuinit_says(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_INIT", "100")
    monkeypatch.setenv("FAKE_TENSORRT_CALLS", "/proc/none")  # it would fail if TensorRT were touched

    async def meet() -> str:
        life = WorkerLife(spec_of(gpu))
        try:
            await life.meet()
        except EngineError as error:
            return str(await life.end(error))
        return ""

    assert "no GPU: cuInit says CUDA_ERROR_NO_DEVICE (100)" in asyncio.run(meet())


def test_without_a_driver_edged_engines_says_so(tmp_path: Path) -> None:
    if _has_driver():
        pytest.skip("not here: a machine without NVIDIA's driver")
    config = tmp_path / "edged.toml"
    config.write_text(
        f'[device]\nid = "d"\nstate_dir = "{tmp_path}"\nruntime_dir = "{tmp_path}"\n'
        f'[[pipeline]]\nname = "p"\nmodel = "{ROOT / "models/digits/bundle"}"\n'
        '[[pipeline.source]]\ntype = "http"\nname = "h"\n'
    )
    command = [sys.executable, "-m", "edged", "engines", "--config", str(config), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = {one["engine"]: one for one in map(json.loads, done.stdout.splitlines())}
    for name in ("tensorrt", "tensorrt-fp16", "tensorrt-int8", "tensorrt-rtx"):
        assert not found[name]["present"]
        assert "no GPU: NVIDIA's driver is not installed (libcuda.so.1" in found[name]["reason"]
    assert found["onnxruntime"]["present"], "the control: not everything is absent"


def _has_driver() -> bool:
    code = "import ctypes; ctypes.CDLL('libcuda.so.1')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_numbers_that_a_model_cannot_have_are_refused_by_reason(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "dense")
    with pytest.raises(EngineRefused, match="--weights int8"):
        on_tensorrt(gpu, bundle, tmp_path, plan_of, spec_of(gpu, "tensorrt-int8"))
    monkeypatch.setenv("FAKE_TENSORRT_VERSION", "8.6.1")
    with pytest.raises(EngineRefused, match=r"fp16: TensorRT 8\.6\.1 cannot be held to float32 membranes"):
        on_tensorrt(gpu, bundle, tmp_path, plan_of, spec_of(gpu, "tensorrt-fp16"))


def test_a_graph_that_the_parser_does_not_take_is_refused(gpu: FakeGpu, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "dense")
    plans = asyncio.run(ensure_plans(bundle, tmp_path, ["tensorrt"]))
    (plans / "f32-step.onnx").write_bytes(b"not a graph")

    async def load() -> None:
        async with open_engine(spec_of(gpu), Job(bundle, 1, plans, tmp_path)):
            pass

    with pytest.raises(EngineRefused, match=r"TensorRT 10\.3\.0 does not take the graph"):
        asyncio.run(load())


def test_a_build_that_fails_gives_way_to_the_next_engine_with_its_reason(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_FAIL", "step")
    bundle = make_bundle(tmp_path / "dense")

    async def main() -> tuple[str, str]:
        recipe = Recipe((spec_of(gpu), WorkerSpec("onnxruntime")), 1, tmp_path / "cache")
        ready = await make_ready(bundle.path, recipe)
        try:
            facts = {one.name: one for one in ready.engine.all_facts()}
            return ready.engine.name, facts["tensorrt"].reason
        finally:
            await ready.end()

    served, reason = asyncio.run(main())
    assert served == "onnxruntime"
    assert "TensorRT 10.3.0 built no plan: cannot build the step" in reason


# A GPU that fails


@pytest.mark.parametrize(
    "call",
    [
        "cuGraphLaunch:4",
        *(pytest.param(one, marks=SLOW) for one in ("cuStreamSynchronize:4", "cuMemcpyHtoDAsync_v2:1")),
    ],
)
def test_an_error_of_the_stream_costs_the_worker_and_nothing_else(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    bundle = make_bundle(tmp_path / "dense")
    on_tensorrt(gpu, bundle, tmp_path, plan_of)  # nothing is to be built
    monkeypatch.setenv("FAKE_CUDA_FAIL", call)
    frame = {bundle.inputs[0].name: np.zeros((1, *bundle.inputs[0].shape), np.float32)}

    async def use(engine: WorkerEngine) -> str:
        for _ in range(20):
            await engine.infer(frame)
        return ""

    with pytest.raises(EngineError, match=rf"{call.partition(':')[0]} says CUDA_ERROR_ILLEGAL_ADDRESS \(700\)"):
        on_tensorrt(gpu, bundle, tmp_path, use)


@pytest.mark.slow
def test_loading_and_unloading_leaves_nothing_on_the_gpu(gpu: FakeGpu, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "dense")
    plans = asyncio.run(ensure_plans(bundle, tmp_path, ["tensorrt"]))
    command = [
        gpu.python,
        "-m",
        "tests.support.tensorrt_cycles",
        str(bundle.path),
        str(plans),
        str(tmp_path / "c"),
        "30",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["cycles"] == 30
    assert report["live"][0] == report["live"][-1]
