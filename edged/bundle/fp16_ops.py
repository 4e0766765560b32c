"""Standard ops in float64, and the bound that each puts on the error of its outputs, given that of its inputs.

For ``fp16``, which knows the layers and the neurons. Values are those of ONNX's own reference, but for pools and
convolutions in their usual forms, which it computes number by number. Every rule adds what float32 itself rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edged.bundle.graph.builder import assemble
from edged.bundle.graph.standard import EPSILON, attribute
from edged.errors import BundleError

Floats = NDArray[Any]

FLOAT32 = 16 * float(np.finfo(np.float32).eps)  # for float32's own roundings, as golden data in float32 allow at least


class NoFloat16(BundleError):
    """The model has no form with sums in float16 whose errors are bounded, and why."""


class Op:
    """One standard node in float64, as ONNX's own reference computes it."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self.node = node
        self.inputs = [name for name in node.input if name]
        self.outputs = list(node.output)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(f"given/{k}" if name else "" for k, name in enumerate(node.input))  # a name may come twice
        self._names = [name for name in copy.input if name]
        inputs, outputs = (
            [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in names]
            for names in (self._names, copy.output)
        )
        self._evaluator = ReferenceEvaluator(assemble(helper.make_graph([copy], "op", inputs, outputs)))

    def __call__(self, *given: Floats) -> list[Floats]:
        """All outputs."""
        if _plain(self.node, *_POOLS):
            return [_pooled(self.node, given[0])]
        if _plain(self.node, "Conv"):
            return [_convolved(self.node, *given)]
        return [np.asarray(value) for value in self._evaluator.run(None, dict(zip(self._names, given, strict=True)))]

    def doubt(self, given: list[Floats], doubts: list[Floats]) -> tuple[list[Floats], list[Floats]]:
        """All outputs and their doubts. Raises NoFloat16."""
        rule = _RULES.get(self.node.op_type)
        if rule is None:
            raise NoFloat16(f"no bound is known for the errors of {self.node.op_type}")
        found = self(*given)
        with np.errstate(all="ignore"):  # what has no bound becomes infinite, and is refused
            made = rule(self, given, found, doubts)
        return found, [np.broadcast_to(one, value.shape) for one, value in zip(made, found, strict=False)]


_POOLS = ("AveragePool", "MaxPool")


def _plain(node: onnx.NodeProto, *ops: str) -> bool:
    """Whether nothing is asked for that the reference would have to do."""
    usual = {"auto_pad": b"NOTSET", "ceil_mode": 0, "group": 1}
    gaps = set(attribute(node, "dilations", [1]))
    return node.op_type in ops and gaps == {1} and all(attribute(node, k, v) == v for k, v in usual.items())


def _windows(node: onnx.NodeProto, x: Floats, kernel: tuple[int, ...], fill: float) -> Floats:
    """(B, C, *places, *kernel): what a node with a kernel sees. The reference's own way takes ten times as long."""
    rank = len(kernel)
    pads, strides = attribute(node, "pads", [0] * 2 * rank), attribute(node, "strides", [1] * rank)
    around = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    padded = np.pad(x, around, constant_values=fill)
    found = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=tuple(range(2, 2 + rank)))
    return found[(slice(None), slice(None), *(slice(None, None, stride) for stride in strides))]


def _pooled(node: onnx.NodeProto, x: Floats) -> Floats:
    kernel = tuple(attribute(node, "kernel_shape", ()))
    axes = tuple(range(-len(kernel), 0))
    if node.op_type == "MaxPool":
        return np.asarray(_windows(node, x, kernel, -np.inf).max(axes))
    counted = float(attribute(node, "count_include_pad", 0))
    count = _windows(node, np.ones((1, 1, *x.shape[2:])), kernel, counted).sum(axes)
    return np.asarray(_windows(node, x, kernel, 0.0).sum(axes) / count)


def _convolved(node: onnx.NodeProto, x: Floats, weight: Floats) -> Floats:
    kernel = tuple(range(2, weight.ndim))
    seen = tuple(axis + weight.ndim - 2 for axis in kernel)
    total = np.tensordot(_windows(node, x, weight.shape[2:], 0.0), weight, axes=((1, *seen), (1, *kernel)))
    return np.moveaxis(total, -1, 1)


Rule = Callable[[Op, list[Floats], list[Floats], list[Floats]], list[Floats]]


def _moved(op: Op, given: list[Floats], _: list[Floats], doubts: list[Floats]) -> list[Floats]:
    """What is moved, chosen or a maximum: the op itself on doubts. Nothing rounds."""
    return op(np.broadcast_to(doubts[0], given[0].shape), *given[1:])


def _averaged(op: Op, given: list[Floats], _: list[Floats], doubts: list[Floats]) -> list[Floats]:
    return op(np.broadcast_to(doubts[0], given[0].shape) + FLOAT32 * np.abs(given[0]), *given[1:])


def _padded(op: Op, given: list[Floats], _: list[Floats], doubts: list[Floats]) -> list[Floats]:
    return op(np.broadcast_to(doubts[0], given[0].shape), *given[1:2], *(np.zeros(()) for _ in given[2:3]), *given[3:])


