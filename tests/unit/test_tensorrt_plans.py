"""The plans for engines that read standard ops alone compute what the canonical graph does, in every variant."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edged.bundle.golden_form import load_golden
from edged.bundle.graph.plans import OUTPUTS
from edged.bundle.graph.standard import standard
from edged.bundle.graph.stock import Stock
from edged.bundle.graph.variants import WEIGHTED, NoVariant, half, int8, int8_layers, standard_plans
from edged.bundle.loaded import Bundle
from edged.bundle.plans import INDEX, STEP, WINDOWS, ensure_plans
from tests.support.bundles import make_bundle
from tests.support.tensorrt import GRAPHS, Subject, bundles, random_subjects, rounded, subject

OLD_PARSER = {"LayerNormalization"}  # ops of ours that TensorRT 8.5 has no importer for


def step_feeds(one: Subject, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs and states on a grid, on which sums are exact in any order."""
    rng = np.random.default_rng(seed)
    shapes = {i.name: i.shape for i in one.spec.inputs} | {s.input: s.shape for s in one.spec.states}
    return {name: (rng.integers(-8, 17, (rows, *shape)) / 16).astype(np.float32) for name, shape in shapes.items()}


def assert_same(one: onnx.ModelProto, other: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    """Bit for bit, without the runtime's own rewriting; what LayerNormalization sums in another order, to rounding."""
    onnx.checker.check_model(one, full_check=True)
    found, wanted = Stock(one, optimized=False), Stock(other, optimized=False)
    assert found.outputs == wanted.outputs
    expected, sums = wanted.run(feeds), any(node.op_type == "LayerNormalization" for node in other.graph.node)
    for name, value in found.run(feeds).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=2e-6 if sums else 0, err_msg=name)


def golden_window(bundle: Bundle) -> dict[str, np.ndarray]:
    entry, samples = bundle.inputs[0], load_golden(bundle)["free.input"].astype(np.float32)[:4]
    return {entry.name: np.ascontiguousarray(np.swapaxes(samples, 0, 1) if entry.sequence else samples)}


@pytest.mark.parametrize("bundle", bundles(), ids=lambda bundle: bundle.name)
def test_standard_plans_of_every_model_are_the_same(bundle: Bundle) -> None:
    one = subject(bundle)
    feeds = {"step": step_feeds(one, 3), "window": golden_window(bundle)}
    for name, plan in one.plans.items():
        made = standard(plan)
        assert_same(made, plan, feeds[name])
        assert not made.functions
        assert {entry.domain for entry in made.opset_import} == {""}
        assert not OLD_PARSER & {node.op_type for node in made.graph.node}
        shapes = [node for node in made.graph.node if node.op_type == "Shape"]
        assert not any(node.attribute for node in shapes)


def test_standard_plans_of_random_graphs_are_the_same_to_the_bit() -> None:
    seen = 0
    for one, inputs in random_subjects():
        for name, plan in one.plans.items():
            assert_same(standard(plan), plan, inputs if name == "window" else step_feeds(one, 2, seen))
        seen += 1
    assert seen == GRAPHS


def layer_norm(axis: int, *, biased: bool) -> onnx.ModelProto:
    inputs = ["x", "scale", "bias"][: 2 + biased]
    node = helper.make_node("LayerNormalization", inputs, ["y"], axis=axis, epsilon=1e-3)
    shape = (3, 4, 5)[axis:] if axis >= 0 else (3, 4, 5)[axis + 3 :]
    rng = np.random.default_rng(1)
    weights = [numpy_helper.from_array(rng.random(shape, dtype=np.float32), name) for name in inputs[1:]]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 4, 5]) for name in ("x", "y")]
    graph = helper.make_graph([node], "norm", infos[:1], infos[1:], weights)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("axis", [-1, 1, -2, 2])
def test_layer_normalization_is_taken_apart_as_it_is_defined(axis: int, *, biased: bool) -> None:
    model, x = layer_norm(axis, biased=biased), np.random.default_rng(0).normal(3, 2, (3, 4, 5)).astype(np.float32)
    made = standard(model)
    assert "LayerNormalization" not in {node.op_type for node in made.graph.node}
    found = Stock(made, optimized=False).run({"x": x})["y"]
    np.testing.assert_allclose(found, Stock(model).run({"x": x})["y"], rtol=1e-5, atol=1e-6)
    wrong = standard(layer_norm(axis, biased=biased))
    next(node for node in wrong.graph.node if node.op_type == "Sqrt").op_type = "Abs"
    assert np.abs(Stock(wrong, optimized=False).run({"x": x})["y"] - found).max() > 1e-2, "the comparison can fail"


