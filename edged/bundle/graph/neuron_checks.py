"""Verifies the calls of ``edged.snn`` in a step graph: how they are wired to states, and what their parameters hold.

Each failure is a BundleError that names the node and the reason. Shapes of currents are known only after ONNX's own
inference, so they are a second step.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edged.bundle.graph.neurons import DOMAIN, NEURONS, Neuron
from edged.bundle.graph.spec import GraphSpec, StateSpec
from edged.errors import BundleError

Shapes = Mapping[str, tuple[int, ...]]
Constants = Mapping[str, NDArray[Any]]


def refuse(node: onnx.NodeProto, reason: str, hint: str = "") -> BundleError:
    """The error for one node of the model."""
    return BundleError(f"the model's node {node.name or node.output[0]!r} ({node.op_type}): {reason}", hint)


def check_neurons(graph: onnx.GraphProto, spec: GraphSpec, constants: Constants) -> None:
    """Inputs, outputs, states and parameters of every neuron. Raises BundleError."""
    by_input = {state.input: state for state in spec.states}
    owned: Counter[str] = Counter()
    for node in graph.node:
        if node.domain != DOMAIN:
            continue
        row = NEURONS[node.op_type]
        if len(node.input) != len(row.inputs) or not all(node.input) or len(node.output) != len(row.outputs):
            raise refuse(node, f"it must have inputs {', '.join(row.inputs)} and outputs {', '.join(row.outputs)}")
        if node.attribute:
            raise refuse(node, "a neuron has no attributes")
        states = _states(node, row, by_input)
        owned.update(state.input for state in states.values())
        values = _parameters(node, row, constants)
        for name, state in states.items():
            _check_state(node, row, name, state, values)
        _check_values(node, row, values)
    for state in spec.states:
        if owned[state.input] != bool(state.neuron):
            raise BundleError(
                f"state {state.input!r} belongs to {owned[state.input]} neurons", "one, as the manifest says"
            )


def check_currents(graph: onnx.GraphProto, constants: Constants, shapes: Shapes) -> None:
    """A neuron's current has the shape of its emission, so that no broadcast crosses samples. Raises BundleError.

    ``shapes`` are whole shapes of all activations, axis 0 as 0.
    """
    for node in graph.node:
        if node.domain != DOMAIN:
            continue
        row = NEURONS[node.op_type]
        bound = dict(zip(row.inputs, node.input, strict=True))
        emitted = shapes[node.output[0]]
        if row.current and shapes.get(bound[row.current]) != emitted:
            found = shapes.get(bound[row.current], ())
            raise refuse(node, f"its {row.current} has shape {list(found[1:])}, it emits {list(emitted[1:])}")
        if not row.states:
            for name in row.parameters:
                _check_fit(node, row, name, constants[bound[name]], emitted[1:])


def _states(node: onnx.NodeProto, row: Neuron, by_input: Mapping[str, StateSpec]) -> dict[str, StateSpec]:
    reads, writes = dict(zip(row.inputs, node.input, strict=True)), dict(zip(row.outputs, node.output, strict=True))
    states = {}
    for name, next_name in row.states:
        state = by_input.get(reads[name])
        if state is None or state.output != writes[next_name] or state.neuron != node.op_type:
            raise refuse(node, f"its {name} and {next_name} are not one state of {node.op_type} in the manifest")
        states[name] = state
    return states


def _parameters(node: onnx.NodeProto, row: Neuron, constants: Constants) -> dict[str, NDArray[Any]]:
    values = {}
    for name in row.parameters:
        value = constants.get(node.input[row.inputs.index(name)])
        if value is None or value.dtype != np.float32:
            raise refuse(node, f"its {name} must be a float32 initializer")
        values[name] = value
    return values


def _check_state(node: onnx.NodeProto, row: Neuron, name: str, state: StateSpec, values: Constants) -> None:
    if not row.current and math.prod(state.shape) != 1:
        raise refuse(node, f"its {name} has shape {list(state.shape)}", "a clock is one number a row")
    if row.axis == "history" and not state.shape:
        raise refuse(node, f"its {name} has no axis for its history")
    for parameter, value in values.items():
        _check_fit(node, row, parameter, value, state.shape)


def _check_fit(node: onnx.NodeProto, row: Neuron, name: str, value: NDArray[Any], shape: tuple[int, ...]) -> None:
    levels = row.axis == "levels"
    own = value.shape[:-1] if levels and value.ndim else value.shape
    fits = len(own) == len(shape) + 1 and own[0] == 1 and value.size > 0
    if not fits or any(size not in (1, full) for size, full in zip(own[1:], shape, strict=True)):
        wanted = f"[1, {shape}, K]" if levels else f"[1, {shape}]"
        raise refuse(node, f"its {name} of shape {value.shape} does not broadcast to {wanted}")
    if row.axis == "history" and value.shape[1] != shape[0]:
        raise refuse(node, f"its {name} of shape {value.shape} does not have the length of its history, {shape[0]}")


def _check_values(node: onnx.NodeProto, row: Neuron, given: Constants) -> None:
    positive = ("v_th", "v_sub", "fire") if row.states else ()  # else any threshold has a meaning
    for name in positive:
        if name in given and not (given[name] > 0).all():
            raise refuse(node, f"its {name} must be positive everywhere")
    for name in ("decay", "c_decay"):
        if name in given and not ((given[name] >= 0) & (given[name] <= 1)).all():
            raise refuse(node, f"its {name} must lie between 0 and 1")
    if "v_reset" in given and not (given["v_reset"] < given["v_th"]).all():
        raise refuse(node, "its v_reset must lie below v_th")
    if row.axis == "levels":
        _check_levels(node, given["fire"], given["level"])
    if row.axis == "history":
        _check_one_hot(node, given["w"])


def _check_levels(node: onnx.NodeProto, fire: NDArray[Any], level: NDArray[Any]) -> None:
    if fire.shape[-1] != level.shape[-1]:
        raise refuse(node, f"its fire has {fire.shape[-1]} levels, its level {level.shape[-1]}")
    if not (np.diff(fire, axis=-1) < 0).all() or not (level > 0).all():
        raise refuse(node, "its fire must fall from level to level, and each level be positive")


def _check_one_hot(node: onnx.NodeProto, w: NDArray[Any]) -> None:
    if not (((w == 0) | (w == 1)).all() and (w.sum(axis=1) == 1).all()):
        raise refuse(node, "its w must hold one 1 along its history, and 0 elsewhere")
