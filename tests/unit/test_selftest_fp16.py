"""The proof of engines whose sums are in float16: honest ones pass, however they add; a planted defect does not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edged.bundle.golden_form import load_golden
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.plans import window_plan
from edged.bundle.graph.spec import GraphSpec
from edged.bundle.graph.standard import standard
from edged.bundle.graph.stock import Stock
from edged.bundle.graph.variants import half, weight_of
from edged.bundle.loaded import Bundle
from edged.bundle.selftest import FLOAT16, SelftestReport, prove
from edged.bundle.writer import write_bundle
from edged.domain import Array
from edged.errors import BundleError
from edged.ports import Engine
from tests.support.bundles import Kind, make_bundle
from tests.support.mutants import mutants
from tests.support.numpy_engine import NumpyEngine, narrow, rounded
from tests.support.stock_engine import StockEngine
from tests.support.tensorrt import bundles as bundled

KINDS: tuple[Kind, ...] = get_args(Kind)
(NAME,) = FLOAT16


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Bundle]:
    base = tmp_path_factory.mktemp("bundles")
    return {kind: make_bundle(base / kind, kind=kind, timesteps=5) for kind in KINDS}


def graph_of(bundle: Bundle) -> onnx.ModelProto:
    return check_step_graph(bundle.read(bundle.manifest.variant.model), bundle.spec)


def in_float16(model: onnx.ModelProto, spec: GraphSpec) -> StockEngine:
    """The graphs that TensorRT is given, on stock ONNX Runtime, which adds in float32."""
    engine = StockEngine(model, spec)
    engine.name = NAME
    engine.stepper = Stock(half(standard(model)), optimized=False)
    engine.window = Stock(half(standard(window_plan(model, spec, "unrolled"))), optimized=False)
    return engine


def proved(engine: Engine, bundle: Bundle, *, full: bool = True) -> SelftestReport:
    return asyncio.run(prove(engine, bundle, full=full))


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_adds_in_float32_passes(bundles: dict[Kind, Bundle], kind: Kind) -> None:
    report = proved(in_float16(graph_of(bundles[kind]), bundles[kind].spec), bundles[kind])
    assert report.passed, report.reason
    assert [check.name for check in report.checks] == ["steps", "ties", "free runs"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_adds_in_float16_passes(bundles: dict[Kind, Bundle], kind: Kind) -> None:
    report = proved(NumpyEngine(narrow(graph_of(bundles[kind]), bundles[kind].spec), NAME), bundles[kind])
    assert report.passed, report.reason


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [{"numbers": 8}, {"sums": 8}], ids=["numbers", "sums"])
def test_control_eight_bits_are_too_few(bundles: dict[Kind, Bundle], kind: Kind, bits: dict[str, int]) -> None:
    bundle = bundles[kind]
    assert not proved(NumpyEngine(narrow(graph_of(bundle), bundle.spec, **bits), NAME), bundle).passed


@pytest.mark.parametrize("bundle", bundled(), ids=lambda bundle: bundle.name)
def test_every_bundled_model_passes_in_float16(bundle: Bundle) -> None:
    assert "fp16.format" in load_golden(bundle)
    report = proved(in_float16(graph_of(bundle), bundle.spec), bundle)
    assert report.passed, report.reason
    assert not proved(in_float16(in_eight_bits(graph_of(bundle)), bundle.spec), bundle).passed, "the control"


@pytest.mark.parametrize("bundle", bundled(), ids=lambda bundle: bundle.name)
def test_every_bundled_model_passes_with_sums_in_float16(bundle: Bundle) -> None:
    report = proved(NumpyEngine(narrow(graph_of(bundle), bundle.spec), NAME, max_batch=8), bundle, full=False)
    assert report.passed, report.reason
    coarse = NumpyEngine(narrow(graph_of(bundle), bundle.spec, sums=8), NAME, max_batch=8)
    assert not proved(coarse, bundle, full=False).passed, "the control"


def in_eight_bits(model: onnx.ModelProto) -> onnx.ModelProto:
    """The weights of all layers as bfloat16 has them."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    given = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    names = {weight_of(node, given) for node in made.graph.node}
    for tensor in made.graph.initializer:
        if tensor.name in names:
            value = rounded(given[tensor.name], 8).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_planted_defect_fails(bundles: dict[Kind, Bundle], kind: Kind) -> None:
    bundle, tried, missed = bundles[kind], 0, []
    for name, mutant in mutants(graph_of(bundle)):
        missed += [name] if proved(in_float16(mutant, bundle.spec), bundle).passed else []
        tried += 1
    assert not missed
    assert tried >= 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_in_the_window_alone_fails_the_free_runs(bundles: dict[Kind, Bundle], kind: Kind) -> None:
    bundle, tried = bundles[kind], 0
    good = in_float16(graph_of(bundle), bundle.spec)
    for name, mutant in mutants(graph_of(bundle)):
        if name.endswith(("weights dropped", "bias dropped")):
            good.window = in_float16(mutant, bundle.spec).window
            report = proved(good, bundle)
            assert [check.passed for check in report.checks] == [True, True, False], f"{name} was not noticed"
            tried += 1
    assert tried >= 2


