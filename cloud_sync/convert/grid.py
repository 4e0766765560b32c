"""Optional: weights on a grid on which float32 sums are exact, so that every engine and CPU computes the same bits.

A sum of multiples of g is exact in any order, with or without fused multiply-add, while it stays below 2²⁴·g. Spikes
are 0 or 1, so weights behind neurons lie on 2⁻¹² and their sums too; so are event frames. An analogue input must lie on
2⁻⁸ (an 8-bit grey / 256 does); the first layer then has weights on 2⁻⁸ and sums on 2⁻¹⁶. ``prove`` shows that no sum,
over all steps, can leave the exact range.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cloud_sync.convert.errors import ConversionError, Refusal, RefusedNodesError
from cloud_sync.convert.network import Conv, Dense, Floats, Layer, MaxPool, Network, Relu, Reshape
from cloud_sync.convert.step import SpikingNetwork

_INPUT = 2.0**-8
_FIRST_WEIGHT = 2.0**-8
_WEIGHT = 2.0**-12
_EXACT = 2**24  # float32 holds every whole number up to here


def check_layers(network: Network) -> None:
    """Refuse layers whose values leave the grid: pooling divides, and a residual sum multiplies by thresholds."""
    refusals = [
        Refusal(
            layer.name, type(layer.operation).__name__, "its values leave the exact grid", "convert without --exact"
        )
        for layer in network.layers
        if not isinstance(layer.operation, Conv | Dense | Relu | Reshape) and not _pools_spikes(network, layer)
    ]
    refusals += [
        Refusal(relu.name, "Relu", "it does not follow a Conv or Gemm of its own", "convert without --exact")
        for relu in network.relus()
        if not _follows_weights(network, relu.inputs[0])
    ]
    if refusals:
        raise RefusedNodesError("an exact conversion", refusals)


def check_samples(samples: Floats) -> None:
    """Refuse inputs that are no multiples of 2⁻⁸ within ±1."""
    if np.abs(samples).max() > 1 or (samples != np.round(samples / _INPUT) * _INPUT).any():
        raise ConversionError("the input is not on the exact grid", "scale 8-bit values by 1/256, or leave out --exact")


def snapped(operation: Conv | Dense, *, analogue: bool) -> Conv | Dense:
    """The operation with weights and biases rounded to the grid."""
    weight_grid = _FIRST_WEIGHT if analogue else _WEIGHT
    bias_grid = _FIRST_WEIGHT * _INPUT if analogue else _WEIGHT
    weight = np.round(operation.weight / weight_grid) * weight_grid
    bias = np.round(operation.bias / bias_grid) * bias_grid
    return replace(operation, weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def prove(spiking: SpikingNetwork, timesteps: int, *, signed: bool = False) -> None:
    """Show that every sum stays exact: the membrane of a neuron holds at most T currents and one threshold.

    Spikes of 0 and 1 add up to no more than all positive weights, and to no less than all negative ones; an image, and
    spikes that may be ``signed``, can turn the sign of each.
    """
    for synapses in spiking.synapses:
        weight = synapses.operation.weight.astype(np.float64)
        over = 0 if isinstance(synapses.operation, Dense) else tuple(range(1, weight.ndim))
        rising, falling = (np.maximum(way * weight, 0).sum(axis=over) for way in (1, -1))
        turns = signed or synapses.source == spiking.analogue
        reached = rising + falling if turns else np.maximum(rising, falling)
        current = (reached + np.abs(synapses.operation.bias)).max()
        grid = _FIRST_WEIGHT * _INPUT if synapses.source == spiking.analogue else _WEIGHT
        if timesteps * current + 1 >= _EXACT * grid:
            reach, limit = f"{timesteps * current:.0f}", f"{_EXACT * grid:.0f}"
            raise ConversionError(
                f"sums behind {synapses.source!r} can reach {reach}, beyond the exact {limit}",
                "use fewer steps, or convert without --exact",
            )


def _follows_weights(network: Network, value: str) -> bool:
    made_by = network.producer(value)
    return made_by is not None and isinstance(made_by.operation, Conv | Dense) and network.uses(value) == 1


def _pools_spikes(network: Network, layer: Layer) -> bool:
    """Whether a layer takes the maximum of spikes, which is a spike again."""
    if not isinstance(layer.operation, MaxPool):
        return False
    made_by = network.producer(layer.inputs[0])
    while made_by is not None and isinstance(made_by.operation, Reshape | MaxPool):
        made_by = network.producer(made_by.inputs[0])
    return made_by is not None and isinstance(made_by.operation, Relu)
