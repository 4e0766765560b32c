"""Static verification of a canonical step graph: what passes can be run, batched and folded over time.

Order: size and form of the protobuf, int8 weights (which become float32), initializers, signature, nodes and neurons,
then ONNX's own checker and strict shape inference, then the batch rules. Each failure is a BundleError that names the
node or tensor and the reason. Runs nothing; the probe that runs a batch is ``probe.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, numpy_helper

from edged.bundle.graph.batch_rules import RULES, Site
from edged.bundle.graph.functions import function_bytes
from edged.bundle.graph.neuron_checks import Constants, Shapes, check_currents, check_neurons, refuse
from edged.bundle.graph.neurons import DOMAIN, DOMAIN_VERSION, IR_VERSION, NEURONS, OPSET
from edged.bundle.graph.quantized import restored
from edged.bundle.graph.spec import BATCH, GraphSpec
from edged.errors import BundleError

MAX_NODES = 20_000  # ResNet-152 has some 500; a node costs microseconds in every step
MAX_UNROLLED = 2_000_000  # nodes times steps: a plan of that size loads in minutes, none larger is of use
MAX_ACTIVATION = 1 << 26  # numbers in one activation of one sample: 256 MiB
_PLAIN_ATTRIBUTES = {AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.FLOATS,
    AttributeProto.INTS}  # fmt: skip


def check_step_graph(source: bytes | onnx.ModelProto, spec: GraphSpec) -> onnx.ModelProto:
    """Verify a step graph against what its manifest says and return it parsed, in float32. Raises BundleError."""
    model = parse_model(source) if isinstance(source, bytes) else source
    _check_header(model)
    _check_functions(model)
    model = restored(model)
    constants = _constants(model.graph)
    _check_signature(model.graph, spec)
    _check_nodes(model.graph, spec)
    check_neurons(model.graph, spec, constants)
    shapes = _activations(model, constants)
    _check_output(shapes, spec)
    check_currents(model.graph, constants, shapes)
    for node in model.graph.node:
        if node.domain == "":
            _check_standard(Site(node, shapes, constants))
    return model


def parse_model(data: bytes) -> onnx.ModelProto:
    """Parse an ONNX file. Raises BundleError when it is none."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise BundleError("the model is not an ONNX file", "its protobuf cannot be parsed") from None
    if not model.ir_version or not model.HasField("graph"):
        raise BundleError("the model is not an ONNX file", "it has no IR version or no graph")
    if not _is_text(model):
        raise BundleError("the model is not an ONNX file", "a name in it is not UTF-8")
    return model


def _is_text(message: Any) -> bool:
    """Whether all strings of a message are: protobuf hands out bytes where UTF-8 is broken, and those sort nowhere."""
    for field, value in message.ListFields():
        values = [value] if isinstance(value, (str, bytes)) or hasattr(value, "ListFields") else value
        if field.type == field.TYPE_STRING and any(isinstance(entry, bytes) for entry in values):
            return False
        if field.type == field.TYPE_MESSAGE and not all(_is_text(entry) for entry in values):
            return False
    return True


def _check_header(model: onnx.ModelProto) -> None:
    if model.ir_version != IR_VERSION:
        raise BundleError(f"the model has IR version {model.ir_version}", f"canonical graphs have {IR_VERSION}")
    opsets = sorted((opset.domain, opset.version) for opset in model.opset_import)
    if opsets != [("", OPSET), (DOMAIN, DOMAIN_VERSION)]:
        raise BundleError(f"the model imports opsets {opsets}", f"canonical graphs import opset {OPSET} and {DOMAIN} 1")
    graph = model.graph
    if model.training_info or graph.sparse_initializer or graph.quantization_annotation:
        raise BundleError(
            "the model holds training data, sparse initializers or annotations", "canonical graphs do not"
        )
    if len(graph.node) > MAX_NODES:
        raise BundleError(f"the model has {len(graph.node)} nodes", f"at most {MAX_NODES}")


def _check_functions(model: onnx.ModelProto) -> None:
    for name, count in Counter((f.domain, f.name) for f in model.functions).items():
        if name[0] != DOMAIN or name[1] not in NEURONS or count > 1:
            raise BundleError(
                f"the model defines the function {name[0]}.{name[1]}", f"only neurons of {DOMAIN}, once each"
            )
    for function in model.functions:
        if function.SerializeToString(deterministic=True) != function_bytes(function.name):
            raise BundleError(
                f"the model's body of {DOMAIN}.{function.name} differs from the domain's",
                "engines run the neuron by its name; another body would compute something else",
            )


