"""The standard ops that a canonical graph may use, each with the rule that keeps samples of a batch apart.

Axis 0 of every activation is the batch; window plans fold time into it. An op that reduces, reshapes, permutes or
broadcasts over axis 0 would mix samples and steps, so each op here says what makes it safe. An op that is not here is
refused. Whether shapes fit is the business of ONNX's own shape inference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper


@dataclass(frozen=True)
class Site:
    """One node with what is known around it. ``shapes`` are whole shapes of activations (axis 0 is written as 0)."""

    node: onnx.NodeProto
    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, NDArray[Any]]

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or the default."""
        found = [helper.get_attribute_value(a) for a in self.node.attribute if a.name == name]
        return found[0] if found else default

    def rank(self, index: int = 0) -> int:
        """The rank of an input that is an activation."""
        return len(self.shapes[self.node.input[index]])

    def activation(self, index: int) -> bool:
        """Whether an input is present and computed from the frame or a state."""
        return index < len(self.node.input) and self.node.input[index] in self.shapes

    def constant(self, index: int) -> NDArray[Any] | None:
        """An input that is an initializer; None where it is absent or an activation."""
        return self.constants.get(self.node.input[index]) if index < len(self.node.input) else None


Rule = Callable[[Site], str]  # what is wrong, or an empty string


def _constants_from(site: Site, first: int) -> str:
    loose = [name for name in site.node.input[first:] if name and name not in site.constants]
    return f"input {loose[0]!r} must be an initializer" if loose else ""


def _anything(site: Site) -> str:
    return "" if site.activation(0) else "its first input must be an activation"


def _broadcast(site: Site) -> str:
    ranks = {len(site.shapes[name]) for name in site.node.input if name in site.shapes}
    if len(ranks) != 1:
        return "its activations must have the same rank, or the batch axes do not meet"
    rank = ranks.pop()
    for name in site.node.input:
        value = site.constants.get(name)
        if value is not None and (value.ndim > rank or (value.ndim == rank and value.shape[0] != 1)):
            return f"initializer {name!r} of shape {value.shape} reaches over the batch axis; it must be [1, …]"
    return ""


def _weighted(site: Site) -> str:
    return _anything(site) or _constants_from(site, 1)


def _gemm(site: Site) -> str:
    bias = site.constant(2)
    if site.attribute("transA", 0):
        return "transA moves the batch axis"
    if bias is not None and bias.ndim == 2 and bias.shape[0] != 1:
        return "its bias reaches over the batch axis; it must be [N] or [1, N]"
    return _weighted(site)


def _matmul(site: Site) -> str:
    left, right = site.constant(0), site.constant(1)
    if right is not None:
        return "" if right.ndim == 2 else "its weights must have rank 2"
    if left is not None:
        return "" if left.ndim == 2 and site.rank(1) >= 3 else "weights on the left need rank 2 and an input of rank 3"
    return "" if site.rank(0) == site.rank(1) >= 3 else "two activations need the same rank, at least 3"


def _pool(site: Site) -> str:
    return "more than one output" if len(site.node.output) > 1 else _anything(site)


def _reshape(site: Site) -> str:
    shape = site.constant(1)
    if shape is None:
        return "its shape must be an initializer"
    if site.attribute("allowzero", 0) or shape.ndim != 1 or shape.size < 1 or shape[0] != 0:
        return "its shape must begin with 0, which keeps the batch axis ([1, -1] mixes samples)"
    return _anything(site)


def _flatten(site: Site) -> str:
    return "" if site.attribute("axis", 1) == 1 else "axis must be 1, which keeps the batch axis"


def _transpose(site: Site) -> str:
    perm = site.attribute("perm")
    return "" if perm and perm[0] == 0 else "perm must begin with 0, which keeps the batch axis"


def _own_axes(axes: Any, rank: int) -> str:
    if axes is None or np.size(axes) == 0:
        return "its axes must be written out; without them the batch axis is included"
    normal = [int(axis) + rank if axis < 0 else int(axis) for axis in np.ravel(axes)]
    return "" if all(0 < axis < rank for axis in normal) else f"axes {normal} must leave out 0, the batch axis"


def _axis(default: int | None) -> Rule:
    def rule(site: Site) -> str:
        if not site.activation(0):
            return "its first input must be an activation"
        axis = site.attribute("axis", default)
        return _own_axes(None if axis is None else [axis], site.rank())

    return rule


def _normalization(site: Site) -> str:
    for index in (1, 2):
        value = site.constant(index)
        if value is not None and value.ndim >= site.rank():
            return "its scale and bias must not reach over the batch axis"
    return _axis(-1)(site) or _constants_from(site, 1) or _pool(site)


def _reduce(site: Site) -> str:
    axes = site.attribute("axes") if len(site.node.input) < 2 else site.constant(1)
    return _weighted(site) or _own_axes(axes, site.rank())


def _axes_input(index: int) -> Rule:
    def rule(site: Site) -> str:
        return _weighted(site) or _own_axes(site.constant(index), site.rank())

    return rule


def _unsqueeze(site: Site) -> str:
    axes = site.constant(1)
    return _weighted(site) or _own_axes(axes, site.rank() + np.size(axes if axes is not None else []))


def _split(site: Site) -> str:
    return _axis(0)(site) or _constants_from(site, 1)


def _pad(site: Site) -> str:
    pads = site.constant(1)
    if pads is None or pads.size != 2 * site.rank():
        return "its pads must be an initializer with two numbers an axis"
    return "" if pads[0] == 0 == pads[site.rank()] else "it pads the batch axis"


_UNARY = ("Abs", "Ceil", "Erf", "Exp", "Floor", "Identity", "LeakyRelu", "Neg", "Reciprocal", "Relu", "Sigmoid", "Sqrt",
    "Tanh")  # fmt: skip
_BINARY = ("Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub")
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")

RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, _anything),
    **dict.fromkeys(_BINARY, _broadcast),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(("Conv", "ConvTranspose", "Clip"), _weighted),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceSum"), _reduce),
    "Concat": _axis(None),
    "Flatten": _flatten,
    "Gemm": _gemm,
    "LayerNormalization": _normalization,
    "MatMul": _matmul,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _axes_input(3),
    "Softmax": _axis(-1),
    "Split": _split,
    "Squeeze": _axes_input(1),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
