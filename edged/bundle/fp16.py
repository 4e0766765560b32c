"""A step graph with its sums in float16: what every tensor is, and how far an honest engine may be from that.

Written from the definition, in NumPy and float64. Layers with weights (Conv, ConvTranspose, Gemm, MatMul) round the
weights and what meets them to float16; their sums are made in float32 or in float16, in any order, and come out as
float16. Biases, neurons and everything else are float32.

The *doubt* of a tensor bounds the difference, element by element. A sum of n terms that are not zero makes
m = n - 1 + o roundings, o being the terms whose input is no power of two: only these products are rounded. With the
unit roundoff u = 2^-11 and A = Σ|w||x| it is off by at most m·u·A/(1 - m·u); and by λ·√m·u·A, with a likelihood beyond
1 - 7·10^-4 (λ = 4), even if every partial sum were as large as A (Higham, Mary: A new approach to probabilistic
rounding error analysis, 2019). The lesser of both counts. So one spike through one weight leaves no doubt at all. Where
the doubt of a potential reaches its threshold it may spike or not: what it emits is in doubt by a spike, its state by a
reset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edged.bundle.fp16_ops import FLOAT32, NoFloat16, Op
from edged.bundle.graph import bodies
from edged.bundle.graph.cells import Cell, cells
from edged.bundle.graph.neurons import DOMAIN
from edged.bundle.graph.spec import GraphSpec
from edged.bundle.graph.standard import attribute
from edged.bundle.graph.variants import weight_of

Floats = NDArray[Any]
Tensors = dict[str, Floats]
Aim = Callable[[Cell, Tensors, Floats], Floats]
Shake = Callable[[Floats], Floats]

UNIT = 2.0**-11  # of float16: half of the distance from 1 to the next number
LEAST = 2.0**-25  # half of the distance between its smallest numbers
LARGEST = float(np.finfo(np.float16).max)
SURE = 4.0  # λ
ADDED = ("bias", "v_th", "v_sub", "v_reset", "fire", "level")  # parameters that hand on no error of a current


class Float16Graph:
    """One time step of a checked step graph, for any number of rows. Tensors go by name, axis 0 is the rows."""

    def __init__(self, model: onnx.ModelProto, spec: GraphSpec) -> None:
        """Raises NoFloat16."""
        self.spec = spec
        self.cells = cells(model, spec)
        given = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._constants = {name: v.astype(np.float64) if v.dtype == np.float32 else v for name, v in given.items()}
        self._parts: list[_Layer | Op | Cell] = []
        rest = iter(self.cells)
        for node in model.graph.node:
            weight = weight_of(node, self._constants)
            if node.domain == DOMAIN:
                self._parts.append(next(rest))
            else:
                self._parts.append(Op(node) if weight is None else _Layer(node, weight, self._constants))

    def values(self, given: Mapping[str, Floats], shake: Shake | None = None) -> Tensors:
        """Every tensor. ``shake`` moves the sums: it is asked with the deviation that sums in float16 may have."""
        tensors = _wide(given) | self._constants
        for part in self._parts:
            if isinstance(part, _Layer):
                tensors[part.output] = part.add(part.core(tensors[part.input], shake)[0])
            elif isinstance(part, Op):
                tensors |= dict(zip(part.outputs, part(*(tensors[name] for name in part.inputs)), strict=True))
            else:
                tensors |= _emitted(part, part.values(tensors, np.float64))
        return tensors

    def doubts(self, given: Mapping[str, Floats], aim: Aim | None = None) -> tuple[Tensors, Tensors]:
        """Every tensor, and how much each is in doubt. What is given is certain.

        ``aim`` chooses the membranes of spiking cells that are not given: it is asked with the cell, what is known so
        far, and the doubt of the cell's current. Raises NoFloat16 where a doubt has no bound.
        """
        tensors = _wide(given) | self._constants
        doubts = {name: np.zeros_like(value) if name in given else np.zeros(()) for name, value in tensors.items()}
        for part in self._parts:
            if isinstance(part, Cell):
                doubt = doubts.get(part.current, np.zeros(()))
                membrane = part.membrane.input if part.membrane else ""
                if membrane and membrane not in tensors and aim is not None:
                    tensors[membrane] = aim(part, tensors, doubt)
                found = _emitted(part, part.values(tensors, np.float64))
                doubted = cell_doubts(part, tensors, doubt)
                doubts |= {name: np.broadcast_to(doubted[name], value.shape) for name, value in found.items()}
                tensors |= found
            elif isinstance(part, _Layer):
                total, own = part.core(tensors[part.input])
                tensors[part.output] = part.add(total)
                doubts[part.output] = part.doubt(tensors[part.input], doubts[part.input], own, tensors[part.output])
            else:
                outputs, their = part.doubt([tensors[name] for name in part.inputs], [doubts[n] for n in part.inputs])
                tensors |= dict(zip(part.outputs, outputs, strict=True))
                doubts |= dict(zip(part.outputs, their, strict=True))
        if not all(np.isfinite(value).all() for value in doubts.values()):
            raise NoFloat16("the errors of its sums in float16 have no bound")
        return tensors, doubts


def half(values: Floats) -> Floats:
    """The nearest numbers of float16, in float64. Raises NoFloat16 where there are none."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float16).astype(np.float64)
    if not np.isfinite(found).all():
        raise NoFloat16("a number of it is too large for float16")
    return found


def certain(cell: Cell, tensors: Mapping[str, Floats], doubt: Floats) -> NDArray[np.bool_]:
    """Where a spiking cell's emission is certain: no comparison is within the ``doubt`` of the potential."""
    clear = np.ones((1,), dtype=bool)
    for away in cell.distances(tensors):
        clear = clear & (np.abs(away) > doubt)
    return clear


