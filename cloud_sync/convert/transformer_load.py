"""An ONNX file → ``Transformer``, or a refusal that names every node in the way.

The network is read as the function of *one* sample: it runs once on ONNX Runtime with a batch of one, which gives the
shape of every value and the result of every node that does not depend on the input (exporters compute shapes at run
time). Graphs that move the batch axis about, as PyTorch's attention does, need no care then: what is written later
applies that function to each row of a batch. At last the reading itself is checked: both must give the same scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from cloud_sync.convert.errors import ConversionError, Refusal, RefusedNodesError
from cloud_sync.convert.load import check_model, node_name, sole_input
from cloud_sync.convert.operators import NotSupportedError
from cloud_sync.convert.runtime import Runtime
from cloud_sync.convert.transformer_emit import ann
from cloud_sync.convert.transformer_graph import Node, Operand, Transformer
from cloud_sync.convert.transformer_operators import OPERATORS, REASONS, Site

_OLDEST_OPSET = 13  # Softmax works along one axis since then
_SEED = 1
_CLOSE = 1e-3  # of the largest score: what another order of sums may do to a deep network, far below a misread node


def load(path: Path) -> Transformer:
    """Read an ANN. Raises RefusedNodesError for unsupported nodes, ConversionError when it is no network of ours."""
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}") from None
    except Exception as error:  # protobuf's own errors share no public base class
        raise ConversionError(f"{path}: not an ONNX file: {error}") from None
    return transformer(model, str(path))


def transformer(model: onnx.ModelProto, where: str = "the ANN") -> Transformer:
    """Translate a model that is in memory already. Raises as ``load``."""
    check_model(model, where)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < _OLDEST_OPSET:
        raise ConversionError(f"{where}: opset {opset}", f"export it again with opset {_OLDEST_OPSET} or newer")
    name, shape = sole_input(model, where)
    if len(model.graph.output) != 1:
        raise ConversionError(f"{where}: {len(model.graph.output)} outputs", "a classifier has one: its logits")
    varying = _varying(model, name)
    _refuse(where, [_unknown(node, index) for index, node in _nodes(model, varying)])
    sample = np.random.default_rng(_SEED).random((1, *shape), dtype=np.float32)
    values = _run(model, name, sample, where)
    found = _read(model, name, varying, values, where)
    _check_output(found, values[model.graph.output[0].name], sample, where)
    return found


def _varying(model: onnx.ModelProto, name: str) -> set[str]:
    """The values that depend on the numbers of the input; on its shape alone does not count."""
    varying = {name}
    for node in model.graph.node:
        if node.op_type not in ("Shape", "Size") and varying.intersection(node.input):
            varying.update(output for output in node.output if output)
    return varying


def _nodes(model: onnx.ModelProto, varying: set[str]) -> list[tuple[int, onnx.NodeProto]]:
    return [(index, node) for index, node in enumerate(model.graph.node) if varying.intersection(node.output)]


def _unknown(node: onnx.NodeProto, index: int) -> Refusal | None:
    if node.domain in ("", "ai.onnx") and node.op_type in OPERATORS:
        return None
    reason, hint = REASONS.get(
        node.op_type, ("this operator is not supported", f"supported: {', '.join(sorted(OPERATORS))}")
    )
    return Refusal(node_name(node, index), node.op_type, reason, hint)


def _refuse(where: str, refusals: list[Refusal | None]) -> None:
    found = [refusal for refusal in refusals if refusal]
    if found:
        raise RefusedNodesError(where, found)


def _run(model: onnx.ModelProto, name: str, sample: NDArray[Any], where: str) -> dict[str, NDArray[Any]]:
    """Every value of the network for one sample."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for value in single.graph.input:
        if value.name == name:
            value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, sample.shape))
    names = [output for node in model.graph.node for output in node.output if output]
    try:
        found = Runtime(single, names).run({name: sample}, names)
    except Exception as error:  # the runtime's errors share no base class of their own
        raise ConversionError(f"{where}: ONNX Runtime cannot run it: {str(error).splitlines()[0]}") from None
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {**constants, name: sample, **dict(zip(names, found, strict=True))}


def _read(
    model: onnx.ModelProto, name: str, varying: set[str], values: dict[str, NDArray[Any]], where: str
) -> Transformer:
    nodes: list[Node] = []
    refusals: list[Refusal | None] = []
    for index, node in _nodes(model, varying):
        outputs = [output for output in node.output if output]
        site = Site(
            inputs=tuple(_operand(value, varying, values) for value in node.input if value),
            attributes={a.name: helper.get_attribute_value(a) for a in node.attribute},
            shapes=tuple(values[value].shape for value in node.input if value),
            output_shapes=tuple(values[output].shape for output in outputs),
        )
        try:
            made = OPERATORS[node.op_type](site)
        except NotSupportedError as refused:
            refusals.append(Refusal(node_name(node, index), node.op_type, refused.reason, refused.hint))
            continue
        for (operation, inputs), output in zip(made, outputs, strict=True):
            nodes.append(Node(node_name(node, index), operation, inputs, output, values[output].shape))
    _refuse(where, refusals)
    output = model.graph.output[0].name
    kept = _needed(nodes, output)
    shapes = {name: values[name].shape} | {node.output: node.shape for node in kept}
    return Transformer(name, output, tuple(kept), shapes)


def _operand(name: str, varying: set[str], values: dict[str, NDArray[Any]]) -> Operand:
    return name if name in varying else values[name]


def _needed(nodes: list[Node], output: str) -> list[Node]:
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if node.output in wanted:
            wanted.update(node.activations)
            kept.append(node)
    return kept[::-1]


def _check_output(found: Transformer, expected: NDArray[Any], sample: NDArray[Any], where: str) -> None:
    if expected.ndim != 2 or expected.shape[0] != 1 or not found.nodes:
        raise ConversionError(f"{where}: the output has shape {expected.shape}", "it must be (batch, classes)")
    if not found.spiking():
        raise ConversionError(f"{where}: no activation enters a matrix product, so nothing would spike")
    model = ann(found).model
    (scores,) = Runtime(model).run({found.input: sample}, [model.graph.output[0].name])
    if not np.abs(scores - expected).max() <= _CLOSE * max(1.0, float(np.abs(expected).max())):
        raise ConversionError(f"{where}: read back, it gives other scores", "please report this network")
