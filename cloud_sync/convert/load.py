"""Pass 1: an ONNX file → ``Network``, or a refusal that names every node in the way.

The file is checked by onnx itself first. Shapes are inferred for a batch of one, so a graph that was exported with a
fixed batch converts as well as one with a symbolic batch; a node that mixes samples is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types
from onnx import TensorProto, shape_inference

from cloud_sync.convert.cut import cut, prefix
from cloud_sync.convert.errors import ConversionError, RefusedNodesError
from cloud_sync.convert.network import Layer, Network, Reshape
from cloud_sync.convert.reader import Reader, node_name

__all__ = ["check_model", "load", "network", "node_name", "sole_input"]

_OLDEST_OPSET = 9  # BatchNormalization has had its present outputs since then


def load(path: Path, until: str = "") -> Network:
    """Read an ANN, or the part of it that makes the first output of node ``until``.

    Raises RefusedNodesError for unsupported nodes, ConversionError when it is no network of ours.
    """
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}") from None
    except DecodeError as error:
        raise ConversionError(f"{path}: not an ONNX file: {error}") from None
    return network(model, str(path), until)


def network(model: onnx.ModelProto, where: str = "the ANN", until: str = "") -> Network:
    """Translate a model that is in memory already. Raises as ``load``."""
    check_model(model, where)
    model = cut(model, until, where) if until else model
    name, shape = sole_input(model, where)
    reader = Reader(model, name, shape)
    layers, refusals = reader.layers()
    if refusals:
        raise RefusedNodesError(where, refusals, prefix(name, layers))
    if len(model.graph.output) != 1:
        names = ", ".join(repr(value.name) for value in model.graph.output[:8])
        hint = f"a bundle has one: choose it with --until, from {names}"
        raise ConversionError(f"{where}: {len(model.graph.output)} outputs", hint)
    output = reader.alias(model.graph.output[0].name)
    found = Network(name, shape, tuple(_needed(layers, output)), output, tuple(reader.notes))
    return _classifier(_flat(found) if until else found, where)


def _classifier(found: Network, where: str) -> Network:
    shape = found.shape(found.output)
    if len(shape) != 1:
        raise ConversionError(f"{where}: the output has shape {shape}", "it must be (batch, classes)")
    if not any(found.relus()):
        raise ConversionError(f"{where}: there is no Relu, so nothing would spike")
    return found


def _flat(found: Network) -> Network:
    """The same with its output in one row: what lies before a cut may be a feature map."""
    shape = found.shape(found.output)
    if len(shape) == 1:
        return found
    name = f"{found.output}/flat"
    flat = Layer(name, Reshape(), (found.output,), name, (found.classes,))
    note = f"the output is the feature map {found.output!r} of shape {shape} in one row"
    return replace(found, layers=(*found.layers, flat), output=name, notes=(*found.notes, note))


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


def _needed(layers: list[Layer], output: str) -> Iterator[Layer]:
    """The layers that the output depends on, in order: what training left behind is dropped."""
    wanted, kept = {output}, []
    for layer in reversed(layers):
        if layer.output in wanted:
            wanted.update(layer.inputs)
            kept.append(layer)
    return reversed(kept)