def _joined(op: Op, given: list[Floats], _: list[Floats], doubts: list[Floats]) -> list[Floats]:
    return op(*(np.broadcast_to(doubt, value.shape) for doubt, value in zip(doubts, given, strict=True)))


def _kept(_: Op, __: list[Floats], ___: list[Floats], doubts: list[Floats]) -> list[Floats]:
    return [doubts[0]]


def _summed(op: Op, given: list[Floats], _: list[Floats], doubts: list[Floats]) -> list[Floats]:
    parts = [doubt + FLOAT32 * np.abs(value) for doubt, value in zip(doubts, given, strict=True)]
    total: Floats = parts[0]
    for part in parts[1:]:
        total = total + part
    return [total / (len(parts) if op.node.op_type == "Mean" else 1)]


def _largest(_: Op, __: list[Floats], ___: list[Floats], doubts: list[Floats]) -> list[Floats]:
    total = doubts[0]
    for doubt in doubts[1:]:
        total = np.maximum(total, doubt)
    return [total]


def _product(op: Op, given: list[Floats], _: list[Floats], doubts: list[Floats]) -> list[Floats]:
    times = np.matmul if op.node.op_type == "MatMul" else np.multiply
    a, b = (np.abs(value) for value in given)
    da, db = (np.broadcast_to(doubt, value.shape) for doubt, value in zip(doubts, given, strict=True))
    return [times(a, db) + times(da, b) + times(da, db) + FLOAT32 * times(a, b)]


def _quotient(_: Op, given: list[Floats], found: list[Floats], doubts: list[Floats]) -> list[Floats]:
    least = np.abs(given[1]) - doubts[1]
    return [
        np.where(least > 0, (doubts[0] + np.abs(found[0]) * doubts[1]) / least, np.inf) + FLOAT32 * np.abs(found[0])
    ]


def _monotone(op: Op, given: list[Floats], found: list[Floats], doubts: list[Floats]) -> list[Floats]:
    """A function that only rises or only falls is farthest off at the ends. A square root ends at zero."""
    low, high = given[0] - doubts[0], given[0] + doubts[0]
    if op.node.op_type == "Sqrt":
        low = np.maximum(low, 0.0)
    if op.node.op_type == "Reciprocal":
        low = np.where(np.sign(low) == np.sign(high), low, np.nan)
    ends = [op(end, *given[1:])[0] for end in (low, high)]
    return [np.max([np.abs(end - found[0]) for end in ends], axis=0) + FLOAT32 * np.maximum(np.abs(found[0]), 1.0)]


def _softmax(op: Op, _: list[Floats], found: list[Floats], doubts: list[Floats]) -> list[Floats]:
    """A logarithm of it is off by its own doubt and at most the largest of the others'."""
    doubt = np.broadcast_to(doubts[0], found[0].shape)
    most = doubt.max(axis=int(attribute(op.node, "axis", -1)), keepdims=True)
    return [found[0] * np.expm1(doubt + most + FLOAT32)]


def _layer_norm(op: Op, given: list[Floats], found: list[Floats], doubts: list[Floats]) -> list[Floats]:
    """z = (x - mean)/s. x - mean is off by d = D + mean(D), s by at most the root of the mean of d²."""
    x, axis = given[0], int(attribute(op.node, "axis", -1))
    axes = tuple(range(axis % x.ndim, x.ndim))
    away = x - x.mean(axes, keepdims=True)
    spread = np.sqrt((away * away).mean(axes, keepdims=True) + attribute(op.node, "epsilon", EPSILON))
    doubt = doubts[0] + FLOAT32 * np.abs(x)
    off = doubt + doubt.mean(axes, keepdims=True)
    root = np.sqrt((off * off).mean(axes, keepdims=True))
    normal = np.where(spread > root, (off + np.abs(away / spread) * root) / (spread - root), np.inf)
    return [np.abs(given[1]) * normal + FLOAT32 * (np.abs(found[0]) + (np.abs(given[2]) if len(given) > 2 else 0.0))]


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Flatten", "GlobalMaxPool", "Identity", "MaxPool", "ReduceMax", "Reshape", "Slice", "Split",
                     "Squeeze", "Transpose", "Unsqueeze"), _moved),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"), _averaged),
    **dict.fromkeys(("Abs", "Neg"), _kept),
    **dict.fromkeys(("Add", "Mean", "Sub"), _summed),
    **dict.fromkeys(("Max", "Min"), _largest),
    **dict.fromkeys(("MatMul", "Mul"), _product),
    **dict.fromkeys(("Ceil", "Clip", "Erf", "Exp", "Floor", "LeakyRelu", "Reciprocal", "Relu", "Sigmoid", "Sqrt",
                     "Tanh"), _monotone),
    "Concat": _joined,
    "Div": _quotient,
    "LayerNormalization": _layer_norm,
    "Pad": _padded,
    "Softmax": _softmax,
}  # fmt: skip
