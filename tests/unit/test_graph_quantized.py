"""Weights kept as int8: the same numbers after the way there and back, and every crooked form refused by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cloud_sync.convert.network import Conv, Dense
from cloud_sync.convert.weights import int8
from edged.bundle.graph import quantized
from edged.bundle.graph.builder import StepBuilder, StepGraph
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.quantized import OP, packed, restored
from edged.bundle.graph.stock import Stock
from edged.errors import BundleError

T = 3


def graph(*, rounded: bool = True, seed: int = 0) -> StepGraph:
    """Conv, neuron, Gemm, neuron, MatMul: every place in which a weight can stand, and a silent channel."""
    random = np.random.default_rng(seed)
    builder = StepBuilder()
    conv = Conv(
        random.normal(0, 0.5, (4, 2, 3, 3)).astype(np.float32), np.zeros(4, np.float32), (1, 1), (1,) * 4, (1, 1)
    )
    conv.weight[2] = 0
    dense = [Dense(random.normal(0, 0.3, shape).astype(np.float32), np.ones(shape[1], np.float32)) for shape in
        ((100, 12), (12, 5))]  # fmt: skip
    layers: list[Conv | Dense] = [conv, *dense]
    weights = [int8(layer, analogue=False).weight if rounded else layer.weight for layer in layers]
    x = builder.input("x", (2, 5, 5))
    current = builder.node("Conv", x, builder.constant(weights[0], "conv"), pads=[1, 1, 1, 1])
    spikes = builder.node("Flatten", builder.neuron("IF", current, (4, 5, 5), v_th=0.5, v_sub=1.0), axis=1)
    bias = builder.constant(dense[0].bias)
    current = builder.node("Gemm", spikes, builder.constant(weights[1].T, "gemm"), bias, transB=1)
    spikes = builder.neuron("IF", current, (12,), v_th=0.5, v_sub=1.0)
    return builder.build(builder.node("MatMul", spikes, builder.constant(weights[2], "matmul")), 5)


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_int8_weights_are_a_third_of_the_file_and_the_same_to_the_bit() -> None:
    made = graph()
    small = packed(made.model)
    assert len(small.SerializeToString()) < len(made.model.SerializeToString()) * 0.6  # neurons' bodies stay
    kinds = {name: array.dtype for name, array in weights_of(small).items()}
    assert [kinds[f"{name}.int8"] for name in ("conv", "gemm", "matmul")] == [np.int8] * 3
    back = weights_of(check_step_graph(small.SerializeToString(), made.spec(T)))
    assert back.keys() == weights_of(made.model).keys()
    for name, array in weights_of(made.model).items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.mark.parametrize("optimized", [True, False])
def test_stock_onnx_runtime_runs_the_file_as_it_is_and_computes_the_same_bits(optimized: bool) -> None:
    made = graph()
    feeds = {"x": np.random.default_rng(1).random((3, 2, 5, 5), dtype=np.float32)}
    feeds |= {s.input: np.full((3, *s.shape), 0.3, np.float32) for s in made.states}
    plain, small = (Stock(model, optimized=False).run(feeds) for model in (made.model, packed(made.model)))
    own = Stock(packed(made.model), optimized=optimized).run(feeds)
    assert plain["y"].any()
    for name, value in plain.items():
        np.testing.assert_array_equal(small[name], value)
        np.testing.assert_allclose(own[name], value, atol=1e-5)


def test_weights_that_are_on_no_levels_stay_float32() -> None:
    made = graph(rounded=False)
    assert packed(made.model).SerializeToString() == made.model.SerializeToString()
    assert restored(made.model) is made.model


@pytest.mark.parametrize("seed", range(20))
def test_every_rounded_weight_is_found_again(seed: int) -> None:
    assert sum(node.op_type == OP for node in packed(graph(seed=seed).model).graph.node) == 3


def test_a_weight_that_two_layers_read_along_different_axes_stays_float32() -> None:
    builder = StepBuilder()
    step = np.float32(2.0) ** -7
    square = builder.constant(np.full((9, 9), 127 * step, np.float32), "square")
    x = builder.node("MatMul", builder.input("x", (9,)), square)
    spikes = builder.neuron("IF", x, (9,), v_th=0.5, v_sub=1.0)
    made = builder.build(builder.node("Gemm", spikes, square, transB=1), 9)
    assert packed(made.model).SerializeToString() == made.model.SerializeToString()


def _joined(model: onnx.ModelProto) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if node.op_type == OP)
    return found


def _tensor(model: onnx.ModelProto, end: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == "conv" + end)
    return found


def _put(end: str, array: np.ndarray) -> Callable[[onnx.ModelProto], object]:
    return lambda model: _tensor(model, end).CopyFrom(numpy_helper.from_array(array, "conv" + end))


def _outside(model: onnx.ModelProto) -> None:
    tensor = _tensor(model, ".int8")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


def _elsewhere(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Add", ["y", "conv.scale"], ["more"]))


CROOKED: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "zero point": (lambda m: _joined(m).input.append("conv.scale"), "without a zero point"),
    "activation": (lambda m: _joined(m).input.__setitem__(0, "y"), "must join two initializers"),
    "attribute": (lambda m: _joined(m).attribute.append(helper.make_attribute("block_size", 2)), "is the axis"),
    "axis": (lambda m: setattr(_joined(m).attribute[0], "i", 7), "its scale has shape"),
    "negative axis": (lambda m: setattr(_joined(m).attribute[0], "i", -4), "its scale has shape"),
    "uint8": (_put(".int8", np.ones((4, 2, 3, 3), np.uint8)), "joins uint8 and float32"),
    "double scale": (_put(".scale", np.ones(4)), "joins int8 and float64"),
    "one scale": (_put(".scale", np.ones(1, np.float32)), "its scale has shape (1,)"),
    "negative": (_put(".scale", np.full(4, -1, np.float32)), "scale is not positive"),
    "nan": (_put(".scale", np.full(4, np.nan, np.float32)), "scale is not positive"),
    "outside": (_outside, "outside the file"),
    "truncated": (lambda m: setattr(_tensor(m, ".int8"), "raw_data", b"123"), "what its shape says"),
    "twice": (lambda m: m.graph.initializer.append(_tensor(m, ".int8")), "two initializers of one name"),
    "elsewhere": (_elsewhere, "elsewhere"),
    "put out": (lambda m: m.graph.output.append(helper.make_tensor_value_info("conv", 1, [4, 2, 3, 3])), "puts out"),
    "loose int8": (lambda m: m.graph.node.remove(_joined(m)), "float32, or int64"),
}  # fmt: skip


@pytest.mark.parametrize("case", CROOKED)
def test_a_crooked_int8_weight_is_refused(case: str) -> None:
    made = graph()
    model = packed(made.model)
    check_step_graph(model, made.spec(T))  # the control
    change, reason = CROOKED[case]
    change(model)
    with pytest.raises(BundleError) as caught:
        check_step_graph(model.SerializeToString(), made.spec(T))
    assert reason in f"{caught.value.message} {caught.value.hint}"


def test_a_small_file_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "MAX_NUMBERS", 100)
    with pytest.raises(BundleError, match="more than 100 numbers"):
        restored(packed(graph().model))
