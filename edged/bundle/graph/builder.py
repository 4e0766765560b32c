"""Writes canonical step graphs: axis 0 is the symbolic batch, neurons are calls of ``edged.snn``, states explicit.

Does not judge the graph; ``checks.check_step_graph`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from edged.bundle.graph.functions import function
from edged.bundle.graph.neurons import DOMAIN, DOMAIN_VERSION, IR_VERSION, NEURONS, OPSET, Neuron
from edged.bundle.graph.spec import BATCH, GraphSpec, InputSpec, ReadoutKind, ReadoutSpec, StateSpec
from edged.errors import BundleError


@dataclass(frozen=True)
class StepGraph:
    """A finished canonical graph and what a manifest says about it."""

    model: onnx.ModelProto
    inputs: tuple[InputSpec, ...]
    states: tuple[StateSpec, ...]
    output: str
    classes: int

    def spec(self, timesteps: int, readout: ReadoutKind = "mean", window: tuple[int, int] | None = None) -> GraphSpec:
        """The same, run for ``timesteps`` and read out over ``window`` (start, stop; all steps when omitted)."""
        start, stop = window or (0, timesteps)
        return GraphSpec(
            self.inputs, self.states, self.output, self.classes, timesteps, ReadoutSpec(readout, start, stop)
        )


class StepBuilder:
    """Collects one step graph. Tensors are named by strings; every adding method returns the name it made."""

    def __init__(self, name: str = "step") -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[InputSpec] = []
        self._states: list[StateSpec] = []
        self._open: dict[str, tuple[tuple[int, ...], str]] = {}  # states without an update yet
        self._taken: set[str] = set()

    def input(self, name: str, shape: Sequence[int], *, sequence: bool = False) -> str:
        """An input (B, *shape): the same value at each step, or with ``sequence`` a new one."""
        self._inputs.append(InputSpec(self._claim(name), tuple(shape), sequence))
        return name

    def constant(self, value: ArrayLike, name: str = "") -> str:
        """An initializer: float32, or int64 for shapes and axes."""
        array = np.asarray(value)
        dtype = np.int64 if array.dtype.kind in "iu" else np.float32
        name = self._claim(name) if name else self._fresh("const")
        self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array, dtype=dtype), name)
        return name

    def node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A standard op with one output, which carries the node's name."""
        output = self._claim(name) if name else self._fresh(op)
        self._nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def neuron(self, op: str, current: str, shape: Sequence[int], *, name: str = "", **parameters: ArrayLike) -> str:
        """A neuron for samples of ``shape``; returns the name of its spikes (or of y). Clock takes no current ("").

        Parameters are scalars, one value a channel, or of the sample's rank; they are stored with a batch axis of 1.
        Levels have one more axis, the last; a list of levels serves all elements. Delay's w (D,) or (D, *shape) comes
        with the axis of its history first.
        """
        row = NEURONS.get(op)
        if row is None:
            raise BundleError(f"no neuron {op!r} in {DOMAIN}", f"known: {', '.join(NEURONS)}")
        if set(parameters) != set(row.parameters):
            raise BundleError(
                f"neuron {op} got parameters {sorted(parameters)}", f"it needs exactly {', '.join(row.parameters)}"
            )
        name = self._claim(name) if name else self._fresh(op)
        given = {key: _parameter(row, parameters[key], len(shape)) for key in row.parameters}
        bound = {row.current: current} | {key: self.constant(value, f"{name}.{key}") for key, value in given.items()}
        depth = given["w"].shape[1] if row.axis == "history" else 0
        written = {}
        for state_in, state_out in row.states:
            bound[state_in], written[state_out] = f"{name}.{state_in}", f"{name}.{state_out}"
            self._claim(bound[state_in])
            self._claim(written[state_out])
            self._states.append(
                StateSpec(bound[state_in], written[state_out], row.state_shape(tuple(shape), depth), op)
            )
        outputs = [written.get(output, name) for output in row.outputs]
        inputs = [bound[key] for key in row.inputs]
        self._nodes.append(helper.make_node(op, inputs, outputs, name=name, domain=DOMAIN))
        return name

    def state(self, name: str, shape: Sequence[int]) -> str:
        """A plain delayed tensor: reads what ``update`` wrote one step ago, zero at first."""
        self._open[self._claim(name)] = (tuple(shape), name)
        return name

    def update(self, state: str, value: str) -> None:
        """Say which tensor becomes ``state`` at the next step."""
        if state not in self._open:
            raise BundleError(f"{state!r} is not a state that waits for its update", "declare it with state() first")
        shape, name = self._open.pop(state)
        output = self.node("Identity", value, name=f"{name}.next")
        self._states.append(StateSpec(state, output, shape))

    def build(self, output: str, classes: int, *, name: str = "y") -> StepGraph:
        """Finish: ``output`` (B, classes) becomes the graph's output ``name``."""
        if self._open:
            raise BundleError(f"state {next(iter(self._open))!r} is never updated", "call update() for every state()")
        y = self.node("Identity", output, name=name)
        value_info = [(spec.name, spec.shape) for spec in self._inputs] + [(s.input, s.shape) for s in self._states]
        outputs = [(y, (classes,))] + [(s.output, s.shape) for s in self._states]
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [_batched(name, shape) for name, shape in value_info],
            [_batched(name, shape) for name, shape in outputs],
            list(self._initializers.values()),
        )
        model = assemble(graph)
        return StepGraph(model, tuple(self._inputs), tuple(self._states), y, classes)

    def _claim(self, name: str) -> str:
        if not name or name in self._taken:
            raise BundleError(f"tensor name {name!r} is empty or used twice", "give every tensor a name of its own")
        self._taken.add(name)
        return name

    def _fresh(self, stem: str) -> str:
        number = len(self._taken)
        while f"{stem}_{number}" in self._taken:
            number += 1
        return self._claim(f"{stem}_{number}")


def assemble(graph: onnx.GraphProto) -> onnx.ModelProto:
    """A model around a graph, with our opsets and the functions of every neuron that it calls."""
    used = sorted(called_neurons(graph))
    return helper.make_model(
        graph,
        producer_name="edged",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)],
        functions=[function(op) for op in used],
    )


def called_neurons(graph: onnx.GraphProto) -> set[str]:
    """The ops of our domain that a graph calls, in the bodies of Scan too."""
    called = {node.op_type for node in graph.node if node.domain == DOMAIN}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                called |= called_neurons(attribute.g)
    return called


def _batched(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape])


def _parameter(row: Neuron, value: ArrayLike, rank: int) -> NDArray[Any]:
    array = np.asarray(value, dtype=np.float32)
    if row.axis == "levels" and array.ndim == 1:
        return array.reshape(*(1,) * (rank + 1), -1)
    return _broadcastable(array, rank + 1 if row.axis else rank)


def _broadcastable(value: ArrayLike, rank: int) -> NDArray[Any]:
    array = np.asarray(value, dtype=np.float32)
    if array.ndim == 0:
        return array.reshape((1,) * (rank + 1))
    if array.ndim == 1 and rank >= 1:
        return array.reshape(1, -1, *(1,) * (rank - 1))
    if array.ndim == rank:
        return array[np.newaxis]
    if array.ndim == rank + 1 and array.shape[0] == 1:
        return array
    raise BundleError(
        f"a parameter of shape {array.shape} for a state of rank {rank}",
        "give a scalar, one value a channel, or the state's rank",
    )
