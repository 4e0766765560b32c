"""One function for each ONNX operator that can be converted: its node → an ``Operation``, or a reason why not.

Adding an operator is adding a function and its row in ``OPERATORS``. Nothing here knows about spikes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud_sync.convert.network import (
    Affine,
    AveragePool,
    Concat,
    Conv,
    Dense,
    Floats,
    GlobalAveragePool,
    MaxPool,
    Operation,
    Relu,
    Reshape,
    Sum,
)


class NotSupportedError(Exception):
    """Why one node cannot be converted; ``load`` adds its name."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node with its surroundings. ``arguments`` has None where the input is an activation or was left out;
    ``shapes`` are those of the inputs, ``output_shape`` that of the first output, all for a batch of one."""

    inputs: tuple[str, ...]
    arguments: tuple[NDArray[Any] | None, ...]
    attributes: Mapping[str, Any]
    shapes: tuple[tuple[int, ...] | None, ...]
    output_shape: tuple[int, ...] | None

    def sample_shape(self) -> tuple[int, ...]:
        """The shape of the output for one sample. Refuses an output without a batch axis of its own."""
        if self.output_shape is None:
            raise NotSupportedError("the shape of its output is not static", "export the network with fixed shapes")
        if self.output_shape[0] != 1 or len(self.output_shape) < 2:
            raise NotSupportedError(f"it turns one sample into shape {self.output_shape}", "axis 0 must stay the batch")
        return self.output_shape[1:]

    def weights(self, position: int, what: str) -> Floats:
        """A mandatory constant of finite numbers."""
        found = self.arguments[position] if position < len(self.arguments) else None
        if found is None:
            raise NotSupportedError(f"its {what} is not a constant")
        array = np.asarray(found, dtype=np.float32)
        if not np.isfinite(array).all():
            raise NotSupportedError(f"its {what} holds a number that is not finite")
        return array

    def optional(self, position: int, what: str, size: int) -> Floats:
        """A constant vector, or zeros where it was left out."""
        if position >= len(self.arguments) or (self.arguments[position] is None and len(self.inputs) == 1):
            return np.zeros(size, np.float32)
        return self.weights(position, what)

    def numbers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """An attribute that is a list of integers."""
        return tuple(int(number) for number in self.attributes.get(name, default))


def _conv(node: NodeView) -> Operation:
    _only_activation(node)
    weight = node.weights(1, "weight")
    kernel = weight.shape[2:]
    axes = len(kernel)
    strides = node.numbers("strides", (1,) * axes)
    dilations = node.numbers("dilations", (1,) * axes)
    groups = int(node.attributes.get("group", 1))
    bias = node.optional(2, "bias", len(weight))
    return Conv(weight, bias, strides, _pads(node, kernel, strides, dilations), dilations, groups)


def _gemm(node: NodeView) -> Operation:
    _only_activation(node)
    if node.attributes.get("transA", 0):
        raise NotSupportedError("transA = 1 mixes the samples of a batch")
    weight = node.weights(1, "weight") * np.float32(node.attributes.get("alpha", 1.0))
    if node.attributes.get("transB", 0):
        weight = weight.T
    size = weight.shape[1]
    bias = node.optional(2, "bias", size) * np.float32(node.attributes.get("beta", 1.0))
    return Dense(np.ascontiguousarray(weight), _vector(bias, size))


def _matmul(node: NodeView) -> Operation:
    if len(node.inputs) == 2:
        raise NotSupportedError("it multiplies two activations", "attention has no form here")
    _only_activation(node)
    weight = node.weights(1, "weight")
    if weight.ndim != 2 or node.shapes[0] is None or len(node.shapes[0]) != 2:
        raise NotSupportedError(f"it multiplies {node.shapes[0]} by {weight.shape}", "only (batch, K) by (K, N)")
    return Dense(weight, np.zeros(weight.shape[1], np.float32))


def _batch_norm(node: NodeView) -> Operation:
    _only_activation(node)
    if node.attributes.get("training_mode", 0):
        raise NotSupportedError("it is in training mode", "export the network in evaluation mode")
    scale, bias, mean, variance = (
        node.weights(position, what).astype(np.float64)
        for position, what in enumerate(("scale", "bias", "mean", "variance"), start=1)
    )
    spread = variance + float(node.attributes.get("epsilon", 1e-5))
    if spread.min() <= 0:
        raise NotSupportedError("a variance is not positive")
    scale = scale / np.sqrt(spread)
    return Affine(scale, bias - mean * scale)


def _add(node: NodeView) -> Operation:
    if len(node.inputs) == 2:
        if node.shapes[0] != node.shapes[1]:
            raise NotSupportedError(f"it broadcasts {node.shapes[0]} against {node.shapes[1]}", "give both one shape")
        return Sum()
    constant = per_channel(node, 0 if node.arguments[0] is not None else 1)
    return Affine(np.ones_like(constant), constant)


def _subtract(node: NodeView) -> Operation:
    if len(node.inputs) == 2:
        raise NotSupportedError("it subtracts two activations", "add them, with the sign in the weights before")
    if node.arguments[0] is not None:
        constant = per_channel(node, 0)
        return Affine(-np.ones_like(constant), constant)
    constant = per_channel(node, 1)
    return Affine(np.ones_like(constant), -constant)


def _multiply(node: NodeView) -> Operation:
    if len(node.inputs) == 2:
        raise NotSupportedError("it multiplies two activations", "gates and attention of that kind have no form here")
    constant = per_channel(node, 0 if node.arguments[0] is not None else 1)
    return Affine(constant, np.zeros_like(constant))


def _divide(node: NodeView) -> Operation:
    if len(node.inputs) == 2 or node.arguments[0] is not None:
        raise NotSupportedError("it divides by an activation")
    constant = per_channel(node, 1)
    if not constant.all():
        raise NotSupportedError("it divides by zero")
    return Affine(1 / constant, np.zeros_like(constant))


def per_channel(node: NodeView, position: int) -> NDArray[np.float64]:
    """A constant that varies along axis 1 at most, for the other input of a binary node: one number a channel (C,)."""
    constant = node.weights(position, "constant")
    shape = node.shapes[1 - position]
    channels = shape[1] if shape else 0
    if not shape or constant.size not in (1, channels) or not _along_channels(constant.shape, shape):
        raise NotSupportedError(
            f"a constant of shape {constant.shape} meets an activation of {shape}", "one number a channel at most"
        )
    return np.array(np.broadcast_to(constant.astype(np.float64).ravel(), (channels,)))


def _clip(node: NodeView) -> Operation:
    low, up = (_bound(node, position, name) for position, name in ((1, "min"), (2, "max")))
    if low != 0:
        raise NotSupportedError(f"it clips at {low}", "a rate cannot be negative: the lower bound must be 0 (ReLU6)")
    if not up > 0:
        raise NotSupportedError(f"it clips to {low}..{up}", "the upper bound must be above 0")
    return Relu(up)


def _bound(node: NodeView, position: int, name: str) -> float:
    """A bound of Clip: an input since opset 11, an attribute before."""
    if position < len(node.arguments) and node.arguments[position] is not None:
        return float(np.asarray(node.arguments[position]).ravel()[0])
    if len(node.inputs) > 1:
        raise NotSupportedError(f"its {name} is not a constant")
    return float(node.attributes.get(name, -math.inf if name == "min" else math.inf))


def _concat(node: NodeView) -> Operation:
    if len(node.inputs) != len(node.arguments):
        raise NotSupportedError("it joins activations with a constant", "only activations can be joined")
    rank = len(node.sample_shape()) + 1
    axis = int(node.attributes["axis"])
    if axis % rank != 1:
        raise NotSupportedError(f"it joins along axis {axis}", "only channels, axis 1, can be joined")
    return Concat()


def _max_pool(node: NodeView) -> Operation:
    kernel = node.numbers("kernel_shape", ())
    ones = (1,) * len(kernel)
    strides, dilations = node.numbers("strides", ones), node.numbers("dilations", ones)
    pads = _pads(node, kernel, strides, dilations)
    return MaxPool(kernel, strides, pads, dilations, bool(node.attributes.get("ceil_mode")))


def _global_max_pool(node: NodeView) -> Operation:
    kernel = (node.shapes[0] or ())[2:]
    ones = (1,) * len(kernel)
    return MaxPool(kernel, ones, (0,) * (2 * len(kernel)), ones)


def _average_pool(node: NodeView) -> Operation:
    kernel = node.numbers("kernel_shape", ())
    strides = node.numbers("strides", (1,) * len(kernel))
    if any(size != 1 for size in node.numbers("dilations", ())):
        raise NotSupportedError("it is dilated")
    pads = _pads(node, kernel, strides, (1,) * len(kernel))
    attributes = node.attributes
    return AveragePool(
        kernel, strides, pads, bool(attributes.get("count_include_pad")), bool(attributes.get("ceil_mode"))
    )


def _reshape(node: NodeView) -> Operation:
    if len(node.arguments) > 1 and node.arguments[1] is None:
        raise NotSupportedError("its shape is computed at run time", "export the network with fixed shapes")
    if math.prod(node.sample_shape()) != math.prod((node.shapes[0] or (0,))[1:]):
        raise NotSupportedError("it mixes the samples of a batch")
    return Reshape()


def _only_activation(node: NodeView) -> None:
    """Refuse a node whose data input is a constant: there is nothing to convert."""
    if node.arguments[0] is not None:
        raise NotSupportedError("its first input is a constant", "fold constants before the conversion")


def _vector(values: Floats, size: int) -> Floats:
    flat = values.ravel()
    if flat.size not in (1, size):
        raise NotSupportedError(f"its bias has shape {values.shape}", f"({size},) is supported")
    return np.array(np.broadcast_to(flat, (size,)))


def _along_channels(constant: tuple[int, ...], activation: tuple[int, ...]) -> bool:
    """Whether a constant that broadcasts against an activation varies along axis 1 only."""
    aligned = (1,) * (len(activation) - len(constant)) + constant
    return len(aligned) == len(activation) and all(size == 1 for axis, size in enumerate(aligned) if axis != 1)


def _pads(
    node: NodeView, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[int, ...]:
    """Explicit pads, all begins then all ends; SAME is worked out from the shapes, as ONNX defines it."""
    mode = node.attributes.get("auto_pad", b"NOTSET").decode()
    if mode == "NOTSET":
        return node.numbers("pads", (0,) * (2 * len(kernel)))
    if mode == "VALID":
        return (0,) * (2 * len(kernel))
    if node.shapes[0] is None or node.output_shape is None:
        raise NotSupportedError("auto_pad needs static shapes")
    spans = zip(node.shapes[0][2:], node.output_shape[2:], kernel, strides, dilations, strict=True)
    totals = [max(0, (out - 1) * step + (size - 1) * gap + 1 - length) for length, out, size, step, gap in spans]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (*small, *large) if mode == "SAME_UPPER" else (*large, *small)


OPERATORS: Mapping[str, Callable[[NodeView], Operation]] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _divide,
    "Flatten": _reshape,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _: GlobalAveragePool(),
    "GlobalMaxPool": _global_max_pool,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _multiply,
    "Relu": lambda _: Relu(),
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Sub": _subtract,
    "Unsqueeze": _reshape,
}
