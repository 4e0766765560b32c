"""Pass 1: an ONNX file → ``Network``, or a refusal that names every node in the way.

The file is checked by onnx itself first. Shapes are inferred for a batch of one, so a graph that was exported with a
fixed batch converts as well as one with a symbolic batch; a node that mixes samples is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from cloud_sync.convert.errors import ConversionError, Refusal, RefusedNodesError
from cloud_sync.convert.network import Layer, Network
from cloud_sync.convert.operators import OPERATORS, NodeView, NotSupportedError

_OLDEST_OPSET = 9  # BatchNormalization has had its present outputs since then


def load(path: Path) -> Network:
    """Read an ANN. Raises RefusedNodesError for unsupported nodes, ConversionError when it is no network of ours."""
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}") from None
    except DecodeError as error:
        raise ConversionError(f"{path}: not an ONNX file: {error}") from None
    return network(model, str(path))


def network(model: onnx.ModelProto, where: str = "the ANN") -> Network:
    """Translate a model that is in memory already. Raises as ``load``."""
    check_model(model, where)
    name, shape = sole_input(model, where)
    reader = _Reader(model, name, shape)
    layers, refusals = reader.layers()
    if refusals:
        raise RefusedNodesError(where, refusals)
    if len(model.graph.output) != 1:
        raise ConversionError(f"{where}: {len(model.graph.output)} outputs", "a classifier has one: its logits")
    output = reader.alias(model.graph.output[0].name)
    found = Network(name, shape, tuple(_needed(layers, output)), output)
    if len(found.shape(output)) != 1:
        raise ConversionError(f"{where}: the output has shape {found.shape(output)}", "it must be (batch, classes)")
    if not any(found.relus()):
        raise ConversionError(f"{where}: there is no Relu, so nothing would spike")
    return found


def check_model(model: onnx.ModelProto, where: str) -> None:
    """A valid model of a supported opset, whole in one file. Raises ConversionError."""
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise ConversionError(f"{where}: its weights lie in other files", "save the model as one file")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < _OLDEST_OPSET:
        raise ConversionError(f"{where}: opset {opset}", f"export it again with opset {_OLDEST_OPSET} or newer")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise ConversionError(f"{where}: not a valid ONNX model: {error}") from None


def sole_input(model: onnx.ModelProto, where: str) -> tuple[str, tuple[int, ...]]:
    """Name of the one float input, and the shape of one sample. Raises ConversionError."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise ConversionError(f"{where}: {len(inputs)} inputs", "the converter takes networks with one input")
    kind = inputs[0].type.tensor_type
    if kind.elem_type != TensorProto.FLOAT:
        raise ConversionError(f"{where}: input {inputs[0].name!r} is not float32")
    sizes = [dim.dim_value for dim in kind.shape.dim]
    if len(sizes) < 2 or min(sizes[1:]) < 1:
        raise ConversionError(f"{where}: input {inputs[0].name!r} has shape {sizes}", "only the batch may be symbolic")
    return inputs[0].name, tuple(sizes[1:])


class _Reader:
    """Walks the nodes of one model. Constants, shapes and aliases (of Identity) are looked up by value name."""

    def __init__(self, model: onnx.ModelProto, name: str, shape: tuple[int, ...]) -> None:
        self._nodes = model.graph.node
        self._constants: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._aliases: dict[str, str] = {}
        self._shapes = _shapes_for_one(model, name, shape)

    def alias(self, value: str) -> str:
        """The name under which a value was made."""
        return self._aliases.get(value, value)

    def layers(self) -> tuple[list[Layer], list[Refusal]]:
        """Every layer in order, and every node that is none."""
        layers: list[Layer] = []
        refusals: list[Refusal] = []
        for index, node in enumerate(self._nodes):
            try:
                layer = self._layer(node, index)
            except NotSupportedError as refused:
                refusals.append(Refusal(node_name(node, index), node.op_type, refused.reason, refused.hint))
            else:
                layers += [layer] if layer else []
        return layers, refusals

    def _layer(self, node: onnx.NodeProto, index: int) -> Layer | None:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            self._constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            return None
        names = [self.alias(value) for value in node.input]
        if node.op_type == "Identity" and node.domain in ("", "ai.onnx"):
            if names[0] in self._constants:
                self._constants[node.output[0]] = self._constants[names[0]]
            self._aliases[node.output[0]] = names[0]
            return None
        view = NodeView(
            inputs=tuple(name for name in names if name and name not in self._constants),
            arguments=tuple(self._constants.get(name) for name in names),
            attributes={a.name: helper.get_attribute_value(a) for a in node.attribute},
            shapes=tuple(self._shapes.get(value) for value in node.input),
            output_shape=self._shapes.get(node.output[0]),
        )
        operator = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if operator is None:
            known = ", ".join(sorted((*OPERATORS, "Constant", "Identity")))
            raise NotSupportedError("this operator is not supported", f"supported: {known}")
        operation = operator(view)
        return Layer(node_name(node, index), operation, view.inputs, node.output[0], view.sample_shape())


def node_name(node: onnx.NodeProto, index: int) -> str:
    """What a person finds a node by."""
    return node.name or f"#{index} → {node.output[0]}"


def _needed(layers: list[Layer], output: str) -> Iterator[Layer]:
    """The layers that the output depends on, in order: what training left behind is dropped."""
    wanted, kept = {output}, []
    for layer in reversed(layers):
        if layer.output in wanted:
            wanted.update(layer.inputs)
            kept.append(layer)
    return reversed(kept)


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
