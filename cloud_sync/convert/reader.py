"""Walks the nodes of an ONNX graph: constants are computed, what hands on its input vanishes, others become layers."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from cloud_sync.convert.composites import COMPOSITES, Naming
from cloud_sync.convert.constants import Constants
from cloud_sync.convert.errors import Refusal
from cloud_sync.convert.network import Layer
from cloud_sync.convert.operators import OPERATORS, NodeView, NotSupportedError
from cloud_sync.convert.refusals import why

_PASS_THROUGH = ("Dropout", "Identity")
_MONOTONE = ("LogSoftmax", "Softmax")  # they change no winner; at the end only
_KNOWN = {*OPERATORS, *COMPOSITES, *_PASS_THROUGH, *_MONOTONE}


class Reader:
    """One model. Constants, shapes and aliases (of Identity) are looked up by value name; ``notes`` as in Network."""

    def __init__(self, model: onnx.ModelProto, name: str, shape: tuple[int, ...]) -> None:
        self._graph = model.graph
        opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._constants = Constants(model.graph, opset)
        self._aliases: dict[str, str] = {}
        self._shapes = _shapes_for_one(model, name, shape)
        self._outputs = {value.name for value in model.graph.output}
        self._read = {value for node in model.graph.node for value in node.input} | self._outputs
        self.notes: list[str] = []

    def alias(self, value: str) -> str:
        """The name under which a value was made."""
        return self._aliases.get(value, value)

    def layers(self) -> tuple[list[Layer], list[Refusal]]:
        """Every layer in order, and every node that is none."""
        layers: list[Layer] = []
        refusals: list[Refusal] = []
        for index, node in enumerate(self._graph.node):
            try:
                layers += self._layers(node, node_name(node, index))
            except NotSupportedError as refused:
                refusals.append(Refusal(node_name(node, index), node.op_type, refused.reason, refused.hint))
        return layers, refusals

    def _layers(self, node: onnx.NodeProto, name: str) -> list[Layer]:
        names = [self.alias(value) for value in node.input]
        if self._constants.learn(node, names, self._shapes):
            return []
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        if op not in _KNOWN:
            raise NotSupportedError(*why(op))
        if self._read.intersection(node.output[1:]):
            raise NotSupportedError("its second output is used", "only the first has a spiking form")
        if self._passes_through(node, name):
            self._aliases[node.output[0]] = names[0]
            return []
        view = NodeView(
            inputs=tuple(name for name in names if name and name not in self._constants),
            arguments=tuple(self._constants.get(name) for name in names),
            attributes={a.name: helper.get_attribute_value(a) for a in node.attribute},
            shapes=tuple(self._shapes.get(value) for value in node.input),
            output_shape=self._shapes.get(node.output[0]),
        )
        if op in COMPOSITES:
            return COMPOSITES[op](view, Naming(name, node.output[0]))
        return [Layer(name, OPERATORS[op](view), view.inputs, node.output[0], view.sample_shape())]

    def _passes_through(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether a node hands on its first input: always, or as far as the winner goes."""
        if node.op_type == "Dropout" and len(node.input) > 2:
            training = self._constants.get(self.alias(node.input[2]))
            if training is None or bool(np.any(training)):
                raise NotSupportedError("it is in training mode", "export the network in evaluation mode")
        if node.op_type in _MONOTONE:
            if not (self._is_last(node.output[0]) and self._over_classes(node)):
                raise NotSupportedError("it is not over the classes at the end", "attention has no form here")
            self.notes.append(f"{node.op_type} {name!r} at the end was left out: it does not change the winner")
        return node.op_type in (*_PASS_THROUGH, *_MONOTONE)

    def _over_classes(self, node: onnx.NodeProto) -> bool:
        shape = self._shapes.get(node.input[0])
        axis = next((int(a.i) for a in node.attribute if a.name == "axis"), -1)
        return shape is not None and len(shape) == 2 and axis in (-1, 1)

    def _is_last(self, value: str) -> bool:
        """Whether nothing but the graph's output reads a value, or a chain that hands it on."""
        readers = [node for node in self._graph.node if value in node.input]
        if not readers:
            return value in self._outputs
        return all(node.op_type in _PASS_THROUGH and self._is_last(node.output[0]) for node in readers)


def node_name(node: onnx.NodeProto, index: int) -> str:
    """What a person finds a node by."""
    return node.name or f"#{index} → {node.output[0]}"


def _shapes_for_one(model: onnx.ModelProto, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...] | None]:
    """The static shape of each value for a batch of one; None where it is not static."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    del single.graph.value_info[:]
    for value in single.graph.input:
        if value.name == name:
            value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *shape]))
    for value in single.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = shape_inference.infer_shapes(single, data_prop=True).graph
    found: dict[str, tuple[int, ...] | None] = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        sizes = tuple(int(dim.dim_value) for dim in value.type.tensor_type.shape.dim)
        found[value.name] = sizes if sizes and min(sizes) > 0 else None
    for tensor in model.graph.initializer:
        found[tensor.name] = tuple(np.shape(numpy_helper.to_array(tensor)))
    return found
