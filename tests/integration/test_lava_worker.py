"""Lava in a real worker: it proves models like any engine, and refuses by node what it cannot run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from edged.bundle.golden_form import load_golden
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.plans import ensure_plans
from edged.bundle.selftest import prove
from edged.bundle.writer import write_bundle
from edged.engines.engine import WorkerEngine, open_engine
from edged.engines.life import Job, WorkerSpec
from edged.errors import EngineError
from edged.ready import Recipe, make_ready
from tests.support.bundles import Kind, make_bundle
from tests.support.lava import lava_python
from tests.support.tree import ROOT

T = TypeVar("T")
DIGITS = ROOT / "models" / "digits" / "bundle"
MAX_BATCH = 4


def on_lava(
    bundle: Bundle,
    cache: Path,
    use: Callable[[WorkerEngine], Awaitable[T]],
    engine: str = "lava",
    engine_file: Path | None = None,
) -> T:
    async def main() -> T:
        plans = await ensure_plans(bundle, cache)
        spec = WorkerSpec(engine, lava_python(), deadline_s=60.0, load_deadline_s=90.0, engine_file=engine_file)
        async with open_engine(spec, Job(bundle, MAX_BATCH, plans, cache)) as opened:
            return await use(opened)

    return asyncio.run(main())


@pytest.mark.parametrize("kind", ["conv", "sequence"])
def test_a_model_proves_itself(tmp_path: Path, kind: Kind) -> None:
    bundle = make_bundle(tmp_path / kind, kind=kind)

    async def use(engine: WorkerEngine) -> None:
        report = await prove(engine, bundle)
        assert report.passed, report.reason
        facts = engine.facts()
        assert (facts.name, facts.plan, facts.version) == ("lava", "lava-cpu", "0.10.0")

    on_lava(bundle, tmp_path / "cache", use)


def test_digits_prove_themselves(tmp_path: Path) -> None:
    bundle = open_bundle(DIGITS)

    async def use(engine: WorkerEngine) -> None:
        report = await prove(engine, bundle)
        assert report.passed, report.reason

    on_lava(bundle, tmp_path, use)


@pytest.mark.parametrize("name", ["digits", "bearing", "nmnist"])
def test_the_bundled_models_prove_themselves_in_integers(tmp_path: Path, name: str) -> None:
    bundle = open_bundle(ROOT / "models" / name / "bundle")

    async def use(engine: WorkerEngine) -> None:
        assert engine.facts().plan == "lava-cpu-fixed"
        report = await prove(engine, bundle)
        assert report.passed, report.reason

    on_lava(bundle, tmp_path, use, "lava-fixed")


MORE = [pytest.param(f"{kind}:{k}", marks=pytest.mark.slow)
        for kind, k in (("weights", 0), ("weights", 2), ("shift", 0), ("threshold", 0), ("threshold", 1))]  # fmt: skip


@pytest.mark.parametrize("mutant", ["", "weights:1", "shift:1", "threshold:2", *MORE])
def test_an_engine_in_integers_that_is_off_by_one_unit_is_refused(
    tmp_path: Path, mutant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGED_TEST_MUTANT", mutant)
    bundle = open_bundle(DIGITS)

    async def use(engine: WorkerEngine) -> None:
        report = await prove(engine, bundle)
        assert report.passed is not bool(mutant), report.reason  # without a defect: the control

    on_lava(bundle, tmp_path, use, "lava-fixed", engine_file=ROOT / "tests" / "support" / "lava_mutant.py")


def test_integers_are_placed_like_any_engine_and_answer_with_its_name(tmp_path: Path) -> None:
    async def main() -> None:
        spec = WorkerSpec("lava-fixed", lava_python(), deadline_s=60.0, load_deadline_s=90.0)
        ready = await make_ready(DIGITS, Recipe((spec, WorkerSpec("onnxruntime")), MAX_BATCH, tmp_path))
        try:
            assert ready.engine.name == "lava-fixed"
            image = np.zeros((1, 1, 8, 8), np.float32)
            assert (await ready.engine.infer({"image": image})).engine == "lava-fixed"
        finally:
            await ready.end()

    asyncio.run(main())


def test_integers_of_a_bundle_without_golden_data_for_them_are_refused_by_name(tmp_path: Path) -> None:
    bundle = open_bundle(DIGITS)
    golden = {name: value for name, value in load_golden(bundle).items() if not name.startswith("loihi.")}
    model = check_step_graph(bundle.read("model.onnx"), bundle.spec)
    write_bundle(tmp_path / "old", manifest=bundle.manifest, model=model, golden=golden, report={}, card="")

    async def main() -> None:
        spec = WorkerSpec("lava-fixed", lava_python(), deadline_s=60.0, load_deadline_s=90.0)
        recipe = Recipe((spec, WorkerSpec("onnxruntime")), MAX_BATCH, tmp_path / "cache")
        ready = await make_ready(tmp_path / "old", recipe)
        try:
            assert ready.engine.name == "onnxruntime"
            integers = ready.engine.all_facts()[0]
            assert (integers.name, integers.placement) == ("lava-fixed", "unfit")
            assert "needs golden data in integers, and this bundle has none; convert it again" in integers.reason
        finally:
            await ready.end()

    asyncio.run(main())


def test_windows_leave_nothing_behind_for_the_next_one(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "sequence", kind="sequence")
    rng = np.random.default_rng(3)
    frames = (rng.random((bundle.timesteps, 2, 5)) * 2).astype(np.float32)
    other = (rng.random((bundle.timesteps, 2, 5)) * 2).astype(np.float32)
    states = {spec.name: np.ones((2, *spec.shape), np.float32) for spec in bundle.states}

    async def use(engine: WorkerEngine) -> None:
        first = (await engine.infer({"frames": frames})).readout
        between = (await engine.infer({"frames": other})).readout
        await engine.step({"frames": frames[0]}, states)
        again = (await engine.infer({"frames": frames})).readout
        assert first.tobytes() == again.tobytes()
        assert first.tobytes() != between.tobytes()

    on_lava(bundle, tmp_path / "cache", use)


@pytest.mark.parametrize(
    ("kind", "named"),
    [("cuba", "node 'first' (edged.snn.CubaLIF)"), ("rates", "node 'hidden' (edged.snn.SignedIF)")],
)
def test_what_lava_cannot_run_is_refused_by_node(tmp_path: Path, kind: Kind, named: str) -> None:
    bundle = make_bundle(tmp_path / kind, kind=kind)

    async def use(engine: WorkerEngine) -> None:
        raise AssertionError("it was not refused")

    with pytest.raises(EngineError) as caught:
        on_lava(bundle, tmp_path / "cache", use)
    assert named in str(caught.value)
