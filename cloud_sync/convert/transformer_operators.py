"""One function for each ONNX operator of a vision transformer: its node → an ``Operation``, or a reason why not.

Adding an operator is adding a function and its row in ``OPERATORS``. Nothing here knows about spikes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud_sync.convert.network import Conv, Dense, Floats
from cloud_sync.convert.operators import NotSupportedError
from cloud_sync.convert.transformer_graph import (
    Arithmetic,
    Cut,
    Gelu,
    Join,
    Mean,
    Norm,
    Operand,
    Operation,
    Permute,
    Product,
    Rearrange,
    Shape,
    Softmax,
    Unary,
)

Made = tuple[Operation, tuple[Operand, ...]]
_FUSED = "export the network with opset 18, which writes attention out as MatMul, Softmax and MatMul"
REASONS: Mapping[str, tuple[str, str]] = {
    "Attention": ("attention in one node is not read", _FUSED),
    "MultiHeadAttention": ("attention in one node is not read", _FUSED),
    "GroupQueryAttention": ("attention in one node is not read", _FUSED),
    "Einsum": ("products written as Einsum are not read", "write them with @ (MatMul)"),
    "Where": ("it chooses by a mask that depends on the input", "masked attention has no spiking form here"),
    "If": ("control flow depends on the input", "export the branch that is taken"),
    "Loop": ("control flow depends on the input", "export the loop unrolled"),
    "Scan": ("it recurs over time", "the converter takes feed-forward networks"),
    "TopK": ("it drops tokens by their rank", "token pruning has no spiking form here"),
}


@dataclass(frozen=True, slots=True)
class Site:
    """A node with its surroundings: names of activations or constants, whole shapes of inputs and outputs."""

    inputs: tuple[Operand, ...]
    attributes: Mapping[str, Any]
    shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]

    @property
    def rank(self) -> int:
        """The rank of the first input."""
        return len(self.shapes[0])

    def value(self, position: int = 0) -> str:
        """An input that must be an activation."""
        found = self.inputs[position]
        if not isinstance(found, str):
            raise NotSupportedError("its first input is a constant", "fold constants before the conversion")
        return found

    def constant(self, position: int, what: str) -> NDArray[Any]:
        """An input that must be a constant."""
        found = self.inputs[position] if position < len(self.inputs) else None
        if found is None or isinstance(found, str):
            raise NotSupportedError(f"its {what} is not a constant")
        return found

    def weights(self, position: int, what: str) -> Floats:
        """A constant of finite numbers."""
        return _finite(self.constant(position, what), what)

    def numbers(self, name: str, position: int, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """Integers that are an attribute in older opsets and an input in newer ones."""
        if name in self.attributes:
            return tuple(int(number) for number in np.ravel(self.attributes[name]))
        if position < len(self.inputs) and np.size(self.inputs[position] if position < len(self.inputs) else ()):
            return tuple(int(number) for number in np.ravel(self.constant(position, name)))
        if default is None:
            raise NotSupportedError(f"it has no {name}")
        return tuple(default)

    def from_end(self, axis: int) -> int:
        """An axis of the first input, counted from the end."""
        return axis if axis < 0 else axis - self.rank


def _finite(array: NDArray[Any], what: str) -> Floats:
    floats = np.asarray(array, np.float32)
    if not np.isfinite(floats).all():
        raise NotSupportedError(
            f"its {what} holds a number that is not finite", "masked attention has no spiking form here"
        )
    return floats


def _conv(site: Site) -> list[Made]:
    weight = site.weights(1, "weight")
    axes = weight.ndim - 2
    if site.shapes[0][0] != 1:
        raise NotSupportedError(f"its input has shape {site.shapes[0]} for one sample", "axis 0 must be the batch")
    if site.attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise NotSupportedError("it has auto_pad", "give its pads in numbers")
    bias = site.weights(2, "bias") if len(site.inputs) > 2 else np.zeros(len(weight), np.float32)
    strides, dilations = (site.numbers(name, 99, (1,) * axes) for name in ("strides", "dilations"))
    pads = site.numbers("pads", 99, (0,) * (2 * axes))
    return [(Conv(weight, bias, strides, pads, dilations, int(site.attributes.get("group", 1))), (site.value(),))]


def _gemm(site: Site) -> list[Made]:
    if site.attributes.get("transA", 0):
        raise NotSupportedError("transA = 1 is not supported", "transpose the input before it")
    weight = site.weights(1, "weight") * np.float32(site.attributes.get("alpha", 1.0))
    weight = np.ascontiguousarray(weight.T if site.attributes.get("transB", 0) else weight)
    bias = np.zeros(weight.shape[1], np.float32)
    if len(site.inputs) > 2:
        given = site.weights(2, "bias") * np.float32(site.attributes.get("beta", 1.0))
        if given.size not in (1, bias.size):
            raise NotSupportedError(f"its bias has shape {given.shape}", f"({bias.size},) is supported")
        bias = bias + given.ravel()
    return [(Dense(weight, bias), (site.value(),))]


def _matmul(site: Site) -> list[Made]:
    left, right = site.inputs
    if isinstance(left, str) and isinstance(right, str):
        if min(len(shape) for shape in site.shapes) < 2:
            raise NotSupportedError(f"it multiplies {site.shapes[0]} by {site.shapes[1]}", "both need two axes")
        return [(Product(), (left, right))]
    weight = site.weights(1, "weight") if isinstance(left, str) else None
    if weight is None or weight.ndim != 2 or site.rank < 2:
        raise NotSupportedError("its weights are not a matrix on the right", "only (…, K) by (K, N)")
    return [(Dense(weight, np.zeros(weight.shape[1], np.float32)), (site.value(),))]


def _arithmetic(op: str) -> Callable[[Site], list[Made]]:
    def read(site: Site) -> list[Made]:
        operands = tuple(value if isinstance(value, str) else _finite(value, "constant") for value in site.inputs)
        if op == "Pow" and isinstance(operands[1], str):
            raise NotSupportedError("its exponent is not a constant")
        return [(Arithmetic(op), operands)]  # type: ignore[arg-type]  # the table below gives the five names only

    return read


def _rearrange(site: Site) -> list[Made]:
    if math.prod(site.shapes[0]) != math.prod(site.output_shapes[0]):
        raise NotSupportedError(f"it turns {site.shapes[0]} into {site.output_shapes[0]}")
    return [(Rearrange(), (site.value(),))]


def _transpose(site: Site) -> list[Made]:
    order = site.numbers("perm", 99, range(site.rank)[::-1])
    return [(Permute(order), (site.value(),))]


def _gather(site: Site) -> list[Made]:
    index = site.constant(1, "index")
    axis = site.from_end(int(site.attributes.get("axis", 0)))
    size = site.shapes[0][axis]
    picked = np.where(index < 0, index + size, index).ravel()
    if picked.size == 0 or (np.diff(picked) != 1).any():
        raise NotSupportedError("it picks entries that are not neighbours", "use slices")
    return [(Cut(axis, int(picked[0]), int(picked[-1]) + 1), (site.value(),))]


def _slice(site: Site) -> list[Made]:
    starts, ends = site.numbers("starts", 1), site.numbers("ends", 2)
    axes, steps = site.numbers("axes", 3, range(len(starts))), site.numbers("steps", 4, (1,) * len(starts))
    cuts = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = site.shapes[0][axis]
        if step < 1:
            raise NotSupportedError("it slices backwards")
        begin, stop, _ = slice(start, end).indices(size)
        if (begin, stop, step) != (0, size, 1):
            cuts.append(Cut(site.from_end(axis), begin, stop, step))
    if len(cuts) > 1:
        raise NotSupportedError("it slices several axes at once", "slice one after the other")
    return [(cuts[0] if cuts else Rearrange(), (site.value(),))]


def _split(site: Site) -> list[Made]:
    axis = site.from_end(int(site.attributes.get("axis", 0)))
    ends = np.cumsum([shape[axis] for shape in site.output_shapes])
    return [
        (Cut(axis, int(end) - shape[axis], int(end)), (site.value(),))
        for end, shape in zip(ends, site.output_shapes, strict=True)
    ]


def _concat(site: Site) -> list[Made]:
    values = sum(isinstance(operand, str) for operand in site.inputs)
    if 1 < values < len(site.inputs):
        raise NotSupportedError("it joins several activations and constants", "join the activations first")
    rank = len(site.output_shapes[0])
    axis = int(site.attributes["axis"])
    operands = tuple(value if isinstance(value, str) else _finite(value, "constant") for value in site.inputs)
    return [(Join(axis if axis < 0 else axis - rank), operands)]


def _mean(site: Site) -> list[Made]:
    axes = site.numbers("axes", 1, range(site.rank))
    return [(Mean(tuple(site.from_end(axis) for axis in axes)), (site.value(),))]


def _norm(site: Site) -> list[Made]:
    if len(site.output_shapes) > 1:
        raise NotSupportedError("its mean and deviation are used", "only its first output is supported")
    axis = site.from_end(int(site.attributes.get("axis", -1)))
    scale = site.weights(1, "scale")
    bias = site.weights(2, "bias") if len(site.inputs) > 2 else np.zeros_like(scale)
    return [(Norm(axis, scale, bias, float(site.attributes.get("epsilon", 1e-5))), (site.value(),))]


def _softmax(site: Site) -> list[Made]:
    return [(Softmax(site.from_end(int(site.attributes.get("axis", -1)))), (site.value(),))]


def _gelu(site: Site) -> list[Made]:
    return [(Gelu(site.attributes.get("approximate", b"none") == b"tanh"), (site.value(),))]


def _unary(op: str) -> Callable[[Site], list[Made]]:
    return lambda site: [(Unary(op), (site.value(),))]


OPERATORS: Mapping[str, Callable[[Site], list[Made]]] = {
    **{op: _arithmetic(op) for op in ("Add", "Sub", "Mul", "Div", "Pow")},
    **{op: _unary(op) for op in ("Erf", "Exp", "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Tanh")},
    **dict.fromkeys(("Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"), _rearrange),
    "Concat": _concat,
    "Conv": _conv,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "LayerNormalization": _norm,
    "MatMul": _matmul,
    "ReduceMean": _mean,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Transpose": _transpose,
}
