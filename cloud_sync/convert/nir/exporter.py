"""The canonical graph of one time step → a NIR graph, with what a reader of the file must be told beside it.

Each node becomes the NIR node that computes the same; a sum becomes several edges into one node, a delayed tensor a
Delay of one step. Everything that NIR has no node for is named at once. NIR has one reset, one comparison and one first
value of the membrane for all neurons, and none of them is in the file: ``Exported.semantics`` holds them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from cloud_sync.convert.errors import Refusal, RefusedNodesError
from cloud_sync.convert.nir.export_cells import WRITTEN, Choice, Written
from cloud_sync.convert.nir.export_pieces import STANDARD, Site
from cloud_sync.convert.nir.fields import Doubles, UnfitError, unfit
from cloud_sync.convert.nir.file import Value
from cloud_sync.convert.nir.pieces import Shape
from cloud_sync.convert.nir.semantics import Comparison, Semantics
from edged.bundle.graph.neurons import DOMAIN, NEURONS, Neuron
from edged.bundle.graph.plans import sample_shapes
from edged.bundle.graph.spec import GraphSpec

VERSION = "1.0.8"  # of the nir package whose files these are
MAX_STEM = 200  # of a name, which may get a number behind it

Sources = tuple[str, ...]  # the NIR nodes whose sum a tensor is


@dataclass(frozen=True, slots=True)
class Exported:
    """A NIR file as a tree, and how its neurons must be stepped so that it gives the same spikes."""

    tree: dict[str, Value]
    semantics: Semantics


def export(model: onnx.ModelProto, spec: GraphSpec, comparison: Comparison, dt: float, where: str) -> Exported:
    """Export a checked step graph; ``comparison`` is what the model's source meant. Raises RefusedNodesError."""
    return _Exporter(model, spec, comparison, dt).run(where)


