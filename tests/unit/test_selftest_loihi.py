"""The proof of engines in Loihi's integers: a correct one passes, one that is off by a unit anywhere does not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edged.bundle.golden_form import load_golden
from edged.bundle.golden_loihi import Chip, in_integers
from edged.bundle.graph.builder import StepBuilder
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.linear import NotLinear
from edged.bundle.graph.spec import GraphSpec
from edged.bundle.loaded import Bundle
from edged.bundle.loihi import Integers, NoIntegers
from edged.bundle.selftest import INTEGERS, SelftestReport, prove
from edged.bundle.writer import write_bundle
from edged.errors import BundleError
from edged.ports import Engine
from tests.support.bundles import Kind, make_bundle
from tests.support.chip_engine import ChipEngine, changed, integers_of
from tests.support.stock_engine import StockEngine

KINDS: tuple[Kind, ...] = ("dense", "conv", "sequence", "events")
NO_FORM: tuple[Kind, ...] = ("cuba", "rates")  # neurons that the chip does not have


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Bundle]:
    base = tmp_path_factory.mktemp("bundles")
    return {kind: make_bundle(base / kind, kind=kind, timesteps=5) for kind in (*KINDS, *NO_FORM)}


def made_of(bundle: Bundle) -> Integers:
    return integers_of(bundle, check_step_graph(bundle.read("model.onnx"), bundle.spec))


def proved(engine: Engine, bundle: Bundle, *, full: bool = True) -> SelftestReport:
    return asyncio.run(prove(engine, bundle, full=full))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", INTEGERS)
def test_a_correct_engine_in_integers_passes(bundles: dict[Kind, Bundle], kind: Kind, name: str) -> None:
    bundle = bundles[kind]
    report = proved(ChipEngine(Chip(made_of(bundle), bundle.spec), name), bundle)
    assert report.passed, report.reason
    assert [check.name for check in report.checks] == ["steps", "ties", "free runs"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_defect_of_one_unit_fails(bundles: dict[Kind, Bundle], kind: Kind) -> None:
    bundle, tried = bundles[kind], 0
    for name, made in changed(made_of(bundle)):
        assert not proved(ChipEngine(Chip(made, bundle.spec)), bundle).passed, f"{name} was not noticed"
        tried += 1
    assert tried >= 8


def test_control_the_same_integers_do_not_pass_for_floating_point(bundles: dict[Kind, Bundle]) -> None:
    bundle = bundles["dense"]
    assert not proved(ChipEngine(Chip(made_of(bundle), bundle.spec), "onnxruntime"), bundle).passed


def test_control_floating_point_does_not_pass_for_integers(bundles: dict[Kind, Bundle]) -> None:
    bundle = bundles["dense"]
    engine = StockEngine(check_step_graph(bundle.read("model.onnx"), bundle.spec), bundle.spec)
    assert proved(engine, bundle).passed
    engine.name = "lava-fixed"
    assert not proved(engine, bundle).passed


@pytest.mark.parametrize("kind", NO_FORM)
def test_a_network_that_the_chip_cannot_hold_has_no_golden_data_in_integers(
    bundles: dict[Kind, Bundle], kind: Kind
) -> None:
    assert not [name for name in load_golden(bundles[kind]) if name.startswith("loihi.")]


def without_integers(bundle: Bundle, dest: Path) -> Bundle:
    golden = {name: value for name, value in load_golden(bundle).items() if not name.startswith("loihi.")}
    return rewritten(bundle, dest, golden)


def rewritten(bundle: Bundle, dest: Path, golden: dict[str, Any]) -> Bundle:
    model = check_step_graph(bundle.read("model.onnx"), bundle.spec)
    return write_bundle(dest, manifest=bundle.manifest, model=model, golden=golden, report={}, card="")


def test_a_bundle_of_an_earlier_release_is_as_good_as_before_and_refused_by_name_for_integers(
    bundles: dict[Kind, Bundle], tmp_path: Path
) -> None:
    old = without_integers(bundles["dense"], tmp_path / "old")
    model = check_step_graph(old.read("model.onnx"), old.spec)
    assert proved(StockEngine(model, old.spec), old).passed
    engine = ChipEngine(Chip(made_of(bundles["dense"]), old.spec))
    with pytest.raises(BundleError, match=r"lava-fixed .* test-dense@1.0.0 has no golden data in integers") as caught:
        proved(engine, old)
    assert "convert the model again" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("loihi.step.rows", np.array([0, 1, 2, 99]), "places that there are not"),
        ("loihi.step.rows", np.array([0.5]), "is of shape|places that there are not"),
        ("loihi.tie.0.place", np.array([12]), "places that there are not|is of shape"),
        ("loihi.free.readout", np.zeros((2, 2)), "is of shape"),
        ("loihi.bound.1", np.array(np.nan), "NaN"),
        ("loihi.step.next.0", None, "missing"),
    ],
)
def test_damaged_golden_data_in_integers_are_refused(
    bundles: dict[Kind, Bundle], tmp_path: Path, name: str, value: Any, message: str
) -> None:
    bundle = bundles["dense"]
    golden = load_golden(bundle)
    golden = {key: one for key, one in golden.items() if key != name} | ({} if value is None else {name: value})
    bad = rewritten(bundle, tmp_path / "bad", golden)
    with pytest.raises(BundleError, match=message):
        proved(ChipEngine(Chip(made_of(bundle), bundle.spec)), bad)


def layer(op: str, weights: Any, **parameters: Any) -> tuple[onnx.ModelProto, GraphSpec]:
    b = StepBuilder("layer")
    current = b.node("Gemm", b.input("x", (len(weights),)), b.constant(np.asarray(weights, np.float32)))
    graph = b.build(b.neuron(op, current, (weights.shape[1],), name="cell", **parameters), weights.shape[1])
    return graph.model, graph.spec(4)


@pytest.mark.parametrize(("op", "reset"), [("IF", {"v_sub": 1.0}), ("IFZ", {"v_reset": 0.0})])
@pytest.mark.parametrize("loud", [0.05, 1.0, 40.0])
def test_integers_have_room_for_twice_the_golden_windows(op: str, reset: dict[str, float], loud: float) -> None:
    weights = np.random.default_rng(0).normal(0, 1, (6, 5))
    windows = (np.random.default_rng(1).random((8, 6)) * loud).astype(np.float32)
    made, _ = in_integers(*layer(op, weights, v_th=1.0, **reset), windows)
    for window in windows:
        made.window({"x": np.repeat(2 * window[np.newaxis], 4, axis=0)}, 4)  # raises NoIntegers out of range


def test_a_weight_that_no_golden_window_used_fits_as_well() -> None:
    weights = np.eye(6)
    weights[5, 5] = 500.0
    windows = np.random.default_rng(1).random((8, 6)).astype(np.float32)
    windows[:, 5] = 0.0
    made, _ = in_integers(*layer("IF", weights, v_th=1.0, v_sub=1.0), windows)
    (one,) = made.populations
    fan = next(fan for fan in one.fans if fan.synapses.source == "x")
    assert fan.exponent <= 7
    unit = one.unit / 64 / made.inputs["x"]
    assert float(fan.synapses.weights[-1] * 2.0**fan.exponent / unit[5]) == pytest.approx(500.0, rel=0.01)


def test_thresholds_far_below_the_currents_have_no_form() -> None:
    windows = np.ones((2, 6), np.float32)
    with pytest.raises(NoIntegers, match="thresholds lie too far below"):
        in_integers(*layer("IFZ", np.eye(6) * 1e6, v_th=1.0, v_reset=0.0), windows)


def test_different_decays_in_a_population_have_no_form() -> None:
    decay = np.linspace(0.5, 0.9, 6).astype(np.float32)
    with pytest.raises(NoIntegers, match="different values of decay"):
        in_integers(*layer("LIF", np.eye(6), v_th=1.0, v_sub=1.0, decay=decay, bias=0.0), np.ones((2, 6), np.float32))


def test_what_is_not_linear_between_neurons_has_no_form() -> None:
    b = StepBuilder("pooled")
    x = b.node("MaxPool", b.input("x", (1, 4, 4)), kernel_shape=[2, 2], strides=[2, 2])
    current = b.node("Gemm", b.node("Flatten", x), b.constant(np.ones((4, 2), np.float32)))
    graph = b.build(b.neuron("IF", current, (2,), name="cell", v_th=1.0, v_sub=1.0), 2)
    with pytest.raises(NotLinear, match="no weighted sum"):
        in_integers(graph.model, graph.spec(4), np.ones((2, 1, 4, 4), np.float32))
