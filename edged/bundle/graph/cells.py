"""A step graph seen as cells: each neuron with its current, its state and its parameters; and the graph of magnitudes.

Used while golden data is made. ``magnitudes`` turns every sum Σ w·x + b into Σ |w|·|x| + |b|, which bounds the rounding
error of any order of summation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edged.bundle.graph.builder import assemble
from edged.bundle.graph.neurons import DOMAIN, NEURONS, Neuron
from edged.bundle.graph.spec import BATCH, GraphSpec, StateSpec

Floats = NDArray[Any]
_OF_MAGNITUDES = {"Sub": "Add", "Neg": "Identity"}  # |a - b| <= |a| + |b|


@dataclass(frozen=True)
class Cell:
    """One neuron node. ``current`` and ``emission`` name tensors; ``parameters`` broadcast against the state."""

    name: str
    row: Neuron
    state: StateSpec
    current: str
    emission: str
    parameters: dict[str, Floats]

    def potential(self, current: Floats, state: Floats) -> Floats:
        """u, in the dtype of the arguments."""
        parameters = {name: value.astype(current.dtype) for name, value in self.parameters.items()}
        return self.row.potential({"i": current, "v": state, **parameters})

    def after(self, u: Floats) -> Floats:
        """The new state that follows from u, in u's dtype."""
        if not self.row.spiking:
            return u
        given = {name: value.astype(u.dtype) for name, value in self.parameters.items()}
        if self.row.reset == "soft":
            return np.asarray(np.where(u >= given["v_th"], u - given["v_sub"], u))
        return np.asarray(np.where(u >= given["v_th"], given["v_reset"], u))

    def magnitude(self, current: Floats, state: Floats) -> Floats:
        """|decay·v| + |i| + |bias| + θ + |v_sub|: what a rounding error of u or of the new state is relative to."""
        given = {name: np.abs(value.astype(np.float64)) for name, value in self.parameters.items()}
        total = np.abs(state.astype(np.float64)) * given.get("decay", 1.0) + np.abs(current.astype(np.float64))
        for name in ("bias", "v_th", "v_sub", "v_reset"):
            total = total + given.get(name, 0.0)
        return np.asarray(total)


def cells(model: onnx.ModelProto, spec: GraphSpec) -> list[Cell]:
    """The neurons of a step graph, in the order of the nodes."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    states = {state.input: state for state in spec.states}
    found = []
    for node in model.graph.node:
        if node.domain == DOMAIN:
            row = NEURONS[node.op_type]
            bound = dict(zip(row.inputs, node.input, strict=True))
            parameters = {name: constants[bound[name]] for name in row.parameters}
            state = states[bound[row.states[0][0]]]
            found.append(Cell(node.name or node.output[0], row, state, bound["i"], node.output[0], parameters))
    return found


def tapped(model: onnx.ModelProto, found: list[Cell]) -> onnx.ModelProto:
    """The step graph with every cell's current and emission among its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {output.name for output in copy.graph.output} | {entry.name for entry in copy.graph.input}
    for cell in found:
        for name in (cell.current, cell.emission):
            if name not in present:
                present.add(name)
                copy.graph.output.append(_info(name, cell.state.shape))
    return copy


def magnitudes(model: onnx.ModelProto, spec: GraphSpec, found: list[Cell]) -> onnx.ModelProto:
    """The graph of magnitudes. Inputs: the inputs, plain states and emissions (as magnitudes); outputs: every cell's
    current, the output, and the plain states, each as the sum of the magnitudes that it was computed from."""
    graph = model.graph
    nodes = [_of_magnitudes(node) for node in graph.node if node.domain != DOMAIN]
    initializers = [_magnitude(tensor) for tensor in graph.initializer]
    given = {entry.name: entry.shape for entry in spec.inputs}
    given |= {state.input: state.shape for state in spec.states if not state.neuron}
    given |= {cell.emission: cell.state.shape for cell in found}
    asked = {cell.current: cell.state.shape for cell in found} | {spec.output: (spec.classes,)}
    asked |= {state.output: state.shape for state in spec.states if not state.neuron}
    nodes += [helper.make_node("Identity", [name], [f"magnitude/{name}"]) for name in asked]
    outputs = [_info(f"magnitude/{name}", shape) for name, shape in asked.items()]
    return assemble(
        helper.make_graph(nodes, "magnitudes", [_info(name, s) for name, s in given.items()], outputs, initializers)
    )


def _of_magnitudes(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.op_type = _OF_MAGNITUDES.get(node.op_type, node.op_type)
    return copy


def _magnitude(tensor: onnx.TensorProto) -> onnx.TensorProto:
    value = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(np.abs(value) if value.dtype == np.float32 else value, tensor.name)


def _info(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape])
