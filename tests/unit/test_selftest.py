"""The self-test lets correct engines pass, whatever their order of summation, and fails every planted defect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest

from edged.bundle.golden import make_golden
from edged.bundle.graph.builder import StepBuilder
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.plans import Form
from edged.bundle.graph.stock import Stock
from edged.bundle.loaded import Bundle
from edged.bundle.selftest import SelftestReport, prove
from edged.bundle.writer import write_bundle
from edged.domain import Array
from edged.errors import BundleError, EngineError
from edged.ports import Engine, Inference
from tests.support.bundles import Kind, make_bundle
from tests.support.mutants import mutants
from tests.support.numpy_engine import NumpyEngine
from tests.support.reference import READOUTS, Reference
from tests.support.stock_engine import StockEngine

KINDS: tuple[Kind, ...] = get_args(Kind)
FORMS: tuple[Form, ...] = get_args(Form)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Bundle]:
    base = tmp_path_factory.mktemp("bundles")
    return {kind: make_bundle(base / kind, kind=kind, timesteps=5) for kind in KINDS}


def graph_of(bundle: Bundle) -> onnx.ModelProto:
    return check_step_graph(bundle.read("model.onnx"), bundle.spec)


def proved(engine: Engine, bundle: Bundle, *, full: bool = True) -> SelftestReport:
    return asyncio.run(prove(engine, bundle, full=full))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_the_plans_of_a_good_model_pass(bundles: dict[Kind, Bundle], kind: Kind, form: Form) -> None:
    report = proved(StockEngine(graph_of(bundles[kind]), bundles[kind].spec, form), bundles[kind])
    assert report.passed, report.reason
    assert [check.name for check in report.checks] == ["steps", "ties", "free runs"]
    assert report.digest == bundles[kind].digest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wide", [False, True])
def test_a_correct_engine_with_another_order_of_summation_passes(
    bundles: dict[Kind, Bundle], kind: Kind, wide: bool
) -> None:
    reference = Reference(graph_of(bundles[kind]), bundles[kind].spec, wide=wide)
    report = proved(NumpyEngine(reference), bundles[kind])
    assert report.passed, report.reason


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_every_planted_defect_fails(bundles: dict[Kind, Bundle], kind: Kind, form: Form) -> None:
    bundle, tried = bundles[kind], 0
    for name, mutant in mutants(graph_of(bundle)):
        report = proved(StockEngine(mutant, bundle.spec, form), bundle)
        assert not report.passed, f"{name} was not noticed"
        tried += 1
    assert tried >= 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_defect_in_the_window_alone_fails_the_free_runs(bundles: dict[Kind, Bundle], kind: Kind, form: Form) -> None:
    bundle = bundles[kind]
    good = StockEngine(graph_of(bundle), bundle.spec, form)
    for name, mutant in mutants(graph_of(bundle)):
        if not name.endswith(("bias dropped", "weights dropped", "decay + 1 %", "bias + 0.001")):
            continue
        good.window = StockEngine(mutant, bundle.spec, form).window
        report = proved(good, bundle)
        hidden = name.startswith(("dense1", "cell", "first", "second", "trace"))  # 1 % of a decay may flip no spike
        missed = report.passed and not hidden
        assert not missed, f"{name} in the window was not noticed"


class Faulty:
    """A correct engine behind a fault in how it is driven."""

    def __init__(self, bundle: Bundle) -> None:
        self.inner = StockEngine(graph_of(bundle), bundle.spec)
        self.name, self.max_batch = "faulty", self.inner.max_batch
        self.spec = bundle.spec

    async def infer(self, inputs: Mapping[str, Array]) -> Inference:
        return await self.inner.infer(inputs)

    async def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        return await self.inner.step(inputs, states)


class StaleWindow(Faulty):
    """Starts each window from the states of the window before."""

    last: dict[str, Array] | None = None

    async def infer(self, inputs: Mapping[str, Array]) -> Inference:
        name, value = next(iter(inputs.items()))
        rows = value.shape[1] if self.spec.inputs[0].sequence else len(value)
        states = {s.input: np.zeros((rows, *s.shape), dtype=np.float32) for s in self.spec.states}
        states = self.last or states
        outputs = []
        for t in range(self.spec.timesteps):
            frame = value[t] if self.spec.inputs[0].sequence else value
            found, states = await self.step({name: frame}, states)
            outputs.append(found[self.spec.output])
        self.last = states
        return Inference(READOUTS[self.spec.readout.kind](np.stack(outputs)), 1)


class StaleStep(Faulty):
    """Takes the states of its first call again where the next call has as many rows."""

    first: Mapping[str, Array] | None = None

    async def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        self.first = self.first or states
        name = next(iter(states))
        return await super().step(inputs, self.first if len(self.first[name]) == len(states[name]) else states)


class SwappedRows(Faulty):
    """Gives two of the samples in a batch each other's readout."""

    async def infer(self, inputs: Mapping[str, Array]) -> Inference:
        found = await super().infer(inputs)
        readout = found.readout.copy()
        readout[:2] = readout[1::-1]
        return Inference(readout, found.engine_ns)


