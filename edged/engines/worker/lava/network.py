"""A step graph as Lava can hold it: populations of neurons, linear links between them, and what is read from them.

``read`` follows the graph once. Each spiking neuron node becomes a population; everything between two of them becomes
links (``affine``). What lies behind the last spikes, the readout with its leaky integrators, is linear too and small;
Lava has no neuron for it, so the worker computes it from the spikes (``tail``). ``depth`` says how many of Lava's steps
a population lags behind the input: every synapse takes one step, so each population sees a step of the model at a time
of its own. Links that would arrive early are delayed; those that would have to arrive too early are refused.

Knows canonical graphs and that rule of Lava, and imports no Lava.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper
from scipy import sparse  # type: ignore[import-untyped]  # ships no types

from edged.bundle.graph.neurons import DOMAIN, NEURONS
from edged.bundle.graph.plans import sample_shapes
from edged.bundle.graph.spec import GraphSpec
from edged.engines.worker.lava.affine import (
    GATE,
    Affine,
    Kernel,
    Site,
    Source,
    Unsupported,
    added,
    follow,
    refused,
    source,
)

SOFT, HARD, CUBA, STATELESS = ("IF", "LIF"), ("IFZ", "LIFZ"), ("CubaLIFZ",), ("Threshold",)
POPULATIONS = (*SOFT, *HARD, *CUBA, *STATELESS)
INTEGRATORS = ("LI", "CubaLI")
WHY_NOT = {
    "CubaLIF": "Lava's LIF resets to zero and forgets what was left above the threshold; only the neurons without a "
    "synaptic current (IF, LIF) can be arranged so that it is kept",
    "SignedIF": "Lava's LIF sends no negative spikes that take earlier ones back",
    "MultiThreshold": "Lava's LIF has one threshold",
    "RunningSum": "Lava has no neuron that sends a running sum",
    "Difference": "Lava has no neuron that sends a difference",
    "Clock": "Lava has no neuron that counts steps",
}


@dataclass(frozen=True)
class Population:
    """One spiking neuron node. Parameters are flat, one number a neuron; states go by their tensor names."""

    name: str
    op: str
    shape: tuple[int, ...]
    node: onnx.NodeProto
    parameters: dict[str, Any]
    states: dict[str, str]  # v, c → the graph's state
    current: Affine  # of one step; states of the graph are sources of their own

    @property
    def size(self) -> int:
        """Neurons."""
        return self.current.size


@dataclass(frozen=True)
class Integrator:
    """A leaky integrator (LI, CubaLI) behind the last spikes; computed by the worker."""

    name: str
    op: str
    parameters: dict[str, Any]
    states: dict[str, str]
    current: Affine


@dataclass(frozen=True)
class Link:
    """Synapses from a population or an input to a population; ``extra`` steps later than Lava's one.

    What they add is ``weights``·2^``exponent``, which is 0 in floating point.
    """

    source: str
    target: str
    lag: int
    extra: int
    weights: Any  # (target, source) sparse
    kernel: Kernel | None = None
    exponent: int = 0


class Gate(NamedTuple):
    """A signal that lasts from a step ``first`` of the model to the end of the window, and its value."""

    first: int
    value: int = 1


@dataclass(frozen=True)
class Network:
    """Everything that is built from a graph. ``outputs`` are flat, by the name of the graph's tensor."""

    populations: tuple[Population, ...]  # in an order in which one step can be computed
    integrators: tuple[Integrator, ...]
    links: tuple[Link, ...]
    gates: dict[str, dict[Gate, Any]]  # population → constant currents, by the signal that brings them
    depths: dict[str, int]  # inputs have 0
    readout: Affine  # the graph's output over time: states are replaced by what they held
    currents: dict[str, Affine]  # of the populations and the integrators, likewise
    gate_exponents: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, Affine] = field(default_factory=dict)  # of one step: the output, and the new states of no neuron

    @property
    def depth(self) -> int:
        """Lava's steps from the input to the last population."""
        return max(self.depths.values())


def read(model: onnx.ModelProto, spec: GraphSpec) -> Network:
    """The network of a checked step graph. Raises Unsupported, naming the node and the reason."""
    return _Reader(model, spec).read()


