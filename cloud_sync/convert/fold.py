"""Pass 2: fold every ``Affine`` (BatchNormalization, added constants) into the weights before it.

Exact up to float32 rounding: the products are taken in float64. An Affine that follows no Conv or Dense of its own (a
value that is used twice, a pre-activation block) becomes a 1x1 depthwise Conv, which is the same function.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cloud_sync.convert.errors import Refusal, RefusedNodesError
from cloud_sync.convert.network import Affine, Conv, Dense, Layer, Network


def fold(network: Network) -> Network:
    """The same function without Affine layers. Raises RefusedNodesError where one cannot be folded."""
    layers: list[Layer] = []
    refusals: list[Refusal] = []
    for layer in network.layers:
        if not isinstance(layer.operation, Affine):
            layers.append(layer)
            continue
        source = layer.inputs[0]
        before = next((index for index, made in enumerate(layers) if made.output == source), None)
        weighted = None if before is None else _weighted(layers[before].operation, layer.operation)
        if before is not None and weighted is not None and network.uses(source) == 1:
            layers[before] = replace(layers[before], operation=weighted, output=layer.output)
        elif len(layer.shape) > 1:
            layers.append(replace(layer, operation=_depthwise(layer.operation, len(layer.shape) - 1)))
        else:
            reason = "it follows no Conv, Gemm or MatMul of its own"
            refusals.append(Refusal(layer.name, "BatchNormalization or Add", reason, "place it right behind one"))
    if refusals:
        raise RefusedNodesError("the ANN", refusals)
    return replace(network, layers=tuple(layers))


def _weighted(operation: object, affine: Affine) -> Conv | Dense | None:
    """The operation followed by the affine, as one; None when it has no weights."""
    if not isinstance(operation, Conv | Dense):
        return None
    channels_last = isinstance(operation, Dense)
    scale = affine.scale if channels_last else affine.scale.reshape(-1, *(1,) * (operation.weight.ndim - 1))
    weight = (operation.weight * scale).astype(np.float32)
    bias = (operation.bias * affine.scale + affine.shift).astype(np.float32)
    return replace(operation, weight=weight, bias=bias)


def _depthwise(affine: Affine, axes: int) -> Conv:
    weight = affine.scale.astype(np.float32).reshape(-1, 1, *(1,) * axes)
    ones = (1,) * axes
    return Conv(weight, affine.shift.astype(np.float32), ones, (0,) * (2 * axes), ones, len(weight))
