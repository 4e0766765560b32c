"""Layer → ONNX: the one place where an operation is spelt as a standard node, for the ANN and the spiking graph alike.

In the spiking graph a Relu is a neuron instead: ``spiking`` writes that.
"""

from __future__ import annotations

import numpy as np

from cloud_sync.convert.network import AveragePool, Conv, Dense, GlobalAveragePool, Layer, Relu, Reshape, Sum
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
        case AveragePool() as pool:
            return builder.node(
                "AveragePool",
                inputs[0],
                name=name,
                kernel_shape=pool.kernel,
                strides=pool.strides,
                pads=pool.pads,
                count_include_pad=int(pool.count_padding),
                ceil_mode=int(pool.ceil),
            )
        case GlobalAveragePool():
            return builder.node("GlobalAveragePool", inputs[0], name=name)
        case Reshape() if len(layer.shape) == 1:
            return builder.node("Flatten", inputs[0], name=name, axis=1)
        case Reshape():
            # 0 keeps the batch as it is: a literal 1 would fold wrongly in a window plan.
            shape = builder.constant(np.array([0, *layer.shape], np.int64), f"{name}.shape")
            return builder.node("Reshape", inputs[0], shape, name=name)
        case Sum():
            return builder.node("Add", *inputs, name=name)
        case Relu():
            return builder.node("Relu", inputs[0], name=name)
    raise AssertionError(f"{layer.name}: {type(layer.operation).__name__} must be folded before it is written")


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
