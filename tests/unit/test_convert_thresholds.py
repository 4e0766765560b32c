"""Thresholds: the staircase is what a neuron does, the search finds what brute force finds, T changes the answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_sync.convert import runtime
from cloud_sync.convert import thresholds as module
from cloud_sync.convert.ann import Ann
from cloud_sync.convert.fold import fold
from cloud_sync.convert.load import network
from cloud_sync.convert.thresholds import calibrate, staircase, thresholds
from tests.support import anns

ROUNDING = 2.0**-8  # θ keeps eight bits


def _fired(current: float, theta: float, timesteps: int) -> int:
    """Spikes of one neuron, counted by hand."""
    potential, spikes = theta / 2, 0
    for _ in range(timesteps):
        potential += current
        if potential >= theta:
            potential -= theta
            spikes += 1
    return spikes


@given(st.integers(-64, 256), st.integers(1, 32))
def test_the_staircase_is_the_mean_of_a_neuron_under_constant_current(sixteenths: int, timesteps: int) -> None:
    current = sixteenths / 64  # exact in binary, so that equality is meant
    expected = _fired(current, 2.0, timesteps) * 2.0 / timesteps
    assert staircase(np.array(current), np.array(2.0), timesteps) == pytest.approx(expected, abs=1e-12)


def _brute(channel: np.ndarray, timesteps: int) -> float:
    """The least error over the documented grid, one number at a time."""
    peak = max(max(float(value), 0.0) for value in channel)
    best, found = float("inf"), peak
    for fraction in np.linspace(0.2, 1.0, 41):
        theta = peak * fraction
        error = 0.0
        for value in channel.astype(float):
            spikes = min(max(np.floor(value * timesteps / theta + 0.5), 0), timesteps)
            error += (spikes * theta / timesteps - max(value, 0.0)) ** 2
        if error < best:
            best, found = error, theta
    return found


@pytest.mark.parametrize("timesteps", [1, 4, 16])
def test_the_search_finds_what_brute_force_finds(timesteps: int) -> None:
    random = np.random.default_rng(3)
    activations = (random.normal(0.2, 1, (40, 5, 2)) * random.uniform(0.1, 3, (1, 5, 1))).astype(np.float32)
    found = thresholds(activations, timesteps)
    expected = [_brute(activations[:, channel].ravel(), timesteps) for channel in range(5)]
    np.testing.assert_allclose(found, expected, rtol=ROUNDING)


def test_more_steps_let_the_threshold_grow_towards_the_peak() -> None:
    activations = np.random.default_rng(4).exponential(1, (4000, 1)).astype(np.float32)
    few, many = thresholds(activations, 2)[0], thresholds(activations, 64)[0]
    assert few < 0.7 * many
    assert many <= activations.max() * (1 + ROUNDING)


def test_a_channel_that_never_fires_gets_a_threshold_above_zero() -> None:
    activations = np.array([[-1.0, 5.0], [-2.0, 3.0]], np.float32)
    assert (thresholds(activations, 8) > 0).all()
    assert (thresholds(-np.ones((4, 3), np.float32), 8) > 0).all()


def test_the_last_bits_of_an_activation_do_not_change_the_threshold() -> None:
    activations = np.random.default_rng(5).normal(0, 1, (500, 16)).astype(np.float32)
    other = np.nextafter(activations, np.float32(9))
    np.testing.assert_array_equal(thresholds(activations, 8), thresholds(other, 8))


def test_every_relu_gets_one_threshold_for_each_of_its_channels() -> None:
    found = fold(network(anns.residual()))
    theta = calibrate(found, anns.images(32), 8)
    assert {value: len(array) for value, array in theta.items()} == {
        relu.output: relu.shape[0] for relu in found.relus()
    }


def _calibrated() -> dict[str, np.ndarray]:
    return calibrate(fold(network(anns.residual())), anns.images(300), 8)


def test_a_large_network_is_calibrated_in_several_runs_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _calibrated()
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    monkeypatch.setattr(runtime, "_NUMBERS", 5000)  # some samples at a time
    assert Ann(fold(network(anns.residual()))).batch < 10
    parts = _calibrated()
    assert parts.keys() == whole.keys()
    for value, theta in whole.items():
        # another size of a batch may sum in another order, and a last bit decide between two thresholds
        np.testing.assert_allclose(parts[value], theta, rtol=0.03)


def test_an_even_choice_of_activations_gives_about_the_same_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _calibrated()
    monkeypatch.setattr(module, "_MOST", 20_000)
    some = _calibrated()
    ratios = np.concatenate([some[value] / theta for value, theta in whole.items()])
    assert (ratios != 1).any()  # fewer were looked at
    assert np.median(np.abs(ratios - 1)) < 0.05
    rare = np.zeros((64, 1), np.float32)
    assert thresholds(rare, 4, largest=np.array([10.0], np.float32)) >= 2.0  # peaks are those of all activations


@pytest.mark.parametrize(("numbers", "expected"), [(1, 256), (1 << 18, 256), (1 << 20, 64), (1 << 40, 1)])
def test_as_many_samples_run_at_once_as_memory_allows(numbers: int, expected: int) -> None:
    assert runtime.batch_size(numbers) == expected
