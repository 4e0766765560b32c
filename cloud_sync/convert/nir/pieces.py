"""What one NIR node becomes: the weighted, pooling and reshaping nodes. Neurons are in ``cells``.

Everything has its shape without a batch axis, as in NIR. Shapes are computed here: nir 1.0.8 infers those of
convolutions with kernels that are not square, or with groups, wrongly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from cloud_sync.convert.network import AveragePool, Conv, Dense, Floats
from cloud_sync.convert.nir.fields import each, numbers, unfit, whole
from cloud_sync.convert.nir.file import Node

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Weighted:
    """Affine, Linear, Conv1d, Conv2d: synapses."""

    operation: Conv | Dense
    shape: Shape


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """AvgPool2d, SumPool2d. A sum over windows is a convolution with ones, which rounds nothing."""

    operation: Conv | AveragePool
    shape: Shape


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """Scale: every element times its own factor."""

    factor: Floats
    shape: Shape


@dataclass(frozen=True, slots=True)
class Handed:
    """Input, Output, Flatten and the ports of inner graphs: the same numbers in ``shape``."""

    shape: Shape


def affine(node: Node, shape: Shape) -> Weighted:
    """y = W·x + b."""
    weight = numbers(node, "weight")
    if weight.ndim != 2:
        unfit(f"its weight has {weight.ndim} axes", "a matrix; batched matrices have no form here")
    if shape != (weight.shape[1],):
        unfit(f"its weight takes {weight.shape[1]} numbers, what comes in has shape {list(shape)}", "add a Flatten")
    bias = each(node, "bias", weight.shape[:1]) if node.kind == "Affine" else np.zeros(len(weight))
    return Weighted(Dense(_single(weight.T), _single(bias)), weight.shape[:1])


def convolution(node: Node, shape: Shape) -> Weighted:
    """Cross-correlation, as PyTorch's: weight (O, I/groups, *kernel)."""
    axes = 1 if node.kind == "Conv1d" else 2
    weight = numbers(node, "weight")
    if weight.ndim != axes + 2 or not weight.size:
        unfit(f"its weight has shape {list(weight.shape)}", f"(out, in, {'kernel' if axes == 1 else 'height, width'})")
    groups = whole(node, "groups", 1, 1)[0]
    if len(shape) != axes + 1 or shape[0] != weight.shape[1] * groups or len(weight) % groups:
        unfit(f"{groups} groups of weights {list(weight.shape)} do not fit what comes in, {list(shape)}")
    _check_input_shape(node, shape[1:])
    strides, dilations = whole(node, "stride", axes, 1), whole(node, "dilation", axes, 1)
    pads = _pads(node, weight.shape[2:], strides, dilations)
    reach = tuple(d * (k - 1) + 1 for d, k in zip(dilations, weight.shape[2:], strict=True))
    space = _slid(shape[1:], reach, strides, pads)
    operation = Conv(
        _single(weight), _single(each(node, "bias", weight.shape[:1], 0.0)), strides, pads, dilations, groups
    )
    return Weighted(operation, (len(weight), *space))


def _check_input_shape(node: Node, space: Shape) -> None:
    said = node.fields.get("input_shape")
    if said is None or isinstance(said, str):  # None is stored as nothing, or as text
        return
    if tuple(int(size) for size in np.ravel(numbers(node, "input_shape"))) != space:
        unfit(f"it says that its input is {np.ravel(numbers(node, 'input_shape')).tolist()}, it is {list(space)}")


def _pads(node: Node, kernel: Shape, strides: Shape, dilations: Shape) -> Shape:
    said = node.fields.get("padding")
    if not isinstance(said, str):
        return whole(node, "padding", len(kernel)) * 2
    if said == "valid":
        return (0,) * (2 * len(kernel))
    if said != "same":
        unfit(f"padding {said!r}", "'same', 'valid' or numbers")
    if any(stride != 1 for stride in strides):
        unfit("padding 'same' with a stride", "PyTorch knows no such layer; write the padding as numbers")
    total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    return (*(size // 2 for size in total), *(size - size // 2 for size in total))


def pool(node: Node, shape: Shape) -> Pooled:
    """Mean or sum over windows; padded positions count as zeros."""
    if len(shape) != 3:
        unfit(f"what comes in has shape {list(shape)}", "(channels, height, width)")
    kernel, strides = whole(node, "kernel_size", 2, 1), whole(node, "stride", 2, 1)
    pads = whole(node, "padding", 2) * 2
    space = _slid(shape[1:], kernel, strides, pads)
    out = (shape[0], *space)
    if node.kind == "AvgPool2d":
        if any(2 * pad > size for pad, size in zip(pads, kernel, strict=False)):
            unfit("its padding is more than half of its kernel", "PyTorch refuses that")
        return Pooled(AveragePool(kernel, strides, pads, count_padding=True), out)
    ones, zeros = np.ones((shape[0], 1, *kernel), np.float32), np.zeros(shape[0], np.float32)
    return Pooled(Conv(ones, zeros, strides, pads, (1, 1), shape[0]), out)


def flatten(node: Node, shape: Shape) -> Handed:
    """Axes ``start_dim`` to ``end_dim`` become one. NIR has no batch axis, so 0 is the first of the sample."""
    said = node.fields.get("input_type")
    if isinstance(said, np.ndarray) and tuple(int(size) for size in said.ravel()) != shape:
        unfit(f"it says that its input is {said.ravel().tolist()}, it is {list(shape)}")
    start, end = (int(numbers(node, name, default)) for name, default in (("start_dim", 1), ("end_dim", -1)))
    rank = len(shape)
    start, end = start + rank if start < 0 else start, end + rank if end < 0 else end
    if not 0 <= start < rank or not 0 <= end < rank or start > end:
        unfit(f"axes {start} to {end} of {list(shape)} cannot become one", "NIR counts axes without the batch")
    return Handed((*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


def scale(node: Node, shape: Shape) -> Scaled:
    """y = x·s, elementwise."""
    return Scaled(_single(each(node, "scale", shape)), shape)


def handed(_: Node, shape: Shape) -> Handed:
    """A port."""
    return Handed(shape)


def _slid(space: Shape, reach: Shape, strides: Shape, pads: Shape) -> Shape:
    axes = len(space)
    whole_space = [size + pads[k] + pads[k + axes] for k, size in enumerate(space)]
    out = tuple((size - own) // step + 1 for size, own, step in zip(whole_space, reach, strides, strict=True))
    if any(size < 1 for size in out):
        unfit(f"a window of {list(reach)} is larger than what comes in, {whole_space} with its padding")
    return out


def _single(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Floats:
    return np.ascontiguousarray(values, np.float32)