def cell_doubts(cell: Cell, tensors: Mapping[str, Floats], doubt: Floats) -> Tensors:
    """The doubts of what a cell emits and of its states, given that of its current. Its states are certain before."""
    row = cell.row
    if not cell.current:
        return {name: np.zeros(()) for name in (cell.emission, *(state.output for state in cell.states.values()))}
    total = body_doubts(cell, tensors, doubt)
    found = {cell.states[name].output: total[after] for name, after in row.states}
    if not row.spiking:
        return found | {cell.emission: total[row.outputs[0]]}
    spike = _spike(cell) * ~certain(cell, tensors, total[row.potential])
    for name, after in row.states:
        if name in row.counters:
            found[cell.states[name].output] = spike
        elif name == row.membrane:
            found[cell.states[name].output] = total[after] + spike * _jump(cell, tensors)
    return found | {cell.emission: spike}


def body_doubts(cell: Cell, tensors: Mapping[str, Floats], doubt: Floats) -> Tensors:
    """The doubts of the tensors of a cell's body, as long as no spike is in doubt."""
    given = {name: np.zeros_like(tensors[state.input]) for name, state in cell.states.items()}
    given |= {name: np.zeros_like(value) if name in ADDED else value for name, value in cell.parameters.items()}
    given[cell.row.current] = np.broadcast_to(doubt, tensors[cell.current].shape)
    handed = bodies.magnitudes(cell.row, given)
    scale = cell.scales(tensors, np.abs(tensors[cell.current]))
    return {name: handed[name] + FLOAT32 * scale[name] for name in scale if name not in cell.parameters}


def _spike(cell: Cell) -> Floats:
    """The most by which an emission changes where a spike is in doubt."""
    return np.asarray(cell.parameters["level"].sum(axis=-1) if cell.row.axis == "levels" else 1.0)


def _jump(cell: Cell, tensors: Mapping[str, Floats]) -> Floats:
    """What a spike takes from the membrane, for each unit of the emission."""
    if "v_reset" in cell.parameters:
        found: Floats = cell.values(tensors, np.float64)[cell.row.potential]
        return np.asarray(np.abs(found - cell.parameters["v_reset"]))
    return np.abs(cell.parameters.get("v_sub", np.ones(1)))


def _emitted(cell: Cell, values: Mapping[str, Floats]) -> Tensors:
    states = {cell.states[name].output: values[after] for name, after in cell.row.states}
    return {cell.emission: values[cell.row.outputs[0]], **states}


def _wide(given: Mapping[str, Floats]) -> Tensors:
    return {name: value.astype(np.float64) for name, value in given.items()}


class _Layer:
    """A layer with weights: its core in float16, then its bias in float32."""

    def __init__(self, node: onnx.NodeProto, weight: str, constants: Mapping[str, Floats]) -> None:
        self.output = node.output[0]
        self._place = list(node.input).index(weight)  # a left factor of MatMul may be the weight
        self.input = node.input[1 - self._place]
        self._weight = half(constants[weight])
        self._alpha = float(attribute(node, "alpha", 1.0))
        self._bias = np.zeros(1)
        if len(node.input) > 2 and node.input[2]:
            self._bias = constants[node.input[2]] * float(attribute(node, "beta", 1.0))
            if node.op_type in ("Conv", "ConvTranspose"):
                self._bias = self._bias.reshape(1, -1, *(1 for _ in self._weight.shape[2:]))
        core = helper.make_node(node.op_type, list(node.input[:2]), [self.output])
        core.attribute.extend(a for a in node.attribute if a.name not in ("alpha", "beta"))
        self._op = Op(core)

    def core(self, x: Floats, shake: Shake | None = None) -> tuple[Floats, Floats]:
        """The sums without bias, as float16 holds them, and their own doubt."""
        given = half(x)
        live, odd = given != 0, (given != 0) & (np.abs(np.frexp(given)[0]) != 0.5)
        total = self._alpha * self._sum(given, self._weight)
        size = abs(self._alpha) * self._sum(np.abs(given), np.abs(self._weight))
        if size.max(initial=0.0) > LARGEST:
            raise NoFloat16("a sum of it may be too large for float16")
        terms, rounded = (
            self._sum(mask.astype(np.float64), np.sign(np.abs(self._weight))) if mask.any() else np.zeros(total.shape)
            for mask in (live, odd)
        )
        roundings = np.maximum(terms - 1, 0) + rounded + (self._alpha != 1) * np.sign(terms)
        if shake is not None:
            total = total + shake(UNIT * np.sqrt(roundings / 3) * size)
        found = half(total)
        share = roundings * UNIT
        worst = np.where(share < 1, share / np.maximum(1 - share, UNIT), np.inf)
        own = np.minimum(worst, SURE * np.sqrt(roundings) * UNIT) * size
        return found, own + np.abs(found - total) + LEAST * (terms + roundings) + FLOAT32 * size

    def add(self, total: Floats) -> Floats:
        """The layer's output."""
        return np.asarray(total + self._bias)

    def doubt(self, x: Floats, doubt: Floats, own: Floats, output: Floats) -> Floats:
        """Of the output: another number than ours may have been rounded to float16."""
        carried = np.where(doubt > 0, doubt + 2 * UNIT * np.abs(x) + 2 * LEAST, 0.0)
        through = abs(self._alpha) * self._sum(np.broadcast_to(carried, x.shape), np.abs(self._weight))
        return np.asarray(own + through + FLOAT32 * (np.abs(output) + np.abs(self._bias)) * np.any(self._bias))

    def _sum(self, x: Floats, weight: Floats) -> Floats:
        return self._op(*((weight, x) if self._place == 0 else (x, weight)))[0]
