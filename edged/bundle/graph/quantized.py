"""Weights kept as int8: what a model file may hold in place of float32, and the float32 graph that it stands for.

A weight is whole numbers with one float32 scale for each output channel, joined by the standard DequantizeLinear, so
stock ONNX Runtime runs the file as it is. Nothing else of ours sees that: ``restored`` puts float32 initializers in its
place, to the bit what DequantizeLinear computes (each weight is one product, rounded once). Plans stay as fast as those
of float32 weights; a dequantisation before each Conv blocks the fast layout (116 against 77 µs).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edged.errors import BundleError

OP = "DequantizeLinear"
LEVELS = 127  # whole numbers up to here, with both signs: -128 would have no counterpart
MAX_NUMBERS = 1 << 27  # 512 MiB as float32, the largest file of a bundle: a small file must not fill the memory
_SUFFIX = ".int8", ".scale"


def packed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with int8 weights, wherever those of each output channel are whole multiples of one step.

    Other initializers, and weights that would not shrink, stay as they are. ``restored`` gives back the same numbers.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    for name, axis in _weights(model.graph):
        found = split(numpy_helper.to_array(weights[name]), axis) if name in weights else None
        if found is None:
            continue
        whole, scale = (numpy_helper.from_array(part, name + end) for part, end in zip(found, _SUFFIX, strict=True))
        nodes.append(helper.make_node(OP, [whole.name, scale.name], [name], name=f"{name}.float32", axis=axis))
        made.graph.initializer.remove(weights[name])
        made.graph.initializer.extend([whole, scale])
    rest = list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend([*nodes, *rest])
    return made


def restored(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with float32 initializers in place of int8 ones; the model itself where it has none.

    Raises BundleError where a DequantizeLinear is anything but int8 weights with a scale for each output channel.
    """
    nodes = [node for node in model.graph.node if _is_ours(node)]
    if not nodes:
        return model
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    if len(tensors) != len(model.graph.initializer):
        raise BundleError("the model has two initializers of one name")
    if (
        sum(abs(math.prod(tensors[name].dims)) for node in nodes for name in node.input if name in tensors)
        > MAX_NUMBERS
    ):
        raise BundleError(f"the model's int8 weights are more than {MAX_NUMBERS} numbers", "no device holds them")
    rest = [node for node in model.graph.node if not _is_ours(node)]
    read = {name for node in nodes for name in node.input}
    if read.intersection(name for node in rest for name in node.input):
        raise BundleError("the model reads the parts of an int8 weight elsewhere", f"only {OP} may")
    weights = [numpy_helper.from_array(_weight(node, tensors), node.output[0]) for node in nodes]
    if {tensor.name for tensor in weights}.intersection(output.name for output in model.graph.output):
        raise BundleError("the model puts out a weight")
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.initializer[:]
    made.graph.node.extend(rest)
    made.graph.initializer.extend([*(t for t in model.graph.initializer if t.name not in read), *weights])
    return made


def _is_ours(node: onnx.NodeProto) -> bool:
    return bool(node.op_type == OP and node.domain == "")


def _weights(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    """The name of each weight, and its axis of output channels; none that two readers take differently."""
    axes: dict[str, set[int | None]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            axes.setdefault(name, set()).add(output_axis(node) if position == 1 else None)
    for name, found in axes.items():
        axis = next(iter(found))
        if len(found) == 1 and axis is not None:
            yield name, axis


def output_axis(node: onnx.NodeProto) -> int | None:
    """The axis of a layer's weights that counts its outputs; None where it has none."""
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return {"Conv": 0, "MatMul": 1}.get(node.op_type)


def split(weight: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Whole numbers and steps whose products are the weight to the bit; None where there are none, or no gain."""
    if weight.ndim <= axis or weight.size + 4 * weight.shape[axis] >= 4 * weight.size:
        return None
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    peaks = np.abs(rows).max(axis=1)
    steps = np.where(peaks > 0, peaks, LEVELS).astype(np.float32) / np.float32(LEVELS)
    scale = np.zeros_like(steps)
    for near in (steps, np.nextafter(steps, np.float32(0)), np.nextafter(steps, np.float32(np.inf))):
        if (near > 0).all():
            exact = (np.round(rows / near[:, np.newaxis]) * near[:, np.newaxis] == rows).all(axis=1)
            scale = np.where((scale == 0) & exact, near, scale)
    if not scale.all():
        return None
    whole = np.round(weight / scale.reshape(-1, *(1,) * (weight.ndim - 1 - axis)))
    return whole.astype(np.int8), scale


def _weight(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> NDArray[np.float32]:
    if len(node.output) != 1 or len(node.input) != 2 or any(name not in tensors for name in node.input):
        raise _refused(node, "it must join two initializers: int8 weights and their scale, without a zero point")
    if [a.name for a in node.attribute] not in ([], ["axis"]):
        raise _refused(node, "its one attribute is the axis")
    whole, scale = (_array(node, tensors[name]) for name in node.input)
    axis = node.attribute[0].i if node.attribute else 1
    if whole.dtype != np.int8 or scale.dtype != np.float32:
        raise _refused(node, f"it joins {whole.dtype} and {scale.dtype}", "int8 and float32")
    if not 0 <= axis < whole.ndim or scale.shape != (whole.shape[axis],):
        raise _refused(node, f"its scale has shape {scale.shape}", "one number for each output channel, along the axis")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise _refused(node, "a scale is not positive")
    return np.asarray(whole.astype(np.float32) * scale.reshape(-1, *(1,) * (whole.ndim - 1 - axis)), np.float32)


def _array(node: onnx.NodeProto, tensor: onnx.TensorProto) -> NDArray[Any]:
    if tensor.data_location != TensorProto.DEFAULT or tensor.external_data:
        raise _refused(node, f"{tensor.name!r} keeps its data outside the file", "a bundle's model holds all its data")
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError) as error:
        raise _refused(node, f"{tensor.name!r} does not hold what its shape says: {error}") from None


def _refused(node: onnx.NodeProto, reason: str, hint: str = "") -> BundleError:
    return BundleError(f"the model's node {node.name!r} ({node.op_type}): {reason}", hint)
