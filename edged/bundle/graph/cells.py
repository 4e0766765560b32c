"""A step graph seen as cells: each neuron with its current, states and parameters; and the graph of magnitudes.

Used while golden data is made. ``magnitudes`` turns every sum Σ w·x + b into Σ |w|·|x| + |b|, which bounds the rounding
error of any order of summation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edged.bundle.graph import bodies
from edged.bundle.graph.builder import assemble
from edged.bundle.graph.neurons import DOMAIN, NEURONS, Neuron
from edged.bundle.graph.plans import sample_shapes
from edged.bundle.graph.sensitivity import VALUE, Rules, has_rule, value_node
from edged.bundle.graph.spec import BATCH, GraphSpec, StateSpec

Floats = NDArray[Any]
_OF_MAGNITUDES = {"Sub": "Add", "Neg": "Identity"}  # |a - b| <= |a| + |b|


@dataclass(frozen=True)
class Cell:
    """One neuron node. ``current`` (empty: none) and ``emission`` name tensors, both of ``shape`` for one sample.

    ``states`` and ``parameters`` go by their names in the table of neurons; parameters broadcast against the sample.
    """

    name: str
    row: Neuron
    states: dict[str, StateSpec]
    current: str
    emission: str
    shape: tuple[int, ...]
    parameters: dict[str, Floats]

    @property
    def membrane(self) -> StateSpec | None:
        """The state that the potential is computed from."""
        return self.states.get(self.row.membrane)

    @property
    def decay(self) -> Floats:
        """By how much a change of the membrane state reaches the potential."""
        return self.parameters.get("decay", np.ones(1, dtype=np.float32))

    def values(self, tensors: Mapping[str, Floats], dtype: type[np.floating[Any]] = np.float32) -> dict[str, Floats]:
        """Every tensor of the neuron's body, given the graph's tensors by name."""
        return bodies.values(self.row, {name: value.astype(dtype) for name, value in self._given(tensors).items()})

    def scales(self, tensors: Mapping[str, Floats], current: Floats | None) -> dict[str, Floats]:
        """What rounding errors are relative to, for every tensor of the body (float64).

        ``current`` is the sum of the magnitudes that the current was computed from.
        """
        given = self._given(tensors)
        if current is not None:
            given[self.row.current] = current
        return bodies.magnitudes(self.row, given)

    def distances(self, tensors: Mapping[str, Floats]) -> list[Floats]:
        """How far each comparison is above (or below: negative) its threshold, in float64 and in ``shape``.

        Of several levels only the nearest counts.
        """
        found = self.values(tensors, np.float64)
        return [self._nearest(entry.left - entry.right) for entry in bodies.comparisons(self.row, found)]

    def _nearest(self, distance: Floats) -> Floats:
        if self.row.axis != "levels":
            return distance
        at = np.abs(distance).argmin(axis=-1)[..., np.newaxis]
        return np.take_along_axis(distance, at, axis=-1)[..., 0]

    def _given(self, tensors: Mapping[str, Floats]) -> dict[str, Floats]:
        given = {name: tensors[state.input] for name, state in self.states.items()}
        if self.current:
            given[self.row.current] = tensors[self.current]
        return given | self.parameters


def cells(model: onnx.ModelProto, spec: GraphSpec) -> list[Cell]:
    """The neurons of a checked step graph, in the order of the nodes."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    by_input = {state.input: state for state in spec.states}
    shapes = sample_shapes(model)
    found = []
    for node in model.graph.node:
        if node.domain == DOMAIN:
            row = NEURONS[node.op_type]
            bound = dict(zip(row.inputs, node.input, strict=True))
            parameters = {name: constants[bound[name]] for name in row.parameters}
            states = {name: by_input[bound[name]] for name, _ in row.states}
            emission = node.output[0]
            current = bound.get(row.current, "")
            found.append(Cell(node.name or emission, row, states, current, emission, shapes[emission], parameters))
    return found


def tapped(model: onnx.ModelProto, found: list[Cell]) -> onnx.ModelProto:
    """The step graph with every cell's current and emission among its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {output.name for output in copy.graph.output} | {entry.name for entry in copy.graph.input}
    for cell in found:
        for name in (cell.current, cell.emission):
            if name and name not in present:
                present.add(name)
                copy.graph.output.append(_info(name, cell.shape))
    return copy


def magnitudes(model: onnx.ModelProto, spec: GraphSpec, found: list[Cell]) -> onnx.ModelProto:
    """The graph of magnitudes. Inputs: the inputs, plain states and emissions (as magnitudes); outputs: every cell's
    current, the output, and the plain states, each as the sum of the magnitudes that it was computed from.

    Where it holds functions that are no sums, the same inputs are asked for as they are too, under ``VALUE`` + name.
    """
    graph = model.graph
    standard = [node for node in graph.node if node.domain != DOMAIN]
    given = {entry.name: entry.shape for entry in spec.inputs}
    given |= {state.input: state.shape for state in spec.states if not state.neuron}
    given |= {cell.emission: cell.shape for cell in found}
    nodes, initializers = _bounds(standard, graph.initializer)
    if any(has_rule(node.op_type) for node in standard):
        given |= {VALUE + name: shape for name, shape in given.items()}
    asked = {cell.current: cell.shape for cell in found if cell.current} | {spec.output: (spec.classes,)}
    asked |= {state.output: state.shape for state in spec.states if not state.neuron}
    nodes += [helper.make_node("Identity", [name], [f"magnitude/{name}"]) for name in asked]
    outputs = [_info(f"magnitude/{name}", shape) for name, shape in asked.items()]
    return assemble(
        helper.make_graph(nodes, "magnitudes", [_info(name, s) for name, s in given.items()], outputs, initializers)
    )


def _bounds(
    standard: Sequence[onnx.NodeProto], constants: Iterable[onnx.TensorProto]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and initializers of the magnitudes; of the values too where a function needs them."""
    rules, constants = Rules(), list(constants)
    initializers = [_magnitude(tensor) for tensor in constants]
    if any(has_rule(node.op_type) for node in standard):
        rules.nodes += [value_node(node) for node in standard]
        initializers += [numpy_helper.from_array(numpy_helper.to_array(t), VALUE + t.name) for t in constants]
    for node in standard:
        if not rules.add(node):
            rules.nodes.append(_of_magnitudes(node))
    return rules.nodes, initializers + rules.initializers


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
