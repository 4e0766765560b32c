"""Layer → ONNX: the one place where an operation is spelt as a standard node, for the ANN and the spiking graph alike.

In the spiking graph a Relu is a neuron instead: ``spiking`` writes that.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cloud_sync.convert.network import (
    AveragePool,
    Concat,
    Conv,
    Dense,
    GlobalAveragePool,
    Layer,
    MaxPool,
    Relu,
    Reshape,
    Scale,
    Sum,
)
from edged.bundle.graph.builder import StepBuilder


def emit(builder: StepBuilder, layer: Layer, inputs: tuple[str, ...], name: str) -> str:
    """Add one layer under ``name``; returns the tensor that it makes, (B, *layer.shape)."""
    match layer.operation:
        case Conv() as conv:
            return _conv(builder, conv, inputs[0], name)
        case Dense() as dense:
            weight = builder.constant(dense.weight, f"{name}.weight")
            bias = builder.constant(dense.bias, f"{name}.bias")
            return builder.node("Gemm", inputs[0], weight, bias, name=name)
        case AveragePool() | MaxPool() | GlobalAveragePool() as pool:
            return _pool(builder, pool, inputs[0], name)
        case Reshape():
            return _reshape(builder, layer, inputs[0], name)
        case Sum():
            return builder.node("Add", *inputs, name=name)
        case Concat():
            return builder.node("Concat", *inputs, name=name, axis=1)
        case Scale() as scale:
            factor = scale.factor.reshape(1, -1, *(1,) * (len(layer.shape) - 1))
            return builder.node("Mul", inputs[0], builder.constant(factor, f"{name}.factor"), name=name)
        case Relu() as relu:
            return _relu(builder, relu, inputs[0], name)
    raise AssertionError(f"{layer.name}: {type(layer.operation).__name__} must be folded before it is written")


def _relu(builder: StepBuilder, relu: Relu, value: str, name: str) -> str:
    if math.isinf(relu.upper):
        return builder.node("Relu", value, name=name)
    bounds = [builder.constant(bound, f"{name}.{which}") for which, bound in (("low", 0.0), ("up", relu.upper))]
    return builder.node("Clip", value, *bounds, name=name)


def _reshape(builder: StepBuilder, layer: Layer, value: str, name: str) -> str:
    if len(layer.shape) == 1:
        return builder.node("Flatten", value, name=name, axis=1)
    # 0 keeps the batch as it is: a literal 1 would fold wrongly in a window plan.
    shape = builder.constant(np.array([0, *layer.shape], np.int64), f"{name}.shape")
    return builder.node("Reshape", value, shape, name=name)


def _pool(builder: StepBuilder, pool: AveragePool | MaxPool | GlobalAveragePool, value: str, name: str) -> str:
    own: dict[str, Any] = {}
    match pool:
        case GlobalAveragePool():
            return builder.node("GlobalAveragePool", value, name=name)
        case AveragePool():
            own = {"count_include_pad": int(pool.count_padding)}
        case MaxPool():
            own = {"dilations": pool.dilations}
    return builder.node(
        type(pool).__name__,
        value,
        name=name,
        kernel_shape=pool.kernel,
        strides=pool.strides,
        pads=pool.pads,
        ceil_mode=int(pool.ceil),
        **own,
    )


def _conv(builder: StepBuilder, conv: Conv, value: str, name: str) -> str:
    weight = builder.constant(conv.weight, f"{name}.weight")
    bias = builder.constant(conv.bias, f"{name}.bias")
    return builder.node(
        "Conv",
        value,
        weight,
        bias,
        name=name,
        strides=conv.strides,
        pads=conv.pads,
        dilations=conv.dilations,
        group=conv.groups,
    )
