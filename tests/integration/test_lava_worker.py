"""Lava in a real worker: it proves models like any engine, and refuses by node what it cannot run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.plans import ensure_plans
from edged.bundle.selftest import load_golden, prove
from edged.engines.engine import WorkerEngine, open_engine
from edged.engines.life import Job, WorkerSpec
from edged.errors import EngineError
from tests.support.bundles import Kind, make_bundle
from tests.support.lava import lava_python
from tests.support.tree import ROOT

T = TypeVar("T")
DIGITS = ROOT / "models" / "digits" / "bundle"
MAX_BATCH = 4


def on_lava(bundle: Bundle, cache: Path, use: Callable[[WorkerEngine], Awaitable[T]], engine: str = "lava") -> T:
    async def main() -> T:
        plans = await ensure_plans(bundle, cache)
        spec = WorkerSpec(engine, lava_python(), deadline_s=60.0, load_deadline_s=90.0)
        async with open_engine(spec, Job(bundle, MAX_BATCH, plans, cache)) as opened:
            return await use(opened)

    return asyncio.run(main())


@pytest.mark.parametrize("kind", ["dense", "conv", "sequence", "events"])
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


def test_integers_keep_the_labels_and_states_but_do_not_pass_for_floating_point(tmp_path: Path) -> None:
    bundle = open_bundle(DIGITS)
    golden = load_golden(bundle)
    sure = golden["free.margin"] > np.quantile(golden["free.margin"], 0.5)
    samples = golden["free.input"][sure].astype(np.float32)[:MAX_BATCH]
    names = [state.name for state in bundle.states]
    given = {name: golden[f"step.state.{k}"][:MAX_BATCH].astype(np.float32) for k, name in enumerate(names)}

    async def use(engine: WorkerEngine) -> None:
        assert engine.facts().plan == "lava-cpu-fixed"
        scores = (await engine.infer({"image": samples})).readout
        wanted = golden["free.readout"][sure][:MAX_BATCH]
        assert scores.argmax(axis=1).tolist() == wanted.argmax(axis=1).tolist()
        _, after = await engine.step({"image": golden["step.input"][:MAX_BATCH].astype(np.float32)}, given)
        for k, name in enumerate(names):
            error = np.abs(after[name] - golden[f"step.next.{k}"][:MAX_BATCH])
            assert np.median(error) < 0.05  # a tenth of the threshold
        report = await prove(engine, bundle)
        assert not report.passed
        assert "steps" in report.reason

    on_lava(bundle, tmp_path, use, "lava-fixed")


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
