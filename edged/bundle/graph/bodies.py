"""Computes the bodies of ``edged.snn`` in NumPy: their values, the magnitudes behind them, and what they compare.

Golden data needs all three. The values follow the table itself, so they prove nothing about it; what tests compare with
is written independently of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.bundle.graph.neurons import BodyNode, Neuron

Floats = NDArray[Any]
Compute = Callable[..., Floats]
COMPARISONS = ("Greater", "GreaterOrEqual", "Less")

_VALUES: dict[str, Compute] = {
    "Abs": np.abs,
    "Add": np.add,
    "And": np.logical_and,
    "Concat": lambda *parts: np.concatenate(parts, axis=1),
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Identity": lambda x: x,
    "Less": np.less,
    "Mul": np.multiply,
    "ReduceSum": lambda x, axes: x.sum(axis=int(axes[0])),
    "Sign": np.sign,
    "Slice": lambda x, starts, ends, _: x[:, int(starts[0]) : int(ends[0])],  # along axis 1
    "Sub": np.subtract,
    "Unsqueeze": lambda x, axes: np.expand_dims(x, int(axes[0])),
    "Where": np.where,
}  # fmt: skip
_MAGNITUDES: dict[str, Compute] = _VALUES | {
    "Sub": np.add,  # |a - b| <= |a| + |b|
    "Where": lambda _, a, b: a + b,
}
_AT_MOST_ONE = ("Cast", "Sign")


@dataclass(frozen=True)
class Comparison:
    """One comparison of a body: ``left`` with ``right``, elementwise; both in the dtype of the values."""

    left: Floats
    right: Floats


def values(row: Neuron, given: Mapping[str, Floats]) -> dict[str, Floats]:
    """Every tensor of a body, in the dtype of what is given."""
    dtype = next(iter(given.values())).dtype
    found = dict(given)
    for node in row.body:
        if node.op == "Constant":
            found[node.output] = _constant(node, dtype)
        elif node.op == "Cast":
            found[node.output] = found[node.inputs[0]].astype(dtype)
        else:
            found[node.output] = np.asarray(_VALUES[node.op](*(found[name] for name in node.inputs)))
    return found


def magnitudes(row: Neuron, given: Mapping[str, Floats]) -> dict[str, Floats]:
    """Every tensor of a body as the sum of the magnitudes it was computed from, in float64; θ counts in the potential.

    ``given`` are magnitudes or values of either sign.
    """
    found = {name: np.abs(value.astype(np.float64)) for name, value in given.items()}
    if row.potential in given:
        found[row.potential] = _with_thresholds(row, found)
    for node in row.body:
        if node.op in _AT_MOST_ONE:
            found[node.output] = np.ones(1)
        elif node.op == "Constant":
            found[node.output] = _constant(node, np.dtype(np.float64))
        elif node.op not in (*COMPARISONS, "And"):
            inputs = [found.get(name, np.ones(1)) for name in node.inputs]
            found[node.output] = np.asarray(_MAGNITUDES[node.op](*inputs))
        if node.output == row.potential:
            found[node.output] = _with_thresholds(row, found)
    return found


def comparisons(row: Neuron, found: Mapping[str, Floats]) -> Iterator[Comparison]:
    """What a body compares, given all its values; not what compares a state of whole numbers, which is exact."""
    for node in row.body:
        if node.op in COMPARISONS and node.inputs[0] not in row.counters:
            yield Comparison(found[node.inputs[0]], found[node.inputs[1]])


def _with_thresholds(row: Neuron, found: Mapping[str, Floats]) -> Floats:
    """The magnitude of the potential and of what it is compared with."""
    total = found[row.potential]
    for node in row.body:
        if node.op in COMPARISONS and node.inputs[1] in row.parameters:
            threshold = found[node.inputs[1]]
            total = total + (threshold.max(axis=-1) if row.axis == "levels" else threshold)
    return total


def _constant(node: BodyNode, dtype: np.dtype[Any]) -> Floats:
    return np.asarray(node.value, dtype=dtype if isinstance(node.value, float) else np.int64)
