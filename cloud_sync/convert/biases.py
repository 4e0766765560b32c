"""Optional: moves biases so that, on the calibration samples, each layer of the spiking network has the ANN's mean.

Rounding to T levels, clipping and spikes at odd times leave a mean error in each channel, which the layers behind see.
Layer after layer, from the image on, it is measured and subtracted (Li et al., ICML 2021, "light" calibration).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cloud_sync.convert.ann import Ann
from cloud_sync.convert.network import Conv, Dense, Floats, Network
from cloud_sync.convert.runtime import Runtime
from cloud_sync.convert.step import SpikingNetwork

_SAMPLES = 256  # a mean over these is certain to a few percent of a standard deviation
_BATCH = 64


def corrected(
    network: Network,
    samples: Floats,
    timesteps: int,
    write: Callable[[Network], SpikingNetwork],
    say: Callable[[str], None],
) -> Network:
    """The network with other biases; ``write`` turns it into the spiking network that it will be."""
    samples = samples[:_SAMPLES]
    ann, changed = Ann(network), network
    weighted = [layer for layer, _ in network.weighted()]
    for done, layer in enumerate(weighted, start=1):
        wanted = _by_channel(ann.values(samples, [layer.output])[0].astype(np.float64))
        drift = wanted - _mean(write(changed), layer.output, samples, timesteps)
        changed = _shifted(changed, layer.output, drift)
        say(f"  biases of layer {done} of {len(weighted)} moved by {np.abs(drift).mean():.3g} on average")
    return changed


def _shifted(network: Network, value: str, drift: NDArray[np.float64]) -> Network:
    layers = list(network.layers)
    at = next(index for index, layer in enumerate(layers) if layer.output == value)
    operation = layers[at].operation
    assert isinstance(operation, Conv | Dense)
    layers[at] = replace(layers[at], operation=replace(operation, bias=(operation.bias + drift).astype(np.float32)))
    return replace(network, layers=tuple(layers))


def _mean(made: SpikingNetwork, value: str, samples: Floats, timesteps: int) -> NDArray[np.float64]:
    """The mean of a value of the ANN in the spiking network, for each channel."""
    where = made.values[value]
    runtime = Runtime(made.graph.model, [where.tensor])
    fetches = [where.tensor, *(state.output for state in made.graph.states)]
    total: NDArray[np.float64] | float = 0.0
    for start in range(0, len(samples), _BATCH):
        batch = samples[start : start + _BATCH]
        states = {state.input: np.zeros((len(batch), *state.shape), np.float32) for state in made.graph.states}
        for _ in range(made.steps):
            found, *after = runtime.run({made.graph.inputs[0].name: batch, **states}, fetches)
            states = dict(zip(states, after, strict=True))
            total = total + (found if where.gain is None else found * where.gain).astype(np.float64).sum(axis=0)
    return _by_channel(np.asarray(total)[np.newaxis] / (len(samples) * timesteps))


def _by_channel(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means (C,) of values (N, C, …)."""
    return np.asarray(values.mean(axis=tuple(axis for axis in range(values.ndim) if axis != 1)))
