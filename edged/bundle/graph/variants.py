"""A standard graph with some of its sums in other numbers: float16 or int8. The membranes stay in float32.

Only layers with weights change (Conv, ConvTranspose, Gemm, MatMul). What goes in and comes out of them is float32
again, and biases are added in float32. So the precision is in the graph itself, which strongly typed engines obey.

*half*: weights and what meets them are float16. *int8*: only where that is exact: the weights are whole multiples of
one step for each output channel, as those of an int8 bundle are (``quantized``), and what meets them are whole numbers
of at most 127, as spikes are. Layers that see anything else (pixels, averages, potentials) stay in float32, so an int8
graph computes what the float32 one does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edged.bundle.graph.quantized import OP, output_axis, split
from edged.bundle.graph.standard import Rewriting, attribute, float_initializers, standard

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LARGEST = 127  # of int8, with both signs
Range = tuple[float, float]  # of whole numbers

_SAME = ("Flatten", "Identity", "MaxPool", "GlobalMaxPool", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze", "Gather")  # fmt: skip  # their outputs hold numbers of their first input


class NoVariant(Exception):
    """The model cannot be had in these numbers, and why."""


def standard_plans(variant: str, plans: Mapping[str, onnx.ModelProto]) -> dict[str, onnx.ModelProto]:
    """Plans by name in standard ops and in the numbers of ``f32``, ``fp16`` or ``int8``. Raises NoVariant."""
    made = {name: VARIANTS[variant](standard(plan)) for name, plan in plans.items()}
    if variant == "int8" and not any(map(int8_layers, made.values())):
        raise NoVariant("no layer has int8 weights and takes spikes: convert the model with --weights int8")
    return made


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the weights and their sums in float16. Raises NoVariant for a weight that has no float16."""
    made, graph = _copy(model, "half")
    weights, halves = float_initializers(made.graph), dict[str, str]()

    def rewrite(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        name = weight_of(node, weights)
        if name is None:
            return None
        if name not in halves:
            if np.abs(weights[name]).max(initial=0) > np.finfo(np.float16).max:
                raise NoVariant(f"a weight of {name!r} is too large for float16")
            halves[name] = graph.constant(weights[name].astype(np.float16), f"{name}/half")
        casts: list[onnx.NodeProto] = []
        inputs: list[str] = []
        for given in node.input[:2]:
            if given == name:
                inputs.append(halves[name])
            else:
                casts.append(graph.node("Cast", [given], to=TensorProto.FLOAT16))
                inputs.append(casts[-1].output[0])
        core, bias = _without_bias(graph, node, inputs, weights)
        back = graph.node("Cast", [core.output[0]], to=TensorProto.FLOAT)
        return [*casts, core, *_with_bias(graph, node, back, bias)]

    graph.each(rewrite)
    _drop_unused(made.graph)
    return made


def int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with int8 sums where they are exact, and nowhere else: perhaps in no layer at all (``int8_layers``)."""
    made, graph = _copy(model, "int8")
    weights, ranges = float_initializers(made.graph), whole_numbers(made.graph)
    parts: dict[tuple[str, int], str | None] = {}  # the output of a dequantisation, by weight and axis
    before: list[onnx.NodeProto] = []

    def dequantized(name: str, axis: int | None) -> str | None:
        if axis is None or name not in weights:
            return None
        if (name, axis) not in parts:
            found = split(weights[name], axis)
            if found is not None:
                given = [
                    graph.constant(part, f"{name}/{kind}{axis}")
                    for part, kind in zip(found, ("int8", "scale"), strict=True)
                ]
                before.append(graph.node(OP, given, axis=axis))
            parts[name, axis] = None if found is None else before[-1].output[0]
        return parts[name, axis]

    def rewrite(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        if node.op_type not in WEIGHTED:
            return None
        low, high = ranges.get(node.input[0], (-np.inf, np.inf))
        weight = dequantized(node.input[1], output_axis(node)) if max(-low, high) <= LARGEST else None
        if weight is None:
            return None
        one, zero = graph.constant(np.ones((), np.float32)), graph.constant(np.zeros((), np.int8))
        q = graph.node("QuantizeLinear", [node.input[0], one, zero])
        dq = graph.node(OP, [q.output[0], one, zero])
        core, bias = _without_bias(graph, node, [dq.output[0], weight], weights)
        return [q, dq, *_with_bias(graph, node, core, bias)]

    graph.each(rewrite)
    rest = list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend([*before, *rest])
    _drop_unused(made.graph)
    return made


def weight_of(node: onnx.NodeProto, weights: Mapping[str, NDArray[Any]]) -> str | None:
    """The initializer that a layer multiplies with."""
    if node.op_type not in WEIGHTED:
        return None
    return next((name for name in (node.input[1], node.input[0]) if name in weights), None)


def int8_layers(model: onnx.ModelProto) -> int:
    """How many sums of an int8 graph are made in int8."""
    return sum(node.op_type == "QuantizeLinear" for node in model.graph.node)


def whole_numbers(graph: onnx.GraphProto) -> dict[str, Range]:
    """Tensors that hold whole numbers only, whatever the input, each with its range. What is not known is not in it."""
    found: dict[str, Range] = {}
    for tensor in graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.size and value.dtype == np.float32 and np.array_equal(value, np.round(value)):
            found[tensor.name] = float(value.min()), float(value.max())
    bools = {node.output[0] for node in graph.node if node.op_type in ("And", "Greater", "GreaterOrEqual", "Less")}
    for node in graph.node:
        given = [found.get(name) for name in node.input if name]
        result = _range(node, given, from_bool=bool(node.input) and node.input[0] in bools)
        if result is not None:
            found |= dict.fromkeys(node.output, result)
    return found


def _range(node: onnx.NodeProto, given: list[Range | None], *, from_bool: bool) -> Range | None:
    if node.op_type == "Cast" and from_bool:
        return 0.0, 1.0
    if node.op_type == "ConstantOfShape":
        return 0.0, 0.0  # a state's start; ours have no other value
    if node.op_type in _SAME:
        return given[0] if given else None
    known = [one for one in given if one is not None]
    if len(known) < len(given) or not known:
        return None
    combine = _COMBINE.get(node.op_type)
    return combine(known) if combine else None


_COMBINE: Mapping[str, Callable[[list[Range]], Range]] = {
    "Concat": lambda parts: (min(low for low, _ in parts), max(high for _, high in parts)),
    "Add": lambda parts: (sum(low for low, _ in parts), sum(high for _, high in parts)),
    "Sub": lambda parts: (parts[0][0] - parts[1][1], parts[0][1] - parts[1][0]),
}


def _copy(model: onnx.ModelProto, prefix: str) -> tuple[onnx.ModelProto, Rewriting]:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made, Rewriting(made, prefix)


def _without_bias(
    graph: Rewriting, node: onnx.NodeProto, inputs: list[str], weights: Mapping[str, NDArray[Any]]
) -> tuple[onnx.NodeProto, str]:
    """The layer on other inputs and without its bias, and the bias as it is to be added (empty: there is none)."""
    core = graph.node(node.op_type, inputs)
    core.attribute.extend(a for a in node.attribute if a.name != "beta")
    if len(node.input) < 3 or not node.input[2]:
        return core, ""
    bias = weights[node.input[2]] * np.float32(attribute(node, "beta", 1.0))
    if node.op_type in ("Conv", "ConvTranspose"):
        bias = bias.reshape(1, -1, *(1 for _ in weights[node.input[1]].shape[2:]))
    return core, graph.constant(bias.astype(np.float32))


def _with_bias(graph: Rewriting, node: onnx.NodeProto, last: onnx.NodeProto, bias: str) -> list[onnx.NodeProto]:
    """``last`` gives what ``node`` gave, after the bias is added, in float32."""
    if not bias:
        last.output[0] = node.output[0]
        return [last]
    return [last, graph.node("Add", [last.output[0], bias], node.output[0])]


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


VARIANTS: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "f32": lambda plan: plan,
    "fp16": half,
    "int8": int8,
}