class _Exporter:
    """Walks the graph in order. ``_sources``: the NIR nodes that each tensor is the sum of; ``_sent``: their shapes."""

    def __init__(self, model: onnx.ModelProto, spec: GraphSpec, comparison: Comparison, dt: float) -> None:
        self._graph = model.graph
        self._spec = spec
        self._comparison: Comparison = comparison
        self._dt = dt
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._shapes = sample_shapes(model)
        self._nodes: dict[str, Value] = {}
        self._sent: dict[str, Shape] = {}
        self._edges: list[str] = []
        self._sources: dict[str, Sources] = {}
        self._choices: dict[str, Choice] = {}
        self._refusals: list[Refusal] = []

    def run(self, where: str) -> Exported:
        """The whole graph; what closes a cycle at the end."""
        entry = self._spec.inputs[0]
        self._sources[entry.name] = (self._add("input", _port("Input", entry.shape), entry.shape),)
        plain = [state for state in self._spec.states if not state.neuron]
        for state in plain:
            step = Written("Delay", {"delay": np.full(state.shape, self._dt)})
            self._sources[state.input] = (self._add(state.input, step, state.shape),)
        for node in self._graph.node:
            self._visit(node)
        semantics = self._semantics()
        if self._refusals:
            raise RefusedNodesError(where, self._refusals)
        for state in plain:
            self._connect(self._sources[state.output], self._sources[state.input][0])
        out = (self._spec.classes,)
        end = self._add("output", _port("Output", out), out)
        self._connect(self._sources[self._spec.output], end)
        return Exported({"version": VERSION, "node": self._living(end)}, semantics)

    def _living(self, end: str) -> dict[str, Value]:
        """The NIR graph without nodes that lead nowhere, which readers refuse."""
        pairs = list(zip(self._edges[::2], self._edges[1::2], strict=True))
        living, waiting = {*self._sources[self._spec.inputs[0].name]}, [end]
        while waiting:
            name = waiting.pop()
            if name not in living:
                living.add(name)
                waiting += [source for source, target in pairs if target == name]
        nodes = {name: node for name, node in self._nodes.items() if name in living}
        edges = [pair for pair in pairs if pair[1] in living]
        return {"type": "NIRGraph", "nodes": nodes, "edges": np.array(edges, dtype=object).reshape(-1, 2)}

    def _visit(self, node: onnx.NodeProto) -> None:
        reads = _activations(node, self._constants)
        known = node.op_type in (WRITTEN if node.domain == DOMAIN else {"Add", "Identity", *STANDARD})
        if known and any(name not in self._sources for name in reads):
            return  # what makes it was refused
        try:
            if node.op_type == "Identity":
                self._sources[node.output[0]] = self._sources[reads[0]]
            elif node.op_type == "Add" and len(reads) == 2:
                self._sources[node.output[0]] = self._sources[reads[0]] + self._sources[reads[1]]
            else:
                self._make(node, self._neuron(node) if node.domain == DOMAIN else self._standard(node, reads), reads)
        except UnfitError as error:
            self._refusals.append(Refusal(node.name or node.output[0], node.op_type, error.reason, error.hint))

    def _make(self, node: onnx.NodeProto, made: Written, reads: list[str]) -> None:
        if made.choice is not None:
            self._choices[node.name or node.output[0]] = made.choice
        name = self._add(node.output[0], made, self._shapes[node.output[0]])
        self._connect(self._sources[reads[0]], name)
        self._sources[node.output[0]] = (name,)

    def _standard(self, node: onnx.NodeProto, reads: list[str]) -> Written:
        write = STANDARD.get(node.op_type)
        if write is None or len(reads) != 1:
            unfit("NIR has no such node", "an Add of a constant belongs into a bias" if node.op_type == "Add" else "")
        return write(Site(node, self._constants, self._shapes[reads[0]], self._shapes[node.output[0]]))

    def _neuron(self, node: onnx.NodeProto) -> Written:
        write = WRITTEN.get(node.op_type)
        if write is None:
            unfit("NIR has no such neuron")
        row, shape = NEURONS[node.op_type], self._shapes[node.output[0]]
        bound = dict(zip(row.inputs, node.input, strict=True))
        values = {name: _for_each(self._constants[bound[name]], row, shape) for name in row.parameters}
        return write(values, shape, self._dt, self._comparison)

    def _add(self, wanted: str, made: Written, sent: Shape) -> str:
        stem = re.sub(r"[/.]", "_", wanted)[:MAX_STEM]
        name, number = stem, 1
        while name in self._nodes:
            name, number = f"{stem}_{number}", number + 1
        self._nodes[name] = {"type": made.kind, **made.fields}
        self._sent[name] = sent
        return name

    def _connect(self, sources: Sources, target: str) -> None:
        """One edge for each; the second of the same goes through a Scale by one, since no edge counts twice."""
        for place, source in enumerate(sources):
            begin = source
            if source in sources[:place]:
                shape = self._sent[source]
                begin = self._add(f"{source}_again", Written("Scale", {"scale": np.ones(shape)}), shape)
                self._edges += [source, begin]
            self._edges += [begin, target]

    def _semantics(self) -> Semantics:
        """What all neurons agree on; who does not is refused."""
        found = list(self._choices.items())
        for name, choice in found:
            if choice != found[0][1]:
                reason = f"it has reset {choice.reset}, start {choice.start}; {found[0][0]!r} has {found[0][1].reset}"
                self._refusals.append(
                    Refusal(name, "neuron", f"{reason}, {found[0][1].start}", "readers of NIR take one for all")
                )
        first = found[0][1] if found else Choice("value", "zero")
        return Semantics(dt=self._dt, reset=first.reset, comparison=self._comparison, start=first.start)


def _port(kind: str, shape: Shape) -> Written:
    return Written(kind, {"shape": np.array(shape)})


def _activations(node: onnx.NodeProto, constants: Mapping[str, NDArray[Any]]) -> list[str]:
    """What a node reads that is no constant and no state of its own."""
    if node.domain != DOMAIN:
        return [name for name in node.input if name and name not in constants]
    row = NEURONS[node.op_type]
    return [node.input[row.inputs.index(row.current)]] if row.current else []


def _for_each(value: NDArray[Any], row: Neuron, shape: Shape) -> Doubles:
    """A parameter for each element, as doubles; a history keeps its axis in front."""
    own = value[0].astype(np.float64)
    full = (len(own), *shape) if row.axis == "history" else own.shape if row.axis == "levels" else shape
    return np.array(np.broadcast_to(own, full))
