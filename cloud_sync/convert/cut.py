"""Cuts an ANN behind a node, and finds where: the part before what cannot be converted is often worth having."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from cloud_sync.convert.errors import ConversionError
from cloud_sync.convert.network import Layer, Relu


def cut(model: onnx.ModelProto, until: str, where: str) -> onnx.ModelProto:
    """The model up to the node that is called ``until``, or makes the value of that name. Raises ConversionError."""
    nodes = list(model.graph.node)
    found = next((index for index, node in enumerate(nodes) if until in (node.name, *node.output) and until), None)
    if found is None:
        raise ConversionError(f"{where}: no node {until!r}", "name a node of the file, or a value that one makes")
    shorter = onnx.ModelProto()
    shorter.CopyFrom(model)
    del shorter.graph.node[found + 1 :]
    del shorter.graph.output[:]
    shorter.graph.output.append(helper.make_tensor_value_info(nodes[found].output[0], TensorProto.FLOAT, None))
    return shorter


def prefix(entry: str, layers: Sequence[Layer]) -> str:
    """The last value that depends on converted ones only and on a neuron; empty where there is none."""
    made, spiking, last = {entry}, set[str](), ""
    for layer in layers:
        if not made.issuperset(layer.inputs):
            continue
        made.add(layer.output)
        if isinstance(layer.operation, Relu) or spiking.intersection(layer.inputs):
            spiking.add(layer.output)
            last = layer.output
    return last
