"""A NIR graph → the canonical graph of one time step.

Every node is judged before anything is written, and all that cannot be imported are named at once. A cycle is closed
through the past: what leads back is read one step later, from the neurons in the cycle. Where one weighted node alone
feeds a neuron, the neuron's input gain is folded into its weights; elsewhere it is a Mul.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from cloud_sync.convert.emit import emit
from cloud_sync.convert.errors import ConversionError, Refusal, RefusedNodesError
from cloud_sync.convert.network import Conv, Dense, Layer, Reshape
from cloud_sync.convert.nir import pieces
from cloud_sync.convert.nir.cells import CELLS, Cell, delay_in_cycle
from cloud_sync.convert.nir.fields import Doubles, UnfitError, check_known, numbers, unfit
from cloud_sync.convert.nir.file import Graph, Node
from cloud_sync.convert.nir.flat import THROUGH, Flat, cycles, flatten
from cloud_sync.convert.nir.pieces import Handed, Pooled, Scaled, Shape, Weighted
from cloud_sync.convert.nir.semantics import Semantics
from cloud_sync.convert.step import Neurons, SpikingNetwork, Synapses
from edged.bundle.graph.builder import StepBuilder
from edged.bundle.graph.neurons import NEURONS

Piece: TypeAlias = Weighted | Pooled | Scaled | Handed | Cell

INPUT = "input"
_CONV = {"input_shape", "weight", "stride", "padding", "dilation", "groups", "bias"}
_POOL = {"kernel_size", "stride", "padding"}
_STATELESS: dict[str, Callable[[Node, Shape], Piece]] = {
    "Affine": pieces.affine,
    "AvgPool2d": pieces.pool,
    "Conv1d": pieces.convolution,
    "Conv2d": pieces.convolution,
    "Flatten": pieces.flatten,
    "Input": pieces.handed,
    "Linear": pieces.affine,
    "Output": pieces.handed,
    "Scale": pieces.scale,
    "SumPool2d": pieces.pool,
    THROUGH: pieces.handed,
}
FIELDS: dict[str, set[str]] = {
    "Affine": {"weight", "bias"},
    "AvgPool2d": _POOL,
    "Conv1d": _CONV,
    "Conv2d": _CONV,
    "CubaLI": {"tau_syn", "tau_mem", "r", "v_leak", "w_in"},
    "CubaLIF": {"tau_syn", "tau_mem", "r", "v_leak", "w_in", "v_threshold", "v_reset"},
    "Delay": {"delay"},
    "Flatten": {"start_dim", "end_dim"},
    "I": {"r"},
    "IF": {"r", "v_threshold", "v_reset"},
    "Input": {"shape"},
    "LI": {"tau", "r", "v_leak"},
    "LIF": {"tau", "r", "v_leak", "v_threshold", "v_reset"},
    "Linear": {"weight"},
    "Output": {"shape"},
    "Scale": {"scale"},
    "SumPool2d": _POOL,
    THROUGH: {"shape"},
    "Threshold": {"threshold"},
}
SPIKING = frozenset({"CubaLIF", "IF", "LIF", "Threshold"})


def lower(graph: Graph, semantics: Semantics, *, sequence: bool = True, where: str = "the graph") -> SpikingNetwork:
    """Write the step graph of a NIR graph with one input and one output.

    ``sequence``: the input has a new value at each step. Raises RefusedNodesError, ConversionError.
    """
    late = frozenset(kind for kind in FIELDS if semantics.emission == "next" and kind in SPIKING)
    flat = flatten(graph, late)
    refusals = _wiring(flat)
    made = _pieces(flat, semantics, refusals)
    if refusals:
        raise RefusedNodesError(where, refusals)
    return _Writer(flat, made, sequence=sequence).write()


def _wiring(flat: Flat) -> list[Refusal]:
    """What is wrong with the graph, whatever its nodes compute."""
    found = []
    for kind, noun in (("Input", "inputs"), ("Output", "outputs")):
        named = [name for name, node in flat.nodes.items() if node.kind == kind]
        if len(named) != 1:
            found.append(
                Refusal(", ".join(named) or "-", kind, f"the graph has {len(named)} {noun}", "a bundle has one")
            )
    for name, node in flat.nodes.items():
        if node.kind not in FIELDS:
            found.append(Refusal(name, node.kind, "nir 1.0.8 has no such node"))
        if node.kind != "Input" and not flat.reads[name]:
            found.append(Refusal(name, node.kind, "nothing leads to it", "remove it, or connect it"))
        if node.kind == "Input" and flat.reads[name]:
            found.append(Refusal(name, node.kind, "something leads into an input"))
        if node.kind != "Output" and not flat.readers(name):
            found.append(Refusal(name, node.kind, "it leads nowhere", "remove it, or connect it"))
    return found + _cycles(flat)


def _cycles(flat: Flat) -> list[Refusal]:
    """The cycles that no neuron and no delay gives a step of time."""
    timeless = {name for name, node in flat.nodes.items() if node.kind not in CELLS or node.kind == "Threshold"}
    reads = {name: list(flat.reads[name]) for name in flat.nodes if name in timeless}
    return [
        Refusal(", ".join(sorted(cycle)), "cycle", "there is no neuron in it", "NIR gives such a loop no step of time")
        for cycle in cycles(reads)
    ]


def _pieces(flat: Flat, semantics: Semantics, refusals: list[Refusal]) -> dict[str, Piece]:
    """What every node becomes; the shapes run along all edges that do not lead back."""
    made: dict[str, Piece] = {}
    for name, node in flat.nodes.items():
        if node.kind not in FIELDS:
            continue
        try:
            check_known(node, FIELDS[node.kind])
            shape = _incoming(flat, made, name)
            if shape is not None:
                cell = delay_in_cycle if node.kind == "Delay" and name in flat.late else CELLS.get(node.kind)
                made[name] = cell(node, shape, semantics) if cell else _STATELESS[node.kind](node, shape)
        except UnfitError as error:
            refusals.append(Refusal(name, node.kind, error.reason, error.hint))
    for source, target in flat.back:
        if source in made and target in made:
            came, expected = made[source].shape, _incoming(flat, made, target)
            if came != expected:
                reason = f"{source!r} leads back to it with shape {list(came)}, it takes {list(expected or ())}"
                refusals.append(Refusal(target, flat.nodes[target].kind, reason))
    return made


def _incoming(flat: Flat, made: dict[str, Piece], name: str) -> Shape | None:
    """The shape of what comes in; None where a node before is refused."""
    node = flat.nodes[name]
    if node.kind == "Input":
        said = tuple(int(size) for size in np.ravel(numbers(node, "shape")))
        if not said or any(size < 1 for size in said):
            unfit(f"its shape is {list(said)}", "the shape of one sample at one step, without batch and time")
        return said
    forward = [source for source in flat.reads[name] if (source, name) not in flat.back]
    shapes = {made[source].shape for source in forward if source in made}
    if not shapes or any(source not in made for source in forward):
        return None
    if len(shapes) > 1:
        unfit(f"what comes in has different shapes: {', '.join(str(list(shape)) for shape in sorted(shapes))}")
    return shapes.pop()


class _Writer:
    """Writes node after node. ``_made`` has the tensor that each node makes in this step, before any ``offset``."""

    def __init__(self, flat: Flat, pieces: dict[str, Piece], *, sequence: bool) -> None:
        self._flat = flat
        self._pieces = pieces
        self._sequence = sequence
        self._builder = StepBuilder("nir")
        self._made: dict[str, str] = {}
        self._states: dict[str, tuple[str, str]] = {}  # by its name: the state's tensor, the node that it remembers
        self._past: dict[str, str] = {}
        self._folded = self._fold_gains()
        self._synapses: list[Synapses] = []
        self._neurons: list[Neurons] = []

    def write(self) -> SpikingNetwork:
        """Everything, in order; the states at the end, when all that they take is known."""
        needed = self._needed()
        for name in self._flat.order:
            if name in needed:
                self._made[name] = self._node(name)
        out = next(name for name, node in self._flat.nodes.items() if node.kind == "Output")
        y, shape = self._made[out], self._pieces[out].shape
        y = y if len(shape) == 1 else self._builder.node("Flatten", y, name=f"{out}/flat", axis=1)
        for state, source in self._states.values():
            self._builder.update(state, self._made.get(source, source))
        graph = self._builder.build(y, math.prod(shape))
        analogue = "" if self._sequence else INPUT
        return SpikingNetwork(graph, tuple(self._synapses), tuple(self._neurons), analogue=analogue)

    def _needed(self) -> set[str]:
        """All nodes but those that are only read from the step before, and so are computed then."""
        needed: set[str] = set()
        for name in reversed(self._flat.order):
            remembers = isinstance(self._pieces[name], Cell)
            port = self._flat.nodes[name].kind in ("Input", "Output")
            readers = self._flat.readers(name)
            if remembers or port or any(r in needed and (name, r) not in self._flat.closing for r in readers):
                needed.add(name)
        return needed

    def _fold_gains(self) -> dict[str, Doubles]:
        """The gain that goes into each weighted node's weights."""
        folded = {}
        for name, piece in self._pieces.items():
            reads = self._flat.reads[name]
            if not isinstance(piece, Cell) or piece.gain is None or len(reads) != 1:
                continue
            if isinstance(self._pieces[reads[0]], Weighted) and self._flat.readers(reads[0]) == [name]:
                gain = piece.gain.reshape(len(piece.gain), -1)
                if (gain == gain[:, :1]).all():  # one number a channel
                    folded[reads[0]] = gain[:, 0]
        return folded

    def _node(self, name: str) -> str:
        piece = self._pieces[name]
        if self._flat.nodes[name].kind == "Input":
            return self._builder.input(INPUT, piece.shape, sequence=self._sequence)
        sources = [
            self._before(source, ()) if (source, name) in self._flat.closing else self._seen(source)
            for source in self._flat.reads[name]
        ]
        return self._apply(name, self._sum(name, sources), "")

    def _seen(self, name: str) -> str:
        """What others see of a node in this step."""
        if name in self._flat.late:
            return self._remembered(name, name, "/late")
        return self._whole(name, self._made[name], "")

    def _before(self, name: str, path: tuple[str, ...]) -> str:
        """What others saw of a node one step ago."""
        if name in self._past:
            return self._past[name]
        if name in path:
            raise ConversionError(f"the cycle through {name!r} holds no neuron")
        piece = self._pieces[name]
        if name in self._flat.late:
            made = self._remembered(name, self._seen(name), "/past")
        elif isinstance(piece, Cell) or self._flat.nodes[name].kind == "Input":
            made = self._whole(name, self._remembered(name, name, "/past"), "/past")
        else:
            sources = [self._before(source, (*path, name)) for source in self._flat.reads[name]]
            made = self._apply(name, self._sum(f"{name}/past", sources), "/past")
        self._past[name] = made
        return made

    def _remembered(self, name: str, source: str, suffix: str) -> str:
        """The state with which a node (or a tensor) is seen one step later; zero at first."""
        label = f"{name}{suffix}"
        if label not in self._states:
            self._states[label] = self._builder.state(f"{label}/state", self._pieces[name].shape), source
        return self._states[label][0]

    def _whole(self, name: str, tensor: str, suffix: str) -> str:
        """A neuron's output as NIR counts it: its state counts from where the membrane starts."""
        piece = self._pieces[name]
        if not isinstance(piece, Cell) or piece.offset is None:
            return tensor
        label = f"{name}/whole{suffix}"
        if label not in self._past:
            offset = self._builder.constant(piece.offset.astype(np.float32)[np.newaxis], f"{label}.rest")
            self._past[label] = self._builder.node("Add", tensor, offset, name=label)
        return self._past[label]

    def _sum(self, name: str, sources: list[str]) -> str:
        total = sources[0]
        for number, source in enumerate(sources[1:]):
            total = self._builder.node("Add", total, source, name=f"{name}/sum{number}")
        return total

    def _apply(self, name: str, x: str, suffix: str) -> str:
        piece, tensor = self._pieces[name], f"{name}/out{suffix}"
        match piece:
            case Cell():
                return self._cell(name, piece, x, tensor)
            case Weighted():
                return self._weighted(name, piece, x, tensor)
            case Pooled():
                return emit(self._builder, Layer(name, piece.operation, (x,), name, piece.shape), (x,), tensor)
            case Scaled():
                factor = self._builder.constant(piece.factor[np.newaxis], f"{tensor}.factor")
                return self._builder.node("Mul", x, factor, name=tensor)
            case Handed():
                return self._handed(name, piece, x, tensor)

    def _weighted(self, name: str, piece: Weighted, x: str, tensor: str) -> str:
        operation = piece.operation
        if name in self._folded:
            operation = _with_gain(operation, self._folded[name])
        before = self._pieces[self._flat.reads[name][0]].shape
        self._synapses.append(Synapses(operation, x, before, piece.shape))
        return emit(self._builder, Layer(name, operation, (x,), name, piece.shape), (x,), tensor)

    def _handed(self, name: str, piece: Handed, x: str, tensor: str) -> str:
        if piece.shape == self._pieces[self._flat.reads[name][0]].shape:
            return x
        return emit(self._builder, Layer(name, Reshape(), (x,), name, piece.shape), (x,), tensor)

    def _cell(self, name: str, cell: Cell, x: str, tensor: str) -> str:
        reads = self._flat.reads[name]
        folded = len(reads) == 1 and reads[0] in self._folded
        if cell.gain is not None and not folded and (cell.gain.astype(np.float32) != 1).any():
            gain = self._builder.constant(cell.gain.astype(np.float32)[np.newaxis], f"{tensor}.gain_in")
            x = self._builder.node("Mul", x, gain, name=f"{tensor}.driven")
        y = self._builder.neuron(cell.op, x, cell.shape, name=tensor, **cell.parameters)
        if NEURONS[cell.op].spiking:
            self._neurons.append(Neurons(y, cell.shape, name))
        return y


def _with_gain(operation: Conv | Dense, gain: Doubles) -> Conv | Dense:
    """Every output channel times its gain."""
    if isinstance(operation, Dense):
        weight = (operation.weight * gain).astype(np.float32)
    else:
        weight = (operation.weight * gain.reshape(-1, *(1,) * (operation.weight.ndim - 1))).astype(np.float32)
    return replace(operation, weight=weight, bias=(operation.bias * gain).astype(np.float32))
