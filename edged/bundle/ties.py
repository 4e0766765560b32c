"""Tie vectors: states with which the model's own step graph meets its thresholds exactly.

With zero input and every neuron far below threshold, nothing spikes and each current is what the biases alone give.
Where at most two numbers make up that current, every engine computes the same bits, whatever its order of summation,
and a state can be chosen so that u is the last number below the threshold, the threshold itself, or the next above.
States are taken only where the result is the same with and without a fused multiply-add.
"""

from __future__ import annotations

from collections.abc import Mapping
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
LOOSE = 99  # a current made of more numbers than two: engines may round it differently
EXACT_TERMS = 2  # one addition, rounded once
REACH = 8  # neighbours of the ideal state that are tried; with |decay| >= 0.1 one of them nearly always fits
_MOVES = {"Flatten", "GlobalMaxPool", "Identity", "MaxPool", "Neg", "Relu", "Reshape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze"}  # fmt: skip


@dataclass(frozen=True)
class Tie:
    """Three rows for one cell: below, equal, above. ``hit`` (3, *shape) marks the neurons that were brought there."""

    state: Floats
    hit: NDArray[np.bool_]


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
    if cell.row.spiking:
        return 0
    bias = int(np.any(cell.parameters.get("bias", 0.0)))
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


def make_tie(cell: Cell, current: Floats, silent: float) -> Tie | None:
    """States for which u is just below, at, and just above the threshold, given the silent current (1, *shape).

    Neurons for which no such state exists stay silent. None when there is none at all.
    """
    shape = (1, *cell.state.shape)
    threshold = np.broadcast_to(cell.parameters["v_th"], shape)
    decay = np.broadcast_to(cell.parameters.get("decay", np.ones(1, dtype=np.float32)), shape)
    drive = np.broadcast_to(current + cell.parameters.get("bias", np.float32(0)), shape).astype(np.float32)
    rows, hits = [], []
    for target in (-1, 0, 1):
        state, hit = _aim(threshold, decay, drive, target)
        rows.append(np.where(hit, state, np.float32(silent)))
        hits.append(hit)
    hit = np.concatenate(hits)
    return Tie(np.concatenate(rows).astype(np.float32), hit) if hit.any() else None


def _aim(threshold: Floats, decay: Floats, drive: Floats, target: int) -> tuple[Floats, NDArray[np.bool_]]:
    """The state whose u lies nearest to the threshold on the asked side: -1 below, 0 equal, 1 above."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ideal = ((threshold.astype(np.float64) - drive) / decay).astype(np.float32)
        best = np.zeros_like(ideal)
        gap = np.full(ideal.shape, np.inf, dtype=np.float64)
        candidate = ideal
        for _ in range(REACH):
            candidate = np.nextafter(candidate, np.float32(-np.inf))
        for _ in range(2 * REACH + 1):
            rounded = candidate * decay + drive
            fused = (candidate.astype(np.float64) * decay + drive).astype(np.float32)
            distance = np.abs(rounded.astype(np.float64) - threshold)
            fits = (rounded == fused) & (np.sign(rounded - threshold) == target) & (distance < gap)
            best, gap = np.where(fits, candidate, best), np.where(fits, distance, gap)
            candidate = np.nextafter(candidate, np.float32(np.inf))
    return best, np.isfinite(gap) & np.isfinite(best)
