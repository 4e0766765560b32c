"""Pass 3: a threshold for each channel of each neuron layer, such that T spikes carry the activation best.

A neuron that starts half full and fires at most once a step emits ``θ/T · clip(floor(a·T/θ + 1/2), 0, T)`` for a
constant current a (QCFS, Bu et al., ICLR 2022). Per channel, θ is chosen on a grid below the largest activation by the
least mean squared error of that staircase against relu(a): a lower θ clips rare peaks and resolves the rest finer, so
the best one depends on T and the search is redone for each T.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cloud_sync.convert.ann import Ann
from cloud_sync.convert.network import Floats, Network, Relu

Doubles = NDArray[np.float64]

_FRACTIONS = np.linspace(0.2, 1.0, 41)  # of the largest activation seen; 2 % steps lose nothing measurable
_QUIET = 1e-3  # a channel that hardly ever fires gets this share of its layer's peak: θ must not be zero
_MANTISSA_BITS = 8  # θ keeps so many: the last bits of another CPU's sums must not change the model


def calibrate(
    network: Network, samples: Floats, timesteps: int, say: Callable[[str], None] = lambda _: None
) -> dict[str, Floats]:
    """θ (C,) for each Relu by its output value, from samples (N, *input_shape). ``say`` is told of each layer."""
    ann = Ann(network)
    found: dict[str, Floats] = {}
    layers = list(network.relus())
    for relu in layers:
        upper = relu.operation.upper if isinstance(relu.operation, Relu) else math.inf
        found[relu.output] = thresholds(ann.values(samples, [relu.inputs[0]])[0], timesteps, upper)
        say(f"  T = {timesteps}: thresholds of layer {len(found)} of {len(layers)}")
    return found


def thresholds(activations: Floats, timesteps: int, upper: float = math.inf) -> Floats:
    """θ (C,) for pre-activations (N, C, …) that are cut off at ``upper`` (ReLU6: 6).

    No θ is above ``upper``, so T spikes of θ in T steps never stand for more.
    """
    activations = np.minimum(activations, np.float32(upper))
    channels = np.moveaxis(activations, 1, 0).reshape(activations.shape[1], -1)
    peaks = np.maximum(channels.max(axis=1).astype(np.float64), 0)
    peaks = np.maximum(peaks, _QUIET * (peaks.max() or 1.0))
    # channel by channel: float64 copies of a whole layer would be the largest thing in memory
    best = np.array([_best(one, peak, timesteps) for one, peak in zip(channels, peaks, strict=True)])
    return np.minimum(_rounded(best), np.float32(upper))


def _best(channel: Floats, peak: float, timesteps: int) -> float:
    currents = channel.astype(np.float64)
    rectified = np.maximum(currents, 0)
    candidates = peak * _FRACTIONS
    errors = [((staircase(currents, theta, timesteps) - rectified) ** 2).mean() for theta in candidates]
    return float(candidates[np.argmin(errors)])


def staircase(currents: Doubles, threshold: Doubles | float, timesteps: int) -> Doubles:
    """What a neuron that starts half full emits on average over ``timesteps`` of a constant current (QCFS)."""
    spikes = np.clip(np.floor(currents * timesteps / threshold + 0.5), 0, timesteps)
    return np.asarray(spikes * threshold / timesteps)


def _rounded(values: Doubles) -> Floats:
    mantissa, exponent = np.frexp(values)
    rounded = np.ldexp(np.round(mantissa * 2**_MANTISSA_BITS), exponent - _MANTISSA_BITS)
    return np.asarray(rounded, np.float32)