def _constants(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    constants: dict[str, NDArray[Any]] = {}
    for tensor in graph.initializer:
        where = f"the model's initializer {tensor.name!r}"
        if tensor.name in constants or not tensor.name:
            raise BundleError(f"{where} has no name of its own")
        if tensor.data_location != TensorProto.DEFAULT or tensor.external_data:
            raise BundleError(f"{where} keeps its data outside the file", "a bundle's model holds all its data")
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.INT64):
            raise BundleError(f"{where} has type {tensor.data_type}", "float32, or int64 for shapes and axes")
        try:
            constants[tensor.name] = numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise BundleError(f"{where} does not hold what its shape says: {error}") from None
        if not np.isfinite(constants[tensor.name]).all():
            raise BundleError(f"{where} holds NaN or infinity")
    return constants


def _check_signature(graph: onnx.GraphProto, spec: GraphSpec) -> None:
    inputs = {i.name: i.shape for i in spec.inputs} | {s.input: s.shape for s in spec.states}
    outputs = {spec.output: (spec.classes,)} | {s.output: s.shape for s in spec.states}
    for kind, infos, expected in (("input", graph.input, inputs), ("output", graph.output, outputs)):
        names = [info.name for info in infos]
        if len(set(names)) != len(names) or set(names) != set(expected):
            odd = sorted(set(names) ^ set(expected)) or names
            raise BundleError(f"the model's {kind}s are not the manifest's: {', '.join(odd[:8])}")
        for info in infos:
            tensor = info.type.tensor_type
            found = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
            wanted = [BATCH, *expected[info.name]]
            if found != wanted or tensor.elem_type != TensorProto.FLOAT:
                raise BundleError(f"the model's {kind} {info.name!r} has shape {found}", f"must be float32 {wanted}")


def _check_nodes(graph: onnx.GraphProto, spec: GraphSpec) -> None:
    for node in graph.node:
        if not node.output or not all(node.output):
            raise BundleError(f"the model's node {node.name!r} ({node.op_type}) has no output, or one without a name")
        known = node.op_type in RULES if node.domain == "" else node.domain == DOMAIN and node.op_type in NEURONS
        if not known:
            op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise refuse(node, f"the op {op} is not allowed", "see docs/bundle.md for the ops of canonical graphs")
        for attribute in node.attribute:
            if attribute.type not in _PLAIN_ATTRIBUTES or attribute.ref_attr_name:
                raise refuse(node, f"attribute {attribute.name!r} is not a plain number, text or list")
    if len(graph.node) * spec.timesteps > MAX_UNROLLED:
        raise BundleError(
            f"the model has {len(graph.node)} nodes for {spec.timesteps} steps", f"at most {MAX_UNROLLED}"
        )


def _activations(model: onnx.ModelProto, constants: Constants) -> dict[str, tuple[int, ...]]:
    """Whole shapes of all activations, axis 0 as 0; every one is float32 with the symbolic batch first."""
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise BundleError(f"the model does not pass ONNX's own checks: {_first_line(error)}") from None
    shapes: dict[str, tuple[int, ...]] = {}
    for info in (*inferred.input, *inferred.value_info, *inferred.output):
        shapes[info.name] = _activation_shape(info)
    for name in _tensors(model.graph.node):
        if name not in shapes and name not in constants:
            raise BundleError(f"the shape of the model's tensor {name!r} cannot be inferred")
    return shapes


def _activation_shape(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    dims = info.type.tensor_type.shape.dim
    sizes = tuple(dim.dim_value for dim in dims[1:])
    if info.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise BundleError(
            f"the model's tensor {info.name!r} is not float32", "canonical graphs compute in float32 only"
        )
    if not dims or dims[0].dim_param != BATCH or not all(size > 0 for size in sizes):
        found = [dim.dim_param or dim.dim_value for dim in dims]
        raise BundleError(
            f"the model's tensor {info.name!r} has shape {found}", f"axis 0 must be the batch {BATCH}, the others fixed"
        )
    if math.prod(sizes) > MAX_ACTIVATION:
        raise BundleError(
            f"the model's tensor {info.name!r} holds {math.prod(sizes)} numbers", f"at most {MAX_ACTIVATION}"
        )
    return (0, *sizes)


def _tensors(nodes: Iterable[onnx.NodeProto]) -> Iterable[str]:
    for node in nodes:
        yield from (name for name in node.input if name)
        yield from node.output


def _check_output(shapes: Shapes, spec: GraphSpec) -> None:
    for name, shape in [(spec.output, (spec.classes,)), *((s.output, s.shape) for s in spec.states)]:
        if shapes[name] != (0, *shape):
            raise BundleError(
                f"the model computes {name!r} with shape {shapes[name][1:]}", f"the manifest says {shape}"
            )


def _check_standard(site: Site) -> None:
    for name in site.node.output:
        if name not in site.shapes:
            raise refuse(site.node, f"its output {name!r} has no inferred shape")
    if not any(name in site.shapes for name in site.node.input):
        raise refuse(site.node, "it reads initializers only", "compute such constants when the model is made")
    problem = RULES[site.node.op_type](site)
    if problem:
        raise refuse(site.node, problem)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]
