"""What a standard ONNX node of a canonical graph becomes in NIR: weights, pools, factors; not neurons."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from cloud_sync.convert.nir.export_cells import Written
from cloud_sync.convert.nir.fields import unfit
from cloud_sync.convert.nir.file import Value
from cloud_sync.convert.nir.pieces import Shape

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One node, the constants by name, and the shapes of what it reads first and makes, of one sample."""

    node: onnx.NodeProto
    constants: Mapping[str, Array]
    before: Shape
    shape: Shape

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute of the node, or its default."""
        return next((helper.get_attribute_value(a) for a in self.node.attribute if a.name == name), default)

    def constant(self, index: int) -> Array | None:
        """The constant that the node reads at this place; None where there is none."""
        names = self.node.input
        return self.constants.get(names[index]) if index < len(names) else None


def gemm(site: Site) -> Written:
    """x·W + b is Affine, without b Linear; NIR's weight is (out, in)."""
    weight, bias = site.constant(1), site.constant(2)
    if weight is None or site.attribute("alpha", 1.0) != 1 or site.attribute("beta", 1.0) != 1:
        unfit("its weights are no constant, or it scales")
    weight = weight if site.attribute("transB", 0) else weight.T
    if bias is None or not bias.any():
        return Written("Linear", {"weight": np.ascontiguousarray(weight)})
    return Written(
        "Affine", {"weight": np.ascontiguousarray(weight), "bias": np.array(np.broadcast_to(bias, site.shape))}
    )


def matmul(site: Site) -> Written:
    """x·W is Linear."""
    weight = site.constant(1)
    if weight is None or weight.ndim != 2 or len(site.before) != 1:
        unfit("it multiplies activations with each other, or more than a vector", "NIR's Linear takes a vector")
    return Written("Linear", {"weight": np.ascontiguousarray(weight.T)})


def convolution(site: Site) -> Written:
    """Conv1d or Conv2d; ones for each channel are SumPool2d."""
    weight, bias = site.constant(1), site.constant(2)
    if weight is None or weight.ndim not in (3, 4):
        unfit("its weights are no constant, or it has more than two axes")
    axes = weight.ndim - 2
    bias = np.zeros(len(weight), np.float32) if bias is None else bias
    strides, dilations = (np.array(site.attribute(name, [1] * axes)) for name in ("strides", "dilations"))
    padding = _padding(site, axes, tuple(strides), tuple(dilations), weight.shape[2:])
    groups = site.attribute("group", 1)
    ones = (weight == 1).all() and not bias.any() and groups == len(weight) == site.before[0]
    if axes == 2 and ones and (dilations == 1).all() and not isinstance(padding, str):
        return Written("SumPool2d", {"kernel_size": np.array(weight.shape[2:]), "stride": strides, "padding": padding})
    fields: dict[str, Value] = {
        "input_shape": _sized(np.array(site.before[1:])),
        "weight": weight,
        "bias": bias,
        "stride": _sized(strides),
        "padding": padding if isinstance(padding, str) else _sized(padding),
        "dilation": _sized(dilations),
        "groups": np.array(groups),
    }
    return Written(f"Conv{axes}d", fields)


def average_pool(site: Site) -> Written:
    """AvgPool2d counts padded zeros and rounds down."""
    if len(site.before) != 3 or site.attribute("ceil_mode", 0):
        unfit("NIR's AvgPool2d has two axes and rounds its size down")
    kernel = np.array(site.attribute("kernel_shape", None))
    strides = np.array(site.attribute("strides", [1, 1]))
    padding = _padding(site, 2, tuple(strides), (1, 1), tuple(kernel))
    if isinstance(padding, str) or (padding.any() and not site.attribute("count_include_pad", 0)):
        unfit("NIR's AvgPool2d counts its padding as zeros", "padded evenly on all sides")
    return Written("AvgPool2d", {"kernel_size": kernel, "stride": strides, "padding": padding})


def global_pool(site: Site) -> Written:
    """A mean over everything is an AvgPool2d as large as its input."""
    if len(site.before) != 3:
        unfit("NIR pools over two axes only")
    kernel = np.array(site.before[1:])
    return Written("AvgPool2d", {"kernel_size": kernel, "stride": kernel, "padding": np.zeros(2, np.int64)})


def flat(site: Site) -> Written:
    """Flatten, and a Reshape to one axis."""
    if site.shape != (math.prod(site.before),):
        unfit(f"it makes {list(site.shape)} of {list(site.before)}", "NIR can only flatten")
    fields: dict[str, Value] = {
        "input_type": np.array(site.before),
        "start_dim": np.array(0),
        "end_dim": np.array(-1),
    }
    return Written("Flatten", fields)


def factor(site: Site) -> Written:
    """A product with a constant is Scale."""
    found = [site.constants[name] for name in site.node.input if name in site.constants]
    if len(found) != 1:
        unfit("it multiplies activations with each other", "NIR scales by constants")
    return Written("Scale", {"scale": _element_wise(found[0], site.shape)})


def divisor(site: Site) -> Written:
    """A division by a constant is Scale."""
    value = site.constant(1)
    if value is None:
        unfit("it divides by an activation", "NIR scales by constants")
    return Written("Scale", {"scale": 1 / _element_wise(value, site.shape).astype(np.float64)})


def _element_wise(value: Array, shape: Shape) -> Array:
    own = value.reshape(value.shape[1:]) if value.ndim == len(shape) + 1 else value
    return np.array(np.broadcast_to(own, shape))


def _sized(values: Array) -> Array:
    """NIR writes one number for one axis."""
    return values.reshape(()) if values.size == 1 else values


def _padding(site: Site, axes: int, strides: Shape, dilations: Shape, kernel: Shape) -> Array | str:
    if site.attribute("auto_pad", b"NOTSET") not in (b"NOTSET", b""):
        unfit("it pads by itself", "write its padding as numbers")
    pads = list(site.attribute("pads", [0] * 2 * axes))
    begins, ends = pads[:axes], pads[axes:]
    if begins == ends:
        return np.array(begins)
    total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    if set(strides) != {1} or begins != [n // 2 for n in total] or ends != [n - n // 2 for n in total]:
        unfit(f"it pads by {begins} before and {ends} behind", "NIR pads evenly")
    return "same"


STANDARD: dict[str, Callable[[Site], Written]] = {
    "AveragePool": average_pool,
    "Conv": convolution,
    "Div": divisor,
    "Flatten": flat,
    "Gemm": gemm,
    "GlobalAveragePool": global_pool,
    "MatMul": matmul,
    "Mul": factor,
    "Reshape": flat,
}
