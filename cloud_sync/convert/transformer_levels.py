"""The levels of each neuron: λ, λ/2, λ/4, … such that T spikes carry the activation best.

A multi-threshold neuron emits at each step the largest level of which its potential holds at least ¾, with the
potential's sign, and gives away as much (ECMT, see docs/transformers.md). λ bounds what it can carry, λ·2⁻ᵏ how finely.
For each value, λ is chosen on a grid below its largest magnitude by the least mean squared error after T steps of a
constant current, so the search is redone for each T.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloud_sync.convert.network import Floats
from cloud_sync.convert.runtime import Runtime
from cloud_sync.convert.transformer_emit import ann
from cloud_sync.convert.transformer_graph import Transformer

FIRE = 0.75  # a spike of λ·2⁻ᵏ is nearer to the potential than half of it
_FRACTIONS = np.geomspace(0.1, 1.0, 25)  # of the largest magnitude; 10 % steps lose nothing measurable
_MOST = 20_000  # magnitudes of a value that are searched on
_LEAST = 1e-6  # λ of a value that is always zero
_BATCH = 64
_MANTISSA_BITS = 8  # λ keeps so many: the last bits of another CPU's sums must not change the model


def calibrate(network: Transformer, samples: Floats, timesteps: int, levels: int) -> dict[str, float]:
    """λ for each value that neurons carry, from samples (N, *input_shape)."""
    values = network.spiking()
    runtime = Runtime(ann(network, values).model, [f"tap/{value}" for value in values])
    seen: dict[str, list[Floats]] = {value: [] for value in values}
    for start in range(0, len(samples), _BATCH):
        feed = {network.input: samples[start : start + _BATCH]}
        for value, found in zip(values, runtime.run(feed, [f"tap/{value}" for value in values]), strict=True):
            seen[value].append(found.ravel())
    return {value: largest_level(np.concatenate(parts), timesteps, levels) for value, parts in seen.items()}


def largest_level(activations: Floats, timesteps: int, levels: int) -> float:
    """λ for activations of any shape."""
    flat = np.abs(activations.ravel().astype(np.float64))
    peak = max(float(flat.max()), _LEAST)
    flat = flat[:: -(-len(flat) // _MOST)]
    errors = [((carried(flat, peak * part, timesteps, levels) - flat) ** 2).mean() for part in _FRACTIONS]
    mantissa, exponent = np.frexp(peak * _FRACTIONS[np.argmin(errors)])
    return float(np.ldexp(np.round(mantissa * 2**_MANTISSA_BITS), exponent - _MANTISSA_BITS))


def carried(currents: NDArray[np.float64], largest: float, timesteps: int, levels: int) -> NDArray[np.float64]:
    """What neurons emit on average over ``timesteps`` of constant currents."""
    potential = np.zeros_like(currents)
    for _ in range(timesteps):
        potential = potential + currents
        potential -= spikes(potential, largest, levels)
    return np.asarray(currents - potential / timesteps)


def spikes(potential: NDArray[np.float64], largest: float, levels: int) -> NDArray[np.float64]:
    """The largest level of which the potential holds at least ¾, signed; 0 where it holds no level."""
    size = np.abs(potential) / FIRE
    with np.errstate(divide="ignore"):
        power = np.clip(np.floor(np.log2(size / largest)), -levels, 0)
    return np.asarray(np.where(power > -levels, np.sign(potential) * largest * 2.0**power, 0.0))


def parameters(largest: float, levels: int) -> tuple[Floats, Floats]:
    """(fire, level) of the domain's MultiThreshold: what to hold, and what each level adds to the next smaller."""
    sizes = largest * 2.0 ** -np.arange(levels)
    return (FIRE * sizes).astype(np.float32), (sizes - np.append(sizes[1:], 0)).astype(np.float32)