@pytest.mark.parametrize("bundle", bundles(), ids=lambda bundle: bundle.name)
def test_int8_plans_compute_what_rounded_weights_do(bundle: Bundle) -> None:
    one = subject(bundle)
    one = Subject(one.name, rounded(one.model), one.spec)
    feeds = {"step": step_feeds(one, 2), "window": golden_window(bundle)}
    for name, plan in one.plans.items():
        made = int8(standard(plan))
        onnx.checker.check_model(made, full_check=True)
        found, expected = (Stock(model, optimized=False).run(feeds[name]) for model in (made, plan))
        for output, value in found.items():  # the bias is added behind the sum, which rounds once more
            np.testing.assert_allclose(value, expected[output], rtol=1e-5, atol=1e-5, err_msg=output)
    spiking = (
        bundle.name != "spikeformer-digits"
    )  # its layers hear levels of MultiThreshold, which are no whole numbers
    assert (int8_layers(made) > 0) == spiking


def test_int8_is_for_whole_numbers_and_int8_weights_only() -> None:
    bundle = next(bundle for bundle in bundles() if bundle.name == "digits")
    one = subject(bundle)
    with pytest.raises(NoVariant, match="--weights int8"):
        standard_plans("int8", one.plans)
    made = standard_plans("int8", Subject("", rounded(one.model), one.spec).plans)["step"]
    readers = {node.input[0] for node in made.graph.node if node.op_type == "QuantizeLinear"}
    assert bundle.inputs[0].name not in readers, "pixels are no spikes"


@pytest.mark.parametrize("bundle", bundles(), ids=lambda bundle: bundle.name)
def test_half_precision_stays_between_casts(bundle: Bundle) -> None:
    one = subject(bundle)
    for plan in one.plans.values():
        made = half(standard(plan))
        onnx.checker.check_model(made, full_check=True)
        infos = onnx.shape_inference.infer_shapes(made, check_type=True, strict_mode=True).graph
        kinds = {
            info.name: info.type.tensor_type.elem_type for info in [*infos.value_info, *infos.input, *infos.output]
        }
        kinds |= {tensor.name: tensor.data_type for tensor in infos.initializer}
        for node in made.graph.node:
            halves = [name for name in (*node.input, *node.output) if kinds.get(name) == TensorProto.FLOAT16]
            assert not halves or node.op_type in (*WEIGHTED, "Cast"), f"{node.op_type} {node.name}"
        layers = [node for node in made.graph.node if node.op_type in ("Conv", "Gemm")]
        assert layers
        assert all(kinds[node.output[0]] == TensorProto.FLOAT16 for node in layers)


def test_half_precision_is_close_but_not_the_same() -> None:
    bundle = next(bundle for bundle in bundles() if bundle.name == "bearing")
    plan, feeds = subject(bundle).plans["window"], golden_window(bundle)
    runs = (Stock(model, optimized=False).run(feeds)[OUTPUTS] for model in (half(standard(plan)), plan))
    found, expected = (outputs.mean(axis=0) for outputs in runs)
    assert 0 < np.abs(found - expected).max() < 0.1
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_a_weight_too_large_for_float16_is_no_fault_of_the_model(tmp_path: Path) -> None:
    with pytest.raises(NoVariant, match="float16"):
        half(standard(_with_weight(1e6)))
    assert half(standard(_with_weight(1e4)))


def _with_weight(value: float) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.full((2, 2), value, np.float32), "w")
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", infos[:1], infos[1:], [weight])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def test_a_device_pays_for_the_plans_of_its_own_engines_only(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "dense")
    names = {
        engine: {path.name for path in asyncio.run(ensure_plans(bundle, tmp_path, [engine])).iterdir()}
        for engine in ("onnxruntime", "tensorrt", "tensorrt-int8")
    }
    shared = {STEP, *WINDOWS.values(), INDEX}
    assert names["onnxruntime"] == shared
    assert names["tensorrt"] - shared == {"f32-step.onnx", "f32-window.onnx"}
    assert names["tensorrt-int8"] == shared, "it has no int8 weights, which is for the engine to say"
    index = (asyncio.run(ensure_plans(bundle, tmp_path, ["tensorrt-int8"])) / INDEX).read_text()
    assert "--weights int8" in index
