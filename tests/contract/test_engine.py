"""What every engine promises (``edged.ports.Engine``), asked of every adapter with real bundles."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.bundle.loaded import Bundle
from edged.bundle.plans import ensure_plans
from edged.domain import Array
from edged.engines.engine import WorkerEngine, open_engine
from edged.engines.life import Job, WorkerSpec
from edged.errors import EngineError, EngineLost
from edged.ports import Engine
from tests.support.bundles import Kind, make_bundle
from tests.support.lava import lava_python

ENGINES = ["onnxruntime", "lava"]
KINDS: list[Kind] = ["dense", "conv", "sequence", "events"]
MAX_BATCH = 3
Use = Callable[[Engine, Bundle], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, tuple[Bundle, Job]]:
    folder = tmp_path_factory.mktemp("engines")
    made = {}
    for kind in KINDS:
        bundle = make_bundle(folder / kind, kind=kind)
        plans = asyncio.run(ensure_plans(bundle, folder / "cache"))
        made[kind] = (bundle, Job(bundle, MAX_BATCH, plans, folder / "cache"))
    return made


@pytest.fixture(scope="module", params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=KINDS)
def run(
    request: pytest.FixtureRequest, engine_name: str, jobs: dict[Kind, tuple[Bundle, Job]]
) -> Iterator[Callable[[Use], None]]:
    """Runs a test's coroutine with one engine that serves the whole file, as a device's engine serves for years."""
    bundle, job = jobs[request.param]
    with asyncio.Runner() as runner:
        python = lava_python() if engine_name == "lava" else ""
        opened = open_engine(WorkerSpec(engine_name, python, deadline_s=20.0), job)
        engine = runner.run(opened.__aenter__())
        yield lambda use: runner.run(use(engine, bundle))
        runner.run(opened.__aexit__(None, None, None))


def windows(bundle: Bundle, batch: int, seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    time = {True: (bundle.timesteps,), False: ()}
    return {
        spec.name: random.random((*time[spec.sequence], batch, *spec.shape)).astype(spec.dtype) * 2
        for spec in bundle.inputs
    }


def at(bundle: Bundle, inputs: dict[str, Array], t: int) -> dict[str, Array]:
    return {spec.name: inputs[spec.name][t] if spec.sequence else inputs[spec.name] for spec in bundle.inputs}


def rows(bundle: Bundle, inputs: dict[str, Array], which: slice) -> dict[str, Array]:
    some = {s.name: inputs[s.name][:, which] if s.sequence else inputs[s.name][which] for s in bundle.inputs}
    return {name: np.ascontiguousarray(value) for name, value in some.items()}


def zeros(bundle: Bundle, batch: int) -> dict[str, Array]:
    return {spec.name: np.zeros((batch, *spec.shape), spec.dtype) for spec in bundle.states}


def test_a_window_is_a_readout_of_the_right_kind(run: Callable[[Use], None]) -> None:
    async def use(engine: Engine, bundle: Bundle) -> None:
        for batch in range(1, engine.max_batch + 1):
            inference = await engine.infer(windows(bundle, batch))
            assert inference.readout.shape == (batch, bundle.classes)
            assert inference.readout.dtype == np.float32
            assert inference.engine_ns > 0

    run(use)


def test_neighbours_in_a_batch_do_not_touch_each_other(run: Callable[[Use], None]) -> None:
    async def use(engine: Engine, bundle: Bundle) -> None:
        inputs = windows(bundle, MAX_BATCH)
        together = (await engine.infer(inputs)).readout
        alone = [(await engine.infer(rows(bundle, inputs, slice(i, i + 1)))).readout[0] for i in range(MAX_BATCH)]
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)

    run(use)


def test_every_window_starts_from_zero_state(run: Callable[[Use], None]) -> None:
    async def use(engine: Engine, bundle: Bundle) -> None:
        inputs = windows(bundle, 2)
        first = await engine.infer(inputs)
        await engine.infer(windows(bundle, 2, seed=9))
        await engine.step(at(bundle, inputs, 0), zeros(bundle, 2))
        again = await engine.infer(inputs)
        assert first.readout.tobytes() == again.readout.tobytes()

    run(use)


def test_a_step_returns_states_that_the_next_step_takes(run: Callable[[Use], None]) -> None:
    async def use(engine: Engine, bundle: Bundle) -> None:
        inputs = windows(bundle, 2)
        states, outputs = zeros(bundle, 2), []
        for t in range(bundle.timesteps):
            output, states = await engine.step(at(bundle, inputs, t), states)
            assert set(output) == {bundle.output}
            assert {name: value.shape for name, value in states.items()} == {
                spec.name: (2, *spec.shape) for spec in bundle.states
            }
            outputs.append(output[bundle.output])
        window = bundle.manifest.readout.window
        seen = np.stack(outputs)[window.start : window.stop]
        folded = {"mean": seen.mean(0), "sum": seen.sum(0), "last": seen[-1]}[bundle.manifest.readout.kind]
        np.testing.assert_allclose(folded, (await engine.infer(inputs)).readout, rtol=1e-5, atol=1e-6)

    run(use)


def test_answers_belong_to_the_caller(run: Callable[[Use], None]) -> None:
    async def use(engine: Engine, bundle: Bundle) -> None:
        inputs = windows(bundle, 1)
        inference = await engine.infer(inputs)
        _, states = await engine.step(at(bundle, inputs, 0), zeros(bundle, 1))
        kept = inference.readout.copy(), {name: value.copy() for name, value in states.items()}
        for seed in range(4):
            await engine.infer(windows(bundle, 1, seed))
            await engine.step(at(bundle, windows(bundle, 1, seed), 0), states)
        np.testing.assert_array_equal(inference.readout, kept[0])
        for name, value in states.items():
            np.testing.assert_array_equal(value, kept[1][name])

    run(use)


def test_calls_at_the_same_time_get_their_own_answers(run: Callable[[Use], None]) -> None:
    async def use(engine: Engine, bundle: Bundle) -> None:
        batches = [windows(bundle, 1 + seed % MAX_BATCH, seed) for seed in range(8)]
        one_by_one = [(await engine.infer(inputs)).readout for inputs in batches]
        together = await asyncio.gather(*(engine.infer(inputs) for inputs in batches))
        for alone, inference in zip(one_by_one, together, strict=True):
            assert alone.tobytes() == inference.readout.tobytes()

    run(use)


def test_what_does_not_fit_is_an_engine_error_and_changes_nothing(run: Callable[[Use], None]) -> None:
    async def use(engine: Engine, bundle: Bundle) -> None:
        good = windows(bundle, 1)
        before = (await engine.infer(good)).readout
        for wrong in (
            windows(bundle, MAX_BATCH + 1),
            {name: value.astype(np.float64) for name, value in good.items()},
            {name: value[..., :-1] for name, value in good.items()},
            {f"not-{name}": value for name, value in good.items()},
        ):
            with pytest.raises(EngineError) as caught:
                await engine.infer(wrong)
            assert not isinstance(caught.value, EngineLost)
        short = {name: value[..., :-1] for name, value in zeros(bundle, 1).items()}
        with pytest.raises(EngineError):
            await engine.step(at(bundle, good, 0), short)
        assert (await engine.infer(good)).readout.tobytes() == before.tobytes()

    run(use)


def test_an_engine_says_what_it_is(run: Callable[[Use], None], engine_name: str) -> None:
    async def use(engine: Engine, bundle: Bundle) -> None:
        assert isinstance(engine, WorkerEngine)
        facts = engine.facts()
        assert (facts.name, facts.model) == (engine_name, f"{bundle.name}@{bundle.version}")
        assert facts.state == "ready"
        assert facts.version
        assert facts.plan
        assert Path(f"/proc/{facts.pid}").is_dir()

    run(use)