class _Reader:
    def __init__(self, model: onnx.ModelProto, spec: GraphSpec) -> None:
        self.spec = spec
        self.nodes = list(model.graph.node)
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.shapes = sample_shapes(model)
        self.values: dict[str, Affine] = {entry.name: source(entry.name, entry.shape) for entry in spec.inputs}
        self.values.update({state.input: source(state.input, state.shape) for state in spec.states})
        self.populations: list[Population] = []
        self.integrators: list[Integrator] = []
        self.histories: dict[str, Affine] = {}  # state of a Delay → what it remembers
        self.outputs: dict[str, Affine] = {}
        self.resolved: dict[str, Affine] = {}
        self.resolving: list[str] = []

    def read(self) -> Network:
        for node in self.nodes:
            if node.domain == DOMAIN:
                self.neuron(node)
            else:
                given = [self.values.get(name, self.constants.get(name)) if name else None for name in node.input]
                shapes = [self.shapes[name] for name in node.output]
                made = follow(Site(node, given, shapes))
                self.values.update(zip(node.output, made))  # noqa: B905  # Python 3.8
        if not self.populations:
            raise Unsupported("the network has no spiking neuron: there is nothing for Lava to do")
        self.outputs.update({s.input: self.values[s.output] for s in self.spec.states if not s.neuron})
        self.outputs[self.spec.output] = self.values[self.spec.output]
        currents = {p.name: self.over_time(p.current) for p in self.populations}
        for population in self.populations:
            self.check_sources(population, currents[population.name])
        links = [link for p in self.populations for link in self.links(p, currents[p.name])]
        depths = self.depths(links)
        return Network(
            tuple(self.populations),
            tuple(self.integrators),
            tuple(_timed(link, depths) for link in links),
            {p.name: _gates(p, currents[p.name]) for p in self.populations},
            depths,
            self.over_time(self.outputs[self.spec.output]),
            {**currents, **{cell.name: self.over_time(cell.current) for cell in self.integrators}},
            outputs=self.outputs,
        )

    # Neurons

    def neuron(self, node: onnx.NodeProto) -> None:
        row = NEURONS[node.op_type]
        if node.op_type in WHY_NOT:
            raise refused(node, WHY_NOT[node.op_type])
        bound = dict(zip(row.inputs, node.input))  # noqa: B905  # Python 3.8; the graph was checked
        parameters = {name: self.constants[bound[name]] for name in row.parameters}
        states = {name: bound[name] for name, _ in row.states}
        current = self.values[bound[row.current]]
        name, shape = node.output[0], self.shapes[node.output[0]]
        if node.op_type == "Delay":
            self.delay(node, current, parameters["w"], states["d"])
            return
        flat = {key: np.broadcast_to(value, (1, *shape)).reshape(-1) for key, value in parameters.items()}
        if node.op_type in INTEGRATORS:
            self.integrators.append(Integrator(name, node.op_type, flat, states, current))
        else:
            _check_parameters(node, flat)
            self.populations.append(Population(name, node.op_type, shape, node, flat, states, current))
        self.values[name] = source(name, shape)

    def delay(self, node: onnx.NodeProto, x: Affine, w: Any, state: str) -> None:
        """y = Σ_k d'_k·w_k with d' = [d[1:], x]: for each number one earlier value of x."""
        depth = w.shape[1]
        which = np.broadcast_to(w, (1, depth, *x.shape))[0].reshape(depth, -1).argmax(axis=0)
        here = np.arange(x.size)
        history = source(state, (depth, *x.shape))
        parts = [x.rows(np.where(which == depth - 1, here, -1), x.shape)]
        older = np.where(which < depth - 1, (which + 1) * x.size + here, -1)
        parts.append(history.rows(older, x.shape))
        self.values[node.output[0]] = added(x.shape, parts)
        self.histories[state] = x
        kept = history.rows(np.concatenate([np.arange(x.size, depth * x.size), np.full(x.size, -1)]), history.shape)
        newest = x.rows(np.concatenate([np.full((depth - 1) * x.size, -1), here]), history.shape)
        self.outputs[state] = added(history.shape, [kept, newest])

    # Time

    def over_time(self, value: Affine) -> Affine:
        """The same tensor with plain states and histories replaced by what they held: earlier values of others."""
        parts = [Affine(value.shape, {}, value.constant)]
        for key, matrix in value.terms.items():
            held = self.held(key.name)
            if held is None:
                kernels = {key: value.kernels[key]} if key in value.kernels else {}
                parts.append(Affine(value.shape, {key: matrix}, np.zeros(value.size, np.float32), kernels))
            else:
                parts.append(held.delayed(key.lag).mapped(matrix, value.shape))
        return added(value.shape, parts)

    def held(self, name: str) -> Affine | None:
        """What a state that is no neuron's holds, in terms of earlier steps; None for any other source."""
        state = next((s for s in self.spec.states if s.input == name), None)
        if state is None or (state.neuron and name not in self.histories):
            return None
        if name not in self.resolved:
            if name in self.resolving:
                raise Unsupported(f"state {name!r}: it feeds back to itself without a neuron between")
            self.resolving.append(name)
            self.resolved[name] = self.remembered(name)
            self.resolving.pop()
        return self.resolved[name]

    def remembered(self, name: str) -> Affine:
        state = next(s for s in self.spec.states if s.input == name)
        if name not in self.histories:
            return self.over_time(self.values[state.output]).delayed(1)
        x, depth = self.over_time(self.histories[name]), state.shape[0]
        parts = []
        for row in range(depth):
            index = np.full(depth * x.size, -1)
            index[row * x.size : (row + 1) * x.size] = np.arange(x.size)
            parts.append(x.delayed(depth - row).rows(index, state.shape))
        return added(state.shape, parts)

    # Links

    def check_sources(self, population: Population, current: Affine) -> None:
        graded = {cell.name: cell for cell in self.integrators}
        for key in current.terms:
            if key.name in graded:
                op = graded[key.name].op
                raise refused(
                    population.node,
                    f"it reads node {key.name!r} ({op}): Lava's LIF sends spikes, no integrator sends its potential",
                )

    def links(self, population: Population, current: Affine) -> list[Link]:
        """Everything that reaches a population, in its own scale, with the synapse by which it resets itself."""
        found = {key: in_scale(population, matrix) for key, matrix in current.terms.items() if key.name != GATE}
        for key, own in _own_synapses(population).items():
            found[key] = found[key] + own if key in found else own
        plain = population.op not in CUBA
        return [
            Link(key.name, population.name, key.lag, 0, matrix.tocsr(),
                 current.kernels.get(key) if plain and key.lag == 0 else None)
            for key, matrix in found.items()
        ]  # fmt: skip

    def depths(self, links: Sequence[Link]) -> dict[str, int]:
        """The least depths at which every link arrives in time (Bellman and Ford's longest paths)."""
        depths = {entry.name: 0 for entry in self.spec.inputs}
        depths.update({p.name: 1 for p in self.populations})
        for _ in range(len(self.populations) + 1):
            late = [link for link in links if depths[link.target] < depths[link.source] + 1 - link.lag]
            if not late:
                return depths
            for link in late:
                depths[link.target] = max(depths[link.target], depths[link.source] + 1 - link.lag)
        node = next(p.node for p in self.populations if p.name == late[0].target)
        raise refused(
            node,
            f"it is part of a loop (through {late[0].source!r}) with more synapses than steps; each takes one in Lava",
        )