class NotANumber(Faulty):
    """One readout is NaN."""

    async def infer(self, inputs: Mapping[str, Array]) -> Inference:
        found = await super().infer(inputs)
        readout = found.readout.copy()
        readout[0, 0] = np.nan
        return Inference(readout, found.engine_ns)


class Failing(Faulty):
    """Raises."""

    async def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        raise EngineError("out of memory")


@pytest.mark.parametrize("fault", [StaleWindow, StaleStep, SwappedRows, NotANumber, Failing])
@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_mixes_up_states_or_samples_fails(
    bundles: dict[Kind, Bundle], kind: Kind, fault: Callable[[Bundle], Engine]
) -> None:
    assert proved(Faulty(bundles[kind]), bundles[kind]).passed, "the control"
    assert not proved(fault(bundles[kind]), bundles[kind]).passed


def test_a_failing_engine_is_reported_with_its_own_words(bundles: dict[Kind, Bundle]) -> None:
    report = proved(Failing(bundles["dense"]), bundles["dense"])
    assert [check.passed for check in report.checks] == [False, False, True]
    assert "out of memory" in report.reason


def test_the_short_form_leaves_out_ties_and_second_passes(bundles: dict[Kind, Bundle]) -> None:
    calls = []

    class Counting(Faulty):
        async def infer(self, inputs: Mapping[str, Array]) -> Inference:
            calls.append("infer")
            return await super().infer(inputs)

    report = proved(Counting(bundles["dense"]), bundles["dense"], full=False)
    assert report.passed
    assert [check.name for check in report.checks] == ["steps", "free runs"]
    assert len(calls) == 2, "16 windows, 8 at a time, once"


def test_every_neuron_of_the_test_models_meets_its_threshold(bundles: dict[Kind, Bundle]) -> None:
    report = proved(Faulty(bundles["dense"]), bundles["dense"])
    assert report.checks[1].detail == "48 potentials at or next to their threshold", "16 neurons: below, equal, above"


def test_golden_data_that_does_not_fit_the_manifest_is_refused(tmp_path: Path, bundles: dict[Kind, Bundle]) -> None:
    bundle = bundles["dense"]
    golden = make_golden(graph_of(bundle), bundle.spec, seed=0)
    for number, (name, value, message) in enumerate([
        ("step.output", golden["step.output"][:, :2], "'step.output' is of shape"),
        ("free.readout", np.full_like(golden["free.readout"], np.nan), "NaN"),
        ("format", np.asarray(99), "no format"),
    ]):  # fmt: skip
        bad = write_bundle(
            tmp_path / str(number), manifest=bundle.manifest, model=graph_of(bundle), golden=golden | {name: value},
            report={}, card="",
        )  # fmt: skip
        with pytest.raises(BundleError, match=message):
            proved(Faulty(bundle), bad)


def test_a_model_that_answers_nothing_gets_no_golden_data() -> None:
    b = StepBuilder()
    x = b.input("x", (3,))
    spikes = b.neuron("IF", b.node("Gemm", x, b.constant(np.zeros((3, 2)))), (2,), v_th=1.0, v_sub=1.0)
    graph = b.build(spikes, 2)
    with pytest.raises(BundleError, match="answers the same"):
        make_golden(graph.model, graph.spec(4), seed=0)


def test_golden_data_depends_on_the_seed_only(bundles: dict[Kind, Bundle]) -> None:
    bundle = bundles["sequence"]
    first, again, other = (make_golden(graph_of(bundle), bundle.spec, seed) for seed in (7, 7, 8))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["step.input"], other["step.input"])


def test_recorded_steps_stay_clear_of_every_threshold(bundles: dict[Kind, Bundle]) -> None:
    """The promise behind the strict bounds: no rounding within the bound can flip a recorded spike."""
    bundle = bundles["conv"]
    golden = make_golden(graph_of(bundle), bundle.spec, seed=3)
    feeds = {"image": golden["step.input"].astype(np.float32)}
    feeds |= {s.input: golden[f"step.state.{k}"].astype(np.float32) for k, s in enumerate(bundle.spec.states)}
    exact = Reference(graph_of(bundle), bundle.spec, np.float64)
    y, states = exact.step({"image": feeds["image"]}, {s.input: feeds[s.input] for s in bundle.spec.states})
    for k, state in enumerate(bundle.spec.states):
        error = np.abs(states[state.input] - golden[f"step.next.{k}"])
        assert (error <= golden[f"step.next_bound.{k}"] / 2).all(), state.input
    stock = Stock(graph_of(bundle)).run(feeds)
    assert np.abs(stock["y"] - y).max() < 1e-5
