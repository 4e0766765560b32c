"""What may happen to the weights of a layer on their way into the step graph: nothing, a grid, or eight bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from cloud_sync.convert.network import Conv, Dense
from edged.bundle.graph.quantized import LEVELS


class Weights(Protocol):
    """Rounds the weights and biases of a layer; ``analogue``: the layer sees the image itself."""

    def __call__(self, operation: Conv | Dense, *, analogue: bool) -> Conv | Dense:
        """The same layer with its weights rounded."""


def as_they_are(operation: Conv | Dense, *, analogue: bool) -> Conv | Dense:  # noqa: ARG001  # one signature for all
    """The same weights."""
    return operation


def int8(operation: Conv | Dense, *, analogue: bool) -> Conv | Dense:  # noqa: ARG001  # as above
    """Each output's weights as whole multiples, -127 to 127, of one step of its own; biases stay as they are.

    Steps and products are float32, so that a file may keep the whole numbers and DequantizeLinear gives these weights.
    """
    axis = 0 if isinstance(operation, Dense) else tuple(range(1, operation.weight.ndim))
    peak = np.abs(operation.weight).max(axis=axis, keepdims=True)
    step = np.where(peak > 0, peak, LEVELS).astype(np.float32) / np.float32(LEVELS)
    return replace(operation, weight=np.round(operation.weight / step) * step)
