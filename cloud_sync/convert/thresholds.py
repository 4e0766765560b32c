"""Pass 3: a threshold for each channel of each neuron layer, such that T spikes carry the activation best.

A neuron that starts half full and fires at most once a step emits ``θ/T · clip(floor(a·T/θ + 1/2), 0, T)`` for a
constant current a (QCFS, Bu et al., ICLR 2022). Per channel, θ is chosen on a grid below the largest activation by the
least mean squared error of that staircase against relu(a): a lower θ clips rare peaks and resolves the rest finer, so
the best one depends on T and the search is redone for each T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from cloud_sync.convert.ann import Ann
from cloud_sync.convert.network import Floats, Layer, Network, Relu

Doubles = NDArray[np.float64]

_FRACTIONS = np.linspace(0.2, 1.0, 41)  # of the largest activation seen; 2 % steps lose nothing measurable
_MOST = 1 << 24  # activations of a layer that are looked at: more take minutes and move θ by less than its rounding
_AT_ONCE = 1 << 26  # that are kept in memory: 256 MiB
_QUIET = 1e-3  # a channel that hardly ever fires gets this share of its layer's peak: θ must not be zero
_MANTISSA_BITS = 8  # θ keeps so many: the last bits of another CPU's sums must not change the model


def calibrate(
    network: Network, samples: Floats, timesteps: int, say: Callable[[str], None] = lambda _: None
) -> dict[str, Floats]:
    """θ (C,) for each Relu by its output value, from samples (N, *input_shape). ``say`` is told of each layer."""
    ann = Ann(network)
    found: dict[str, Floats] = {}
    layers = list(network.relus())
    for group in _groups(layers, len(samples)):
        for relu, (seen, peaks) in zip(group, _activations(ann, group, samples), strict=True):
            upper = relu.operation.upper if isinstance(relu.operation, Relu) else math.inf
            found[relu.output] = thresholds(seen, timesteps, upper, peaks)
            say(f"  T = {timesteps}: thresholds of layer {len(found)} of {len(layers)}")
    return found


def _groups(layers: list[Layer], samples: int) -> Iterator[list[Layer]]:
    """Layers whose activations are kept at the same time: each group costs a run of the whole network."""
    group: list[Layer] = []
    kept = 0
    for layer in layers:
        size = samples * math.prod(layer.shape)
        size //= _every(layer, samples)
        if group and kept + size > _AT_ONCE:
            yield group
            group, kept = [], 0
        group.append(layer)
        kept += size
    yield group


def _activations(ann: Ann, group: list[Layer], samples: Floats) -> list[tuple[Floats, Floats]]:
    """Of each layer the pre-activations (K, C), or an even choice of them, and the largest of all (C,)."""
    seen: list[list[Floats]] = [[] for _ in group]
    peaks = [np.full(layer.shape[0], -np.inf, np.float32) for layer in group]
    for start in range(0, len(samples), ann.batch):
        values = ann.values(samples[start : start + ann.batch], [layer.inputs[0] for layer in group])
        for index, (layer, value) in enumerate(zip(group, values, strict=True)):
            rows = np.moveaxis(value, 1, -1).reshape(-1, value.shape[1])
            peaks[index] = np.maximum(peaks[index], rows.max(axis=0))
            seen[index].append(np.array(rows[:: _every(layer, len(samples))]))
    return [(np.concatenate(rows), peak) for rows, peak in zip(seen, peaks, strict=True)]


def _every(layer: Layer, samples: int) -> int:
    """Which share of a layer's activations is looked at: all of a small network, each n-th of a large one."""
    return -(-samples * math.prod(layer.shape) // _MOST)


def thresholds(activations: Floats, timesteps: int, upper: float = math.inf, largest: Floats | None = None) -> Floats:
    """θ (C,) for pre-activations (N, C, …) that are cut off at ``upper`` (ReLU6: 6).

    ``largest`` (C,) are the peaks where ``activations`` are only some of them. No θ is above ``upper``, so T spikes of
    θ in T steps never stand for more.
    """
    activations = np.minimum(activations, np.float32(upper))
    channels = np.moveaxis(activations, 1, 0).reshape(activations.shape[1], -1)
    highest = channels.max(axis=1) if largest is None else np.minimum(largest, np.float32(upper))
    peaks = np.maximum(highest.astype(np.float64), 0)
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
