"""Counting: every figure against a count by hand, one weight and one activation at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cloud_sync.convert.evaluate import run_ann, run_spiking
from cloud_sync.convert.load import network
from cloud_sync.convert.network import Conv, Dense
from cloud_sync.convert.operations import LayerCounter, fan_out
from cloud_sync.convert.pipeline import convert
from cloud_sync.convert.thresholds import calibrate
from tests.support import anns


def _conv(weight: np.ndarray, *, stride: int, pad: int, groups: int, dilation: int = 1) -> Conv:
    return Conv(
        weight.astype(np.float32),
        np.zeros(len(weight), np.float32),
        (stride, stride),
        (pad, pad, pad, pad),
        (dilation, dilation),
        groups,
    )


def _by_hand(conv: Conv, source: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Non-zero weights that each input element meets."""
    counts = np.zeros(source)
    outputs, inputs, height, width = conv.weight.shape
    for o, i, y, x in itertools.product(range(outputs), range(inputs), range(height), range(width)):
        if conv.weight[o, i, y, x] == 0:
            continue
        channel = o // (outputs // conv.groups) * inputs + i
        for row, column in itertools.product(range(shape[1]), range(shape[2])):
            at = row * conv.strides[0] + y * conv.dilations[0] - conv.pads[0]
            across = column * conv.strides[1] + x * conv.dilations[1] - conv.pads[1]
            if 0 <= at < source[1] and 0 <= across < source[2]:
                counts[channel, at, across] += 1
    return counts


@pytest.mark.parametrize(
    ("stride", "pad", "groups", "dilation", "shape"),
    [(1, 1, 1, 1, (4, 6, 7)), (2, 1, 2, 1, (4, 3, 4)), (2, 0, 1, 1, (4, 2, 3)), (1, 2, 4, 2, (4, 6, 7))],
)
def test_fan_out_is_what_counting_by_hand_gives(
    stride: int, pad: int, groups: int, dilation: int, shape: tuple[int, ...]
) -> None:
    weight = np.random.default_rng(1).integers(-1, 2, (4, 4 // groups, 3, 3))
    conv = _conv(weight, stride=stride, pad=pad, groups=groups, dilation=dilation)
    found = fan_out(conv, (4, 6, 7), shape, dense=False)
    np.testing.assert_array_equal(found, _by_hand(conv, (4, 6, 7), shape))
    every = _conv(np.ones_like(weight), stride=stride, pad=pad, groups=groups, dilation=dilation)
    np.testing.assert_array_equal(fan_out(conv, (4, 6, 7), shape, dense=True), _by_hand(every, (4, 6, 7), shape))


def test_only_inputs_of_zero_and_one_make_accumulates() -> None:
    dense = Dense(np.array([[1.0, 0.0], [2.0, 3.0]], np.float32), np.zeros(2, np.float32))
    counter = LayerCounter(dense, (2,), (2,))
    counter.see(np.array([[1.0, 0.0], [1.0, 1.0]], np.float32))
    spikes = counter.total(2)
    assert (spikes.effective_macs, spikes.effective_acs, spikes.dense) == (0.0, 2.0, 4.0)
    counter.see(np.array([[0.5, 0.0], [0.0, 0.0]], np.float32))
    analogue = counter.total(2)
    assert (analogue.effective_macs, analogue.effective_acs, analogue.dense) == (2.5, 0.0, 8.0)


def test_the_first_layer_multiplies_and_what_spikes_reach_adds() -> None:
    samples = anns.images(16)
    made = convert(network(anns.plain()), samples, 4)
    spiking = run_spiking(made.spiking, samples, 4)
    ann = run_ann(made.ann, samples)
    first = made.spiking.synapses[0]
    once = fan_out(first.operation, first.source_shape, first.shape, dense=False).sum()
    assert spiking.operations.effective_macs == pytest.approx(4 * once)  # random inputs hold no zero
    assert 0 < spiking.operations.effective_acs < 4 * ann.operations.dense
    assert spiking.operations.dense == 4 * ann.operations.dense
    assert ann.operations.effective_acs == 0
    assert 0 < ann.sparsity < 1


def test_sparsity_is_the_share_of_silent_neurons() -> None:
    samples = anns.images(16)
    made = convert(network(anns.plain()), samples, 4)
    theta = calibrate(made.ann, samples, 4)
    _, spikes = anns.simulate(made.ann, theta, samples.astype(np.float64), 4)
    fired = np.concatenate([train.ravel() for train in spikes.values()])
    assert run_spiking(made.spiking, samples, 4).sparsity == pytest.approx(1 - fired.mean(), abs=1e-3)
