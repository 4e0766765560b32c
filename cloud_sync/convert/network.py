"""The ANN as the passes see it: a list of layers in order, weights as float32 arrays, shapes of one sample.

Every layer works on each sample by itself; the batch axis is implied. What ONNX spells in several ways (Gemm, MatMul;
Flatten, Reshape; auto_pad) is spelt in one way here. Values are named by strings, each made by exactly one layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Conv:
    """Cross-correlation. weight (O, I/groups, *kernel), bias (O,); pads are all begins, then all ends."""

    weight: Floats
    bias: Floats
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """y = x @ weight + bias. weight (K, N), bias (N,)."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """y = x * scale + shift for each channel, both (C,): BatchNormalization or an arithmetic constant, until folded."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AveragePool:
    """Mean over windows. ``count_padding``: padded positions count as zeros."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    count_padding: bool = False
    ceil: bool = False


@dataclass(frozen=True, slots=True)
class MaxPool:
    """The largest value of each window; what is padded never wins."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    ceil: bool = False


@dataclass(frozen=True, slots=True)
class GlobalAveragePool:
    """Mean over all positions of a channel; the axes stay with size 1."""


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same numbers in the layer's output shape."""


@dataclass(frozen=True, slots=True)
class Sum:
    """Two values of the same shape, added."""


@dataclass(frozen=True, slots=True)
class Concat:
    """Values that differ in their channels only, one behind the other."""


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """y = x * factor for each channel, (C,): costs nothing, since what a spike stands for is folded into weights."""

    factor: Floats


@dataclass(frozen=True, slots=True)
class Relu:
    """min(max(0, x), upper): becomes a neuron."""

    upper: float = math.inf


Operation: TypeAlias = (
    Conv | Dense | Affine | AveragePool | MaxPool | GlobalAveragePool | Reshape | Sum | Concat | Scale | Relu
)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One operation on named values. ``output`` has ``shape`` (one sample) and is named uniquely in its network."""

    name: str
    operation: Operation
    inputs: tuple[str, ...]
    output: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A feed-forward network in topological order: ``input`` of ``input_shape`` → ``output``, scores (classes,).

    ``notes`` say in plain sentences what was left out of the file because it changes no winner.
    """

    input: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    output: str
    notes: tuple[str, ...] = ()

    def producer(self, value: str) -> Layer | None:
        """The layer that makes a value; None for the network's input."""
        return next((layer for layer in self.layers if layer.output == value), None)

    def uses(self, value: str) -> int:
        """How often a value is read, the network's output included."""
        return sum(layer.inputs.count(value) for layer in self.layers) + (value == self.output)

    def shape(self, value: str) -> tuple[int, ...]:
        """The shape of a value, for one sample."""
        made_by = self.producer(value)
        return made_by.shape if made_by else self.input_shape

    def relus(self) -> Iterator[Layer]:
        """The layers that become neurons, in order."""
        return (layer for layer in self.layers if isinstance(layer.operation, Relu))

    def weighted(self) -> Iterator[tuple[Layer, Conv | Dense]]:
        """The layers with weights, in order, each with its operation."""
        return ((layer, layer.operation) for layer in self.layers if isinstance(layer.operation, Conv | Dense))

    @property
    def classes(self) -> int:
        """How many scores the network puts out."""
        return math.prod(self.shape(self.output))

    @property
    def parameters(self) -> int:
        """How many weights and biases it has."""
        return sum(made.weight.size + made.bias.size for _, made in self.weighted())
