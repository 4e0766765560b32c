"""Trained weights → the canonical graph of one time step, and recordings as that graph sees them.

``weights.npz`` holds ``weight0``, ``bias0``, … of the layers in ``layers``, already on the exact grid. ``network``
proves that every sum and every potential is exact in float32: every engine gives the same scores to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cloud_sync.convert.emit import emit
from cloud_sync.convert.errors import ConversionError
from cloud_sync.convert.network import Conv, Dense, Floats, Layer
from cloud_sync.convert.step import Neurons, SpikingNetwork, Synapses
from edged.bundle.arrays import decode_npz
from edged.bundle.encoding import encode
from edged.bundle.graph.builder import StepBuilder
from edged.bundle.manifest import EventFrames, Input
from edged.domain import Events
from models.nmnist import data, layers

INPUT = Input(
    name="events",
    dtype="float32",
    shape=(data.POLARITIES, data.SIDE, data.SIDE),
    time="sequence",
    encoding=EventFrames(
        width=data.SIDE,
        height=data.SIDE,
        polarities=data.POLARITIES,
        dt_us=data.STEP_US,
        t0="first_event",
        polarity_order="off,on",
        accumulate="binary",
        tail="drop",
    ),
    preprocess=(),
)

_MANTISSA = 2**24  # float32 holds every whole number up to here


def network(path: Path) -> SpikingNetwork:
    """The step graph of weights that ``train`` wrote. Raises ConversionError where a sum could leave the exact grid."""
    stored = decode_npz(path.read_bytes())
    builder = StepBuilder("nmnist")
    value, shape = builder.input(INPUT.name, INPUT.shape, sequence=True), INPUT.shape
    synapses, neurons = [], []
    for index, row in enumerate(layers.LAYERS):
        weight, bias = stored[f"weight{index}"], stored[f"bias{index}"]
        _prove(weight, bias, row.grid, row.decay)
        pads = (row.kernel // 2,) * 4
        conv = Conv(weight, bias, (layers.STRIDE,) * 2, pads, (1, 1))
        made = (row.outputs, *(-(-side // layers.STRIDE) for side in shape[1:]))
        synapses.append(Synapses(conv, value, shape, made))
        current = emit(builder, Layer(f"conv{index}", conv, (value,), f"conv{index}", made), (value,), f"conv{index}")
        value, shape = _neurons(builder, row, current, made, f"spikes{index}"), made
        neurons.append(Neurons(value, shape, ""))
    last = len(layers.LAYERS)
    dense = Dense(np.ascontiguousarray(stored[f"weight{last}"].T), stored[f"bias{last}"])
    _prove(dense.weight.T, dense.bias, layers.DENSE_GRID, 1.0)
    flat = builder.node("Flatten", value, name="flat", axis=1)
    synapses.append(Synapses(dense, flat, (layers.FEATURES,), (len(data.LABELS),)))
    scores = emit(builder, Layer("scores", dense, (flat,), "scores", (len(data.LABELS),)), (flat,), "scores")
    graph = builder.build(scores, len(data.LABELS))
    return SpikingNetwork(graph, tuple(synapses), tuple(neurons), data.TIMESTEPS)


def _neurons(builder: StepBuilder, row: layers.Layer, current: str, shape: tuple[int, ...], name: str) -> str:
    if row.decay == 1.0:
        return builder.neuron("IF", current, shape, name=name, v_th=layers.THRESHOLD, v_sub=layers.RESET)
    leak = {"decay": row.decay, "bias": 0.0}
    return builder.neuron("LIF", current, shape, name=name, v_th=layers.THRESHOLD, v_sub=layers.RESET, **leak)


def _prove(weight: Floats, bias: Floats, grid: float, decay: float) -> None:
    """Show that all sums of spikes, and all potentials over all steps, are multiples of a unit and below 2²⁴ of it."""
    if any((array != np.round(array / grid) * grid).any() for array in (weight, bias)):
        raise ConversionError(f"weights are not on the grid of {grid}", "train again")
    rows = weight.astype(np.float64).reshape(len(weight), -1)
    ends = (rows.clip(min=0).sum(axis=1), -rows.clip(max=0).sum(axis=1))  # every spike that lifts, or that lowers
    current = (np.maximum(*ends) + np.abs(bias)).max()
    # a potential holds at most this many currents, and what one reset takes; each halving needs one more digit
    currents = data.TIMESTEPS if decay == 1.0 else 1 / (1 - decay)
    unit = grid * decay ** (data.TIMESTEPS - 1)
    if currents * current + layers.RESET >= _MANTISSA * unit:
        reach, limit = f"{currents * current:.1f}", f"{_MANTISSA * unit:.0f}"
        raise ConversionError(f"potentials can reach {reach}, beyond the exact {limit}", "train with more weight decay")


def frames(recordings: Sequence[Events]) -> Floats:
    """(N, T, polarities, SIDE, SIDE) of recordings, by the rules of the manifest's input, as on a device."""
    return np.stack([encode(INPUT, data.TIMESTEPS, recording) for recording in recordings])
