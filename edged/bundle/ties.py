"""Tie vectors: states with which the model's own step graph meets its thresholds exactly.

With zero input and every neuron far from its thresholds, nothing spikes and each current is what the biases alone give.
Where at most two numbers make up that current, every engine computes the same bits, whatever its order of summation,
and a state can be chosen so that u is the last number below the threshold, the threshold itself, or the next above.
States are taken only where the result is the same with and without a fused multiply-add. ``Threshold`` has no state,
so no tie can be made for it; the recorded steps keep clear of its threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edged.bundle.graph.cells import Cell
from edged.bundle.graph.neurons import DOMAIN
from edged.bundle.graph.spec import GraphSpec

Floats = NDArray[Any]
Run = Callable[[Mapping[str, Floats]], dict[str, Floats]]
LOOSE = 99  # a current made of more numbers than two: engines may round it differently
EXACT_TERMS = 2  # one addition, rounded once
REACH = 8  # neighbours of the ideal state that are tried; with |decay| >= 0.1 one of them nearly always fits
EPS = float(np.finfo(np.float32).eps)
SILENT = -4.0  # thresholds below zero at which a neuron starts to be silent
_MOVES = {"Flatten", "GlobalMaxPool", "Identity", "MaxPool", "Neg", "Relu", "Reshape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze"}  # fmt: skip


@dataclass(frozen=True)
class Tie:
    """Three rows for each threshold of a cell: below, equal, above. ``state`` is its membrane state (rows, *shape).

    ``hit`` (rows, *shape) marks the neurons that were brought there; ``others`` (rows,) are further states of the cell
    that must not be silent for it, by tensor name.
    """

    state: Floats
    hit: NDArray[np.bool_]
    others: dict[str, Floats]


def make_ties(model: onnx.ModelProto, spec: GraphSpec, found: list[Cell], seen: Run) -> dict[str, Floats]:
    """The arrays ``tie.*`` of golden data. ``seen`` runs the graph: feeds → inputs, states and all cells' tensors.

    ``tie.silent`` (states,); for the state k of a cell ``tie.k.state``, ``.next``, ``.hit`` (rows, *shape) and
    ``.bound``; ``tie.k.others`` (rows, states) only where other states are not silent.
    """
    terms = terms_when_silent(model, spec, found)
    silent, tensors = _silence(spec, found, seen)
    golden: dict[str, Floats] = {"tie.silent": silent}
    order = {state.input: k for k, state in enumerate(spec.states)}
    quiet = True
    for cell in found:
        if not cell.row.spiking:
            continue
        if quiet and cell.membrane is not None and _is_exact(cell, terms):
            k = order[cell.membrane.input]
            tie = make_tie(cell, tensors, float(silent[k]))
            golden |= _arrays(k, cell, tie, tensors, silent, order) if tie is not None else {}
        quiet = quiet and not tensors[cell.emission].any()
    return golden


def _arrays(
    k: int, cell: Cell, tie: Tie, tensors: Mapping[str, Floats], silent: Floats, order: Mapping[str, int]
) -> dict[str, Floats]:
    assert cell.membrane is not None
    rows = len(tie.state)
    given = {name: np.repeat(value[:1], rows, axis=0) for name, value in tensors.items()}
    others = np.tile(silent, (rows, 1))
    for state, values in tie.others.items():
        others[:, order[state]] = values
        given[state] = np.broadcast_to(values.reshape(-1, *(1,) * (given[state].ndim - 1)), given[state].shape)
    given[cell.membrane.input] = tie.state
    after = dict(cell.row.states)[cell.row.membrane]
    scale = cell.scales(given, given[cell.current] if cell.current else None)[after]
    golden = {
        f"tie.{k}.state": tie.state,
        f"tie.{k}.next": cell.values(given)[after].astype(np.float32),
        f"tie.{k}.bound": np.asarray(8 * EPS * float(scale.max()), dtype=np.float32),
        f"tie.{k}.hit": tie.hit,
    }
    return golden | ({f"tie.{k}.others": others} if tie.others else {})


def _silence(spec: GraphSpec, found: list[Cell], seen: Run) -> tuple[Floats, dict[str, Floats]]:
    """One number for each state with which nothing spikes at zero input, and every tensor of the graph then."""
    silent = np.zeros(len(spec.states), dtype=np.float32)
    lowest = {
        cell.membrane.input: SILENT * float(cell.parameters["v_th"].max())
        for cell in found
        if cell.membrane is not None and "v_th" in cell.parameters
    }
    frames = {entry.name: np.zeros((1, *entry.shape), dtype=np.float32) for entry in spec.inputs}
    for deeper in (1, 4, 16, 64):
        silent[:] = [deeper * lowest.get(state.input, 0.0) for state in spec.states]
        states = {
            s.input: np.full((1, *s.shape), v, dtype=np.float32) for s, v in zip(spec.states, silent, strict=True)
        }
        tensors = seen({**frames, **states})
        if not any(tensors[cell.emission].any() for cell in found if cell.row.spiking):
            break
    return silent, tensors


def _is_exact(cell: Cell, terms: Mapping[str, int]) -> bool:
    """Whether every engine computes the same bits for the cell's drive while nothing spikes."""
    if "c_gain" in cell.parameters:
        return terms[cell.current] == 0  # else products are added, which some engines fuse
    return terms[cell.current] + int(np.any(cell.parameters.get("bias", 0.0))) <= EXACT_TERMS