def test_weights_of_another_layer_and_states_that_are_not_handed_on_fail(bundles: dict[Kind, Bundle]) -> None:
    bundle = bundles["dense"]
    swapped = onnx.ModelProto()
    swapped.CopyFrom(graph_of(bundle))
    weight = next(tensor for tensor in swapped.graph.initializer if tuple(tensor.dims) == (6, 12))
    other = numpy_helper.to_array(next(t for t in swapped.graph.initializer if tuple(t.dims) == (12, 4)))
    weight.CopyFrom(numpy_helper.from_array(np.resize(other, (6, 12)), weight.name))
    assert not proved(in_float16(swapped, bundle.spec), bundle).passed

    class Forgetful(NumpyEngine):
        """Gives back the states that it was given."""

        async def step(
            self, inputs: Mapping[str, Array], states: Mapping[str, Array]
        ) -> tuple[dict[str, Array], dict[str, Array]]:
            return (await super().step(inputs, states))[0], dict(states)

    assert not proved(Forgetful(narrow(graph_of(bundle), bundle.spec), NAME), bundle).passed


def test_sums_in_float16_do_not_pass_for_float32(bundles: dict[Kind, Bundle]) -> None:
    engine = in_float16(graph_of(bundles["dense"]), bundles["dense"].spec)
    engine.name = "tensorrt"
    report = proved(engine, bundles["dense"])
    assert not report.passed
    assert "float16" not in report.reason


def rewritten(bundle: Bundle, dest: Path, golden: dict[str, Any]) -> Bundle:
    return write_bundle(dest, manifest=bundle.manifest, model=graph_of(bundle), golden=golden, report={}, card="")


def test_in_a_bundle_of_an_earlier_release_the_data_of_float32_decide(
    bundles: dict[Kind, Bundle], tmp_path: Path
) -> None:
    golden = {name: v for name, v in load_golden(bundles["dense"]).items() if not name.startswith("fp16.")}
    old = rewritten(bundles["dense"], tmp_path / "old", golden)
    exact = StockEngine(graph_of(old), old.spec)
    exact.name = NAME
    assert proved(exact, old).passed
    report = proved(in_float16(graph_of(old), old.spec), old)
    assert not report.passed
    assert "the bundle has no golden data in float16, so those of float32 decided" in report.reason


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fp16.step.input", np.zeros(6), "is of shape"),
        ("fp16.step.output", np.zeros((2, 4)), "is of shape"),
        ("fp16.step.next_bound.1", np.full((17, 4), np.inf), "NaN or infinity"),
        ("fp16.step.place.0", np.array([0, 12]), "places that there are not"),
        ("fp16.step.unit", None, "missing"),
        ("fp16.free.margin_floor", np.zeros(()), "is of shape"),
    ],
)
def test_damaged_golden_data_in_float16_are_refused(
    bundles: dict[Kind, Bundle], tmp_path: Path, name: str, value: Any, message: str
) -> None:
    bundle = bundles["dense"]
    golden = {key: one for key, one in load_golden(bundle).items() if key != name}
    bad = rewritten(bundle, tmp_path / "bad", golden | ({} if value is None else {name: value}))
    with pytest.raises(BundleError, match=message):
        proved(in_float16(graph_of(bundle), bundle.spec), bad)
