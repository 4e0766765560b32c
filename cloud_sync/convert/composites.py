"""ONNX operators that become several layers, each the same function as the operator.

LeakyRelu and PRelu are exact as ``a·x + (1 - a)·relu(x)``: a neuron beside a straight line. The line carries currents
and not spikes, so the layer behind multiplies instead of adding; reports count that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloud_sync.convert.network import Floats, GlobalAveragePool, Layer, Relu, Reshape, Scale, Sum
from cloud_sync.convert.operators import NodeView, NotSupportedError


@dataclass(frozen=True, slots=True)
class Naming:
    """What the node is called and which value its last layer must make."""

    node: str
    output: str

    def inner(self, part: str) -> str:
        """The name of a value between the layers of one node."""
        return f"{self.output}/{part}"


def _leaky_relu(node: NodeView, naming: Naming) -> list[Layer]:
    shape = node.sample_shape()
    slope = np.full(shape[0], float(node.attributes.get("alpha", 0.01)))
    return _leaky(node.inputs[0], shape, slope, naming)


def _prelu(node: NodeView, naming: Naming) -> list[Layer]:
    shape = node.sample_shape()
    slope = node.weights(1, "slope").astype(np.float64)
    aligned = (1,) * (len(shape) - slope.ndim) + slope.shape
    if slope.ndim > len(shape) or any(size != 1 for size in aligned[1:]):
        raise NotSupportedError(f"its slope has shape {slope.shape}", "one number a channel at most")
    return _leaky(node.inputs[0], shape, np.array(np.broadcast_to(slope.ravel(), (shape[0],))), naming)


def _leaky(value: str, shape: tuple[int, ...], slope: NDArray[np.float64], naming: Naming) -> list[Layer]:
    bent, line, scaled = (naming.inner(part) for part in ("relu", "line", "bent"))
    return [
        Layer(naming.node, Relu(), (value,), bent, shape),
        Layer(naming.node, Scale(_single(slope)), (value,), line, shape),
        Layer(naming.node, Scale(_single(1 - slope)), (bent,), scaled, shape),
        Layer(naming.node, Sum(), (line, scaled), naming.output, shape),
    ]


def _reduce_mean(node: NodeView, naming: Naming) -> list[Layer]:
    """The mean over all positions, as exporters write global average pooling."""
    given = node.arguments[1] if len(node.arguments) > 1 else node.attributes.get("axes")
    shape = node.shapes[0] or ()
    axes = sorted(int(axis) % len(shape) for axis in np.ravel(given)) if given is not None and shape else []
    if not axes or axes != list(range(2, len(shape))):
        raise NotSupportedError("it does not average over all positions of a channel", "axes 2 and up, and all of them")
    pooled = (shape[1], *(1,) * (len(shape) - 2))
    pool = Layer(naming.node, GlobalAveragePool(), node.inputs, naming.inner("pooled"), pooled)
    return [pool, Layer(naming.node, Reshape(), (pool.output,), naming.output, node.sample_shape())]


def _single(values: NDArray[np.float64]) -> Floats:
    return values.astype(np.float32)


COMPOSITES: Mapping[str, Callable[[NodeView, Naming], list[Layer]]] = {
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "ReduceMean": _reduce_mean,
}