def terms_when_silent(model: onnx.ModelProto, spec: GraphSpec, found: list[Cell]) -> dict[str, int]:
    """How many non-zero numbers each tensor is the sum of while no neuron spikes and the input is zero."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    zero = {name for name, value in constants.items() if not value.any()}
    terms = {entry.name: 0 for entry in spec.inputs} | {state.input: 0 for state in spec.states}
    by_emission = {cell.emission: cell for cell in found}
    for node in model.graph.node:
        cell = by_emission.get(node.output[0]) if node.domain == DOMAIN else None
        count = _cell_terms(cell, terms) if cell else _node_terms(node, terms, zero)
        terms |= {name: min(count, LOOSE) for name in node.output}
    return terms


def _cell_terms(cell: Cell, terms: Mapping[str, int]) -> int:
    """Of the emission, from zero or silent states."""
    if cell.row.spiking:
        return 0
    if not cell.current:
        return 1  # a clock at its first tick
    bias = int(np.any(cell.parameters.get("bias", 0.0)))
    if "c_gain" in cell.parameters and terms[cell.current]:
        return LOOSE
    return _limited(terms[cell.current] + bias)


def _node_terms(node: onnx.NodeProto, terms: Mapping[str, int], zero: set[str]) -> int:
    counts = [terms[name] for name in node.input if name in terms]
    loaded = sum(name not in terms and bool(name) and name not in zero for name in node.input)
    op = node.op_type
    if op in ("Add", "Sub"):
        return _limited(sum(counts) + loaded)
    if op in _MOVES or op == "Concat":
        return max(counts)
    if op in ("Conv", "ConvTranspose", "Gemm"):
        bias = len(node.input) > 2 and bool(node.input[2]) and node.input[2] not in zero
        return LOOSE if counts[0] else int(bias)
    if op in ("MatMul", "Mul"):
        return LOOSE if min(counts) else 0
    if op in ("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "ReduceMax", "Mean", "Pad", "Abs"):
        return LOOSE if sum(counts) + (loaded if op == "Mean" else 0) else 0
    if op == "Div":
        return LOOSE if terms.get(node.input[0], 1) else 0
    return LOOSE


def _limited(count: int) -> int:
    return count if count <= EXACT_TERMS else LOOSE


def make_tie(cell: Cell, tensors: Mapping[str, Floats], silent: float) -> Tie | None:
    """States for which u is just below, at, and just above each threshold; ``tensors`` hold the silent graph (1, …).

    Neurons for which no such state exists stay silent. None when there is none at all.
    """
    assert cell.membrane is not None
    shape = (1, *cell.shape)
    decay = np.broadcast_to(cell.decay, shape)
    at_rest = {**tensors, cell.membrane.input: np.zeros(shape, dtype=np.float32)}
    drive = np.broadcast_to(cell.values(at_rest)[cell.row.potential], shape).astype(np.float32)
    rows, hits = [], []
    for threshold in _thresholds(cell, shape):
        for target in (-1, 0, 1):
            state, hit = _aim(threshold, decay, drive, target)
            rows.append(np.where(hit, state, np.float32(silent)))
            hits.append(hit)
    hit = np.concatenate(hits)
    if not hit.any():
        return None
    others = {}
    if cell.row.op == "SignedIF":  # below zero it answers only while it owes a spike
        others = {cell.states["e"].input: np.repeat(np.array([0, 1], dtype=np.float32), 3)}
    return Tie(np.concatenate(rows).astype(np.float32), hit, others)


def _thresholds(cell: Cell, shape: tuple[int, ...]) -> list[Floats]:
    """What the potential is compared with, each in ``shape``."""
    if cell.row.axis == "levels":
        fire = cell.parameters["fire"]
        either = (sign * fire[..., k] for k in range(fire.shape[-1]) for sign in (1, -1))
        return [np.broadcast_to(np.asarray(value, dtype=np.float32), shape) for value in either]
    found = [np.broadcast_to(cell.parameters["v_th"], shape)]
    return [*found, np.zeros(shape, dtype=np.float32)] if cell.row.op == "SignedIF" else found


def _aim(threshold: Floats, decay: Floats, drive: Floats, target: int) -> tuple[Floats, NDArray[np.bool_]]:
    """The state whose u lies nearest to the threshold on the asked side: -1 below, 0 equal, 1 above."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ideal = ((threshold.astype(np.float64) - drive) / decay).astype(np.float32)
        best = np.zeros_like(ideal)
        gap = np.full(ideal.shape, np.inf, dtype=np.float64)
        for candidate in _neighbours(ideal):
            rounded = candidate * decay + drive
            fused = (candidate.astype(np.float64) * decay + drive).astype(np.float32)
            distance = np.abs(rounded.astype(np.float64) - threshold)
            fits = (rounded == fused) & (np.sign(rounded - threshold) == target) & (distance < gap)
            best, gap = np.where(fits, candidate, best), np.where(fits, distance, gap)
    return best, np.isfinite(gap) & np.isfinite(best)


def _neighbours(ideal: Floats) -> Iterator[Floats]:
    """The numbers around, from below; around zero the smallest normal ones, for engines that flush others to zero."""
    tiny = np.finfo(np.float32).tiny
    for step in range(-REACH, REACH + 1):
        near = ideal
        for _ in range(abs(step)):
            near = np.nextafter(near, np.float32(np.copysign(np.inf, step)))
        yield np.where((np.abs(near) < tiny) & (near != 0), np.copysign(tiny, near), near).astype(np.float32)
