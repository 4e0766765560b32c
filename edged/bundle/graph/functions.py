"""Turns the op table into ONNX model-local functions, always with the same bytes.

The bytes matter: ``checks`` accepts a neuron only if its body in the file equals ours, because engines that recognise
the name never look at the body.
"""

from __future__ import annotations

from functools import cache

import onnx
from onnx import TensorProto, helper

from edged.bundle.graph.neurons import DOMAIN, NEURONS, OPSET


@cache
def function_bytes(op: str) -> bytes:
    """The serialised function of one neuron."""
    return bytes(function(op).SerializeToString(deterministic=True))


def function(op: str) -> onnx.FunctionProto:
    """The model-local function of one neuron, in standard ops."""
    neuron = NEURONS[op]
    nodes = [helper.make_node(kind, list(inputs), [output]) for kind, inputs, output in neuron.body]
    for node in nodes:
        if node.op_type == "Cast":
            node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    made = helper.make_function(
        DOMAIN, op, list(neuron.inputs), list(neuron.outputs), nodes, [helper.make_opsetid("", OPSET)]
    )
    made.doc_string = neuron.doc
    return made