def _check_parameters(node: onnx.NodeProto, flat: dict[str, Any]) -> None:
    if not (flat["v_th"] > 0).all():
        raise refused(node, "a threshold that is not positive makes it fire in Lava before its first step has come")
    if node.op_type in CUBA and not (flat["gain"] * flat["c_gain"] != 0).all():
        raise refused(node, "a gain of zero: Lava's synaptic current is the one that reaches the membrane")


def in_scale(population: Population, matrix: Any) -> Any:
    """Weights as Lava's neuron needs them: c·gain is what it calls u."""
    if population.op not in CUBA:
        return matrix
    gain = population.parameters["c_gain"].astype(np.float64) * population.parameters["gain"]
    return matrix.multiply(gain[:, None]).tocsr()


def _own_synapses(population: Population) -> dict[Source, Any]:
    """From a population to itself: what a reset is, beside Lava's own to zero."""
    given = {name: value.astype(np.float64) for name, value in population.parameters.items()}
    ones = np.ones(population.size)
    own: dict[int, Any] = {}
    if population.op in SOFT:
        own[1] = -given["v_sub"] * given.get("decay", ones)
    elif population.op in (*HARD, *CUBA) and given["v_reset"].any():
        own[1] = given["v_reset"] * given.get("decay", ones)
        if population.op in CUBA:  # it enters by the synaptic current, which would keep it: taken out one step later
            own[2] = -own[1] * given["c_decay"]
    return {Source(population.name, lag): sparse.diags(value).tocsr() for lag, value in own.items() if value.any()}


def _gates(population: Population, current: Affine) -> dict[Gate, Any]:
    """Constant currents by the first step of the model at which they act."""
    given = population.parameters
    bias = given.get("bias", np.zeros(population.size, np.float32))
    gates: dict[int, Any] = {}
    if population.op in CUBA:
        gain = given["c_gain"].astype(np.float64) * given["gain"]
        gates[0] = current.constant * gain + bias
        gates[1] = -bias.astype(np.float64) * given["c_decay"]  # the bias is to stay as it is, not to pile up
    else:
        gates[0] = (current.constant + bias).astype(np.float64)  # rounded once, as the graph does
    for key, column in current.terms.items():
        if key.name == GATE:
            extra = np.asarray(in_scale(population, column).todense(), np.float64).reshape(-1)
            gates[key.lag] = gates.get(key.lag, 0) + extra
    return {Gate(first): value for first, value in gates.items() if value.any()}


def _timed(link: Link, depths: dict[str, int]) -> Link:
    extra = depths[link.target] - depths[link.source] - 1 + link.lag
    return Link(link.source, link.target, link.lag, extra, link.weights, link.kernel)
