"""The doubt of a tensor holds for every honest way to compute it, and is not larger than it has to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from edged.bundle.fp16 import UNIT, Float16Graph, half
from edged.bundle.fp16_ops import NoFloat16
from edged.bundle.graph.builder import StepBuilder
from edged.bundle.graph.standard import standard
from edged.bundle.graph.stock import Stock
from edged.bundle.graph.variants import half as half_graph
from tests.support.numpy_engine import narrow
from tests.support.tensorrt import Subject, random_subjects

Floats = np.ndarray[Any, np.dtype[Any]]


def layer(weights: Floats, bias: Floats | None = None) -> Subject:
    """x → Gemm → LI that keeps nothing."""
    b = StepBuilder("layer")
    given = [b.input("x", (len(weights),)), b.constant(weights)]
    current = b.node("Gemm", *given, *([] if bias is None else [b.constant(bias)]))
    size = weights.shape[1]
    graph = b.build(b.neuron("LI", current, (size,), name="cell", decay=0.0, bias=0.0), size)
    return Subject("layer", graph.model, graph.spec(4))


def doubted(one: Subject, x: Floats) -> tuple[Floats, Floats]:
    """The output for inputs, from zero states, and its doubt."""
    given = {"x": x} | {s.input: np.zeros((len(x), *s.shape), np.float32) for s in one.spec.states}
    tensors, doubts = Float16Graph(one.model, one.spec).doubts(given)
    return tensors[one.spec.output], doubts[one.spec.output]


def largest(error: Floats, doubt: Floats) -> float:
    """Of the errors, in units of their doubts; where nothing is added there is neither."""
    return float(np.where(error > 0, error / np.maximum(doubt, 1e-300), 0.0).max())


def test_one_spike_through_one_weight_leaves_no_doubt() -> None:
    weights = np.random.default_rng(0).normal(0, 1, (40, 7)).astype(np.float32)
    value, doubt = doubted(layer(weights), np.eye(40, dtype=np.float32))
    np.testing.assert_array_equal(value, weights.astype(np.float16))
    assert doubt.max() < UNIT / 16


def test_at_rest_a_bias_is_as_exact_as_in_float32() -> None:
    bias = np.random.default_rng(0).normal(0, 1, 7).astype(np.float32)
    value, doubt = doubted(layer(np.ones((5, 7), np.float32), bias), np.zeros((1, 5), np.float32))
    np.testing.assert_array_equal(value[0].astype(np.float32), bias)
    assert doubt.max() < 1e-4


@pytest.mark.parametrize("terms", [2, 10, 100, 1000])
@pytest.mark.parametrize("spikes", [True, False])
def test_sums_in_float16_in_any_order_stay_within_their_doubt(terms: int, *, spikes: bool) -> None:
    rng = np.random.default_rng(terms)
    weights = rng.normal(0.1, 0.5, (terms, 16)).astype(np.float32)
    x = (rng.random((30, terms)) < 0.7 if spikes else rng.random((30, terms))).astype(np.float32)
    value, doubt = doubted(layer(weights), x)
    worst = 0.0
    for order in (np.arange(terms), np.arange(terms)[::-1], rng.permutation(terms), np.argsort(weights[:, 0])):
        one = layer(weights[order])
        state = {s.input: np.zeros((30, *s.shape), np.float32) for s in one.spec.states}
        found = narrow(one.model, one.spec).step({"x": x[:, order]}, state)[0]
        worst = max(worst, largest(np.abs(found - value), doubt))
    assert worst <= 1
    assert terms == 2 or worst > 0.02, "a bound that is never approached proves nothing"


def test_numbers_of_eight_bits_leave_the_doubt() -> None:
    rng = np.random.default_rng(3)
    weights = rng.normal(0.1, 0.5, (16, 16)).astype(np.float32)
    x = (rng.random((30, 16)) < 0.2).astype(np.float32)
    one = layer(weights)
    value, doubt = doubted(one, x)
    state = {s.input: np.zeros((30, *s.shape), np.float32) for s in one.spec.states}
    found = narrow(one.model, one.spec, numbers=8).step({"x": x}, state)[0]
    assert (np.abs(found - value) > doubt).mean() > 0.2


def test_random_graphs_on_stock_onnx_runtime_stay_within_their_doubt() -> None:
    """Every op, neuron and state that the random graphs have; spikes in doubt are counted, too."""
    compared = 0
    for one, inputs in random_subjects():
        rng = np.random.default_rng(compared)
        feeds = {e.name: (inputs[e.name][0] if e.sequence else inputs[e.name]) for e in one.spec.inputs}
        rows = len(next(iter(feeds.values())))
        feeds |= {s.input: (rng.integers(0, 17, (rows, *s.shape)) / 16).astype(np.float32) for s in one.spec.states}
        tensors, doubts = Float16Graph(one.model, one.spec).doubts(feeds)
        found = Stock(half_graph(standard(one.model)), optimized=False).run(feeds)
        for name, value in found.items():
            assert (np.abs(value - tensors[name]) <= doubts[name]).all(), f"{one.name} {name}"
        compared += 1
    assert compared > 50


def function(op: str, *more: Floats, **attributes: Any) -> Subject:
    """x → weights → op."""
    b = StepBuilder(op)
    current = b.node("MatMul", b.input("x", (8,)), b.constant(np.random.default_rng(1).normal(0, 0.5, (8, 8))))
    y = b.node(op, current, *(b.constant(np.asarray(one)) for one in more), **attributes)
    graph = b.build(y, 8)
    return Subject(op, graph.model, graph.spec(4))


@pytest.mark.parametrize(
    "one",
    [
        function("Softmax", axis=-1),
        function("LayerNormalization", np.full(8, 2.0, np.float32), np.ones(8, np.float32)),
        *(function(op) for op in ("Erf", "Exp", "Relu", "Sigmoid", "Tanh", "Abs", "Neg")),
    ],
    ids=lambda one: one.name,
)
def test_a_function_s_doubt_covers_whatever_its_input_may_be(one: Subject) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (20, 8)).astype(np.float32)
    tensors, doubts = Float16Graph(one.model, one.spec).doubts({"x": x})
    weight = next(node.output[0] for node in one.model.graph.node if node.op_type == "MatMul")
    tail = onnx.ModelProto()
    tail.CopyFrom(one.model)
    kept = [node for node in tail.graph.node if node.op_type != "MatMul"]
    del tail.graph.node[:], tail.graph.input[:]
    tail.graph.node.extend(kept)
    tail.graph.input.append(helper.make_tensor_value_info(weight, onnx.TensorProto.FLOAT, ["B", 8]))
    session, worst = Stock(tail), 0.0
    for _ in range(200):
        moved = tensors[weight] + doubts[weight] * rng.choice([-1.0, 1.0], tensors[weight].shape)
        error = np.abs(session.run({weight: moved.astype(np.float32)})[one.spec.output] - tensors[one.spec.output])
        worst = max(worst, largest(error, doubts[one.spec.output]))
    assert 0.2 < worst <= 1 + 1e-4, "float32 rounds here, too"


def test_numbers_that_float16_does_not_have_are_refused() -> None:
    with pytest.raises(NoFloat16, match="too large"):
        half(np.array([1e5]))
    with pytest.raises(NoFloat16, match="sum of it may be too large"):
        doubted(layer(np.full((100, 2), 1000.0, np.float32)), np.ones((1, 100), np.float32))


def test_an_op_without_a_rule_is_refused_by_name() -> None:
    one = function("Pow", np.full(1, 2.0, np.float32))
    with pytest.raises(NoFloat16, match="errors of Pow"):
        Float16Graph(one.model, one.spec).doubts({"x": np.ones((1, 8), np.float32)})


@pytest.mark.parametrize("op", ["AveragePool", "MaxPool"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"strides": [2, 1]},
        {"pads": [1, 0, 1, 1], "strides": [2, 2]},
        {"pads": [1, 1, 1, 1], "count_include_pad": 1},
        {"ceil_mode": 1, "strides": [2, 2]},
    ],
    ids=str,
)
def test_pools_are_onnx_runtimes(op: str, how: dict[str, Any]) -> None:
    attributes = {k: v for k, v in how.items() if op == "AveragePool" or k != "count_include_pad"}
    b = StepBuilder(op)
    pooled = b.node(op, b.input("x", (2, 7, 6)), kernel_shape=[3, 2], **attributes)
    graph = b.build(b.node("ReduceMean", pooled, axes=[2, 3], keepdims=0), 2)
    x = np.random.default_rng(0).normal(0, 1, (3, 2, 7, 6)).astype(np.float32)
    tensors, _ = Float16Graph(graph.model, graph.spec(4)).doubts({"x": x})
    np.testing.assert_allclose(tensors[graph.output], Stock(graph.model).run({"x": x})[graph.output], atol=1e-5)
