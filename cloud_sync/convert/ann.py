"""Runs the folded ANN on ONNX Runtime: logits, and the pre-activations and inputs of layers that passes ask for.

Batches bound the memory; nothing is kept but what is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from cloud_sync.convert.emit import emit
from cloud_sync.convert.network import Floats, Network
from cloud_sync.convert.runtime import Runtime, batch_size
from edged.bundle.graph.builder import StepBuilder


def build(network: Network) -> onnx.ModelProto:
    """The ANN as an ONNX model of our own: symbolic batch, every value under its name in the network."""
    builder = StepBuilder("ann")
    tensors = {network.input: builder.input("ann.input", network.input_shape)}
    for index, layer in enumerate(network.layers):
        inputs = tuple(tensors[value] for value in layer.inputs)
        tensors[layer.output] = emit(builder, layer, inputs, value_name(index))
    return builder.build(tensors[network.output], network.classes).model


def value_name(index: int) -> str:
    """What the output of the network's layer ``index`` is called in the model of ``build``."""
    return f"layer{index}"


class Ann:
    """One network in a session; ``batch`` samples (N, *input_shape) run at once."""

    def __init__(self, network: Network) -> None:
        self._names = {layer.output: value_name(index) for index, layer in enumerate(network.layers)}
        self._names[network.input] = "ann.input"
        self._output = network.output
        self.batch = batch_size(sum(math.prod(layer.shape) for layer in network.layers))
        self._runtime = Runtime(build(network), list(self._names.values()))

    def logits(self, samples: Floats) -> Floats:
        """Scores (N, classes)."""
        return self.values(samples, [self._output])[0]

    def values(self, samples: Floats, values: Sequence[str]) -> list[Floats]:
        """Any values of the network, each (N, *shape)."""
        names = [self._names[value] for value in values]
        parts = [
            self._runtime.run({"ann.input": samples[start : start + self.batch]}, names)
            for start in range(0, len(samples), self.batch)
        ]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]
