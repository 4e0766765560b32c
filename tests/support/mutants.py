"""Planted defects: copies of a canonical graph that compute something slightly else, as a faulty engine would."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from edged.bundle.graph.neurons import DOMAIN, NEURONS
from edged.domain import Array


def mutants(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Every planted defect that this graph can have, by name. Each breaks one thing and nothing else."""
    initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        bias = {"Conv": 2, "Gemm": 2}.get(node.op_type)
        if bias is not None and len(node.input) > bias:
            yield f"{node.name}: bias dropped", _changed(model, node.input[bias], np.zeros_like)
            yield f"{node.name}: bias of the last channel dropped", _changed(model, node.input[bias], _without_last)
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in initializers:
            yield f"{node.name}: one weight dropped", _changed(model, node.input[1], _without_largest)
            yield f"{node.name}: weights dropped", _changed(model, node.input[1], np.zeros_like)
    yield from _neuron_mutants(model)
    yield from _body_mutants(model)


def _neuron_mutants(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        names = {name.rsplit(".", 1)[-1]: name for name in node.input}
        changes: dict[str, tuple[str, Callable[[Array], Array]]] = {
            "threshold + 2 %": ("v_th", lambda v: v * np.float32(1.02)),
            "reset + 2 %": ("v_sub", lambda v: v * np.float32(1.02)),
            "reset value + 0.02": ("v_reset", lambda v: v + np.float32(0.02)),
            "decay + 1 %": ("decay", lambda v: v * np.float32(1.01)),
            "synapse's decay + 1 %": ("c_decay", lambda v: v * np.float32(1.01)),
            "synapse's gain + 1 %": ("c_gain", lambda v: v * np.float32(1.01)),
            "gain + 1 %": ("gain", lambda v: v * np.float32(1.01)),
            "levels + 2 %": ("level", lambda v: v * np.float32(1.02)),
            "highest level's threshold + 2 %": ("fire", _with_first(np.float32(1.02))),
            "levels' thresholds > for >=": ("fire", lambda v: np.nextafter(v, np.float32(np.inf))),
            "one step later": ("w", lambda v: np.roll(v, -1, axis=1)),
            "bias + 0.001": ("bias", lambda v: v + np.float32(0.001)),
            "> for >=": ("v_th", lambda v: np.nextafter(v, np.float32(np.inf))),  # [u > θ] is [u >= next(θ)] exactly
        }
        if not NEURONS[node.op_type].states:
            del changes["> for >="]  # nothing can bring a stateless threshold's current to a tie
        for name, (parameter, change) in changes.items():
            if parameter in names:
                yield f"{node.name}: {name}", _changed(model, names[parameter], change)


def _body_mutants(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """A neuron's body is replaced for all nodes that call it."""
    for k, function in enumerate(model.functions):
        ops = {node.op_type: j for j, node in enumerate(function.node)}
        if "GreaterOrEqual" in ops and NEURONS[function.name].states:
            mutant = _copy(model)
            mutant.functions[k].node[ops["GreaterOrEqual"]].op_type = "Greater"
            yield f"all {function.name}: > for >=", mutant
        if "drop" in {node.output[0] for node in function.node}:  # soft reset becomes hard: v' = s ? 0 : u
            mutant = _copy(model)
            body = mutant.functions[k].node
            drop = next(node for node in body if node.output[0] == "drop")
            drop.input[1] = "u"
            yield f"all {function.name}: hard for soft reset", mutant
        for op, other, name in (
            ("Less", "LessOrEqual", "<= for <"),
            ("And", "Or", "or for and"),
            ("Sign", "Identity", "size for sign"),
        ):
            if op in ops:
                mutant = _copy(model)
                mutant.functions[k].node[ops[op]].op_type = other
                yield f"all {function.name}: {name}", mutant
        if "Where" in ops:  # hard reset becomes soft: v' = u - s * v_th
            mutant = _copy(model)
            body = mutant.functions[k].node
            where = body[ops["Where"]]
            where.CopyFrom(onnx.helper.make_node("Sub", ["u", "drop"], ["v_next"]))
            body.insert(ops["Where"], onnx.helper.make_node("Mul", ["s", "v_th"], ["drop"]))
            yield f"all {function.name}: soft for hard reset", mutant


def _with_first(factor: np.float32) -> Callable[[Array], Array]:
    def change(value: Array) -> Array:
        value = value.copy()
        value[..., 0] *= factor
        return value

    return change


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _changed(model: onnx.ModelProto, name: str, change: Callable[[Array], Array]) -> onnx.ModelProto:
    copy = _copy(model)
    tensor = next(tensor for tensor in copy.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor)), dtype=np.float32), name))
    return copy


def _without_last(value: Array) -> Array:
    value = value.copy()
    value[-1] = 0
    return value


def _without_largest(value: Array) -> Array:
    value = value.copy()
    value.flat[np.abs(value).argmax()] = 0
    return value
