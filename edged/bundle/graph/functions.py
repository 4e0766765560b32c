"""Turns the op table into ONNX model-local functions, always with the same bytes.

The bytes matter: ``checks`` accepts a neuron only if its body in the file equals ours, because engines that recognise
the name never look at the body.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edged.bundle.graph.neurons import DOMAIN, NEURONS, OPSET, BodyNode


@cache
def function_bytes(op: str) -> bytes:
    """The serialised function of one neuron."""
    return bytes(function(op).SerializeToString(deterministic=True))


def function(op: str) -> onnx.FunctionProto:
    """The model-local function of one neuron, in standard ops."""
    neuron = NEURONS[op]
    nodes = [_node(entry) for entry in neuron.body]
    made = helper.make_function(
        DOMAIN, op, list(neuron.inputs), list(neuron.outputs), nodes, [helper.make_opsetid("", OPSET)]
    )
    made.doc_string = neuron.doc
    return made


def _node(entry: BodyNode) -> onnx.NodeProto:
    node = helper.make_node(entry.op, list(entry.inputs), [entry.output])
    node.attribute.extend(helper.make_attribute(name, value) for name, value in entry.attributes)
    if entry.op == "Cast":
        node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    if entry.op == "Constant":
        dtype = np.float32 if isinstance(entry.value, float) else np.int64
        value = numpy_helper.from_array(np.asarray(entry.value, dtype=dtype))
        node.attribute.append(helper.make_attribute("value", value))
    return node
