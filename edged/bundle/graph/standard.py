"""The same graph in standard ops alone, as old parsers read it: functions inlined, LayerNormalization taken apart.

For engines that know neither model-local functions (TensorRT before 9.0) nor all of opset 17: LayerNormalization came
to TensorRT's parser with 8.6, and the ``start`` and ``end`` of Shape are not relied on. Every rewriting computes what
ONNX defines for the op, in float32. What changes the numbers is in ``variants``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edged.bundle.graph.neurons import DOMAIN, OPSET

Nodes = Iterable[onnx.NodeProto]
EPSILON = 1e-5  # of LayerNormalization, where it is not written (ONNX, operator set 17)


def standard(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model without functions and without the ops that an old parser does not have. Inputs and outputs are kept."""
    plain = onnx.inliner.inline_local_functions(model)
    del plain.functions[:]
    kept = [entry for entry in plain.opset_import if entry.domain != DOMAIN]
    del plain.opset_import[:]
    plain.opset_import.extend(kept)
    rewritten = Rewriting(plain, "standard")
    rewritten.each(lambda node: REWRITES[node.op_type](rewritten, node) if node.op_type in REWRITES else None)
    return plain


class Rewriting:
    """A graph whose nodes are replaced by others, in place. Names of new tensors begin with the ``prefix``."""

    def __init__(self, model: onnx.ModelProto, prefix: str) -> None:
        self.graph = model.graph
        self._prefix = prefix
        self._made = 0

    def each(self, rewrite: Callable[[onnx.NodeProto], list[onnx.NodeProto] | None]) -> None:
        """Put what ``rewrite`` returns in the place of each node; None keeps it."""
        found: list[onnx.NodeProto] = []
        for node in list(self.graph.node):
            made = rewrite(node)
            found += [node] if made is None else made
        del self.graph.node[:]
        self.graph.node.extend(found)

    def constant(self, value: NDArray[Any], name: str = "") -> str:
        """An initializer."""
        name = name or self.name("const")
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def name(self, stem: str) -> str:
        """A new name."""
        self._made += 1
        return f"{self._prefix}/{self._made}.{stem}"

    def node(self, op: str, inputs: list[str], output: str = "", **attributes: Any) -> onnx.NodeProto:
        """A node with one output, a new one unless it is named."""
        output = output or self.name(op)
        return helper.make_node(op, inputs, [output], name=output, **attributes)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _layer_normalization(graph: Rewriting, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """ONNX's definition: normalise in float32, then scale and bias. Axes are counted from the end."""
    axis = attribute(node, "axis", -1)
    if axis >= 0:
        axis -= _rank(graph.graph, node.input[0])
    axes = list(range(axis, 0))
    mean = graph.node("ReduceMean", [node.input[0]], axes=axes, keepdims=1)
    away = graph.node("Sub", [node.input[0], mean.output[0]])
    square = graph.node("Mul", [away.output[0], away.output[0]])
    variance = graph.node("ReduceMean", [square.output[0]], axes=axes, keepdims=1)
    epsilon = graph.constant(np.asarray(attribute(node, "epsilon", EPSILON), np.float32))
    safe = graph.node("Add", [variance.output[0], epsilon])
    deviation = graph.node("Sqrt", [safe.output[0]])
    biased = len(node.input) > 2 and bool(node.input[2])
    normal = graph.node("Div", [away.output[0], deviation.output[0]])
    scaled = graph.node("Mul", [normal.output[0], node.input[1]], "" if biased else node.output[0])
    made = [mean, away, square, variance, safe, deviation, normal, scaled]
    return [*made, graph.node("Add", [scaled.output[0], node.input[2]], node.output[0])] if biased else made


def _shape(graph: Rewriting, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """A part of a shape is cut out by a node of its own."""
    start, end = attribute(node, "start", 0), attribute(node, "end", None)
    if start == 0 and end is None:
        return None
    whole = graph.node("Shape", [node.input[0]])
    limits = [np.asarray([value], np.int64) for value in (start, 2**31 - 1 if end is None else end, 0)]
    cut = graph.node("Slice", [whole.output[0], *(graph.constant(value) for value in limits)], node.output[0])
    return [whole, cut]


def _rank(graph: onnx.GraphProto, name: str) -> int:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    inferred = onnx.shape_inference.infer_shapes(model).graph
    for info in [*inferred.input, *inferred.value_info, *inferred.output]:
        if info.name == name:
            return len(info.type.tensor_type.shape.dim)
    raise ValueError(f"the rank of {name!r} is not known")


REWRITES: dict[str, Callable[[Rewriting, onnx.NodeProto], list[onnx.NodeProto] | None]] = {
    "LayerNormalization": _layer_normalization,
    "Shape": _shape,
}


def float_initializers(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """The float32 initializers of a graph by name."""
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.FLOAT}
