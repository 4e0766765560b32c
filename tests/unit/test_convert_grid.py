"""The exact grid: sums that no order of summation rounds, and a refusal wherever that cannot be promised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cloud_sync.convert import grid
from cloud_sync.convert.ann import Ann
from cloud_sync.convert.errors import ConversionError, RefusedNodesError
from cloud_sync.convert.evaluate import run_spiking
from cloud_sync.convert.fold import fold
from cloud_sync.convert.load import network
from cloud_sync.convert.network import Dense, Floats
from cloud_sync.convert.pipeline import Converted, Options, convert
from cloud_sync.convert.report import Evaluation, assess
from tests.support import anns

T = 8


def _greys(count: int, seed: int = 1) -> Floats:
    return (np.floor(anns.images(count, seed) * 256) / 256).astype(np.float32)


def _converted(*, exact: bool) -> Converted:
    return convert(network(anns.plain()), _greys(64), T, Options(exact=exact))


def _worst_rounding(made: Converted, samples: Floats) -> float:
    """The largest difference between a float32 sum taken backwards, one term at a time, and the same in float64."""
    dense = made.spiking.synapses[-1].operation
    assert isinstance(dense, Dense)
    spikes = np.random.default_rng(0).integers(0, 2, (50, len(dense.weight)))
    total = np.zeros((50, dense.weight.shape[1]), np.float32)
    for index in reversed(range(len(dense.weight))):
        total += spikes[:, index : index + 1].astype(np.float32) * dense.weight[index]
    exact = spikes @ dense.weight.astype(np.float64)
    return float(np.abs(total - exact).max())


def test_on_the_grid_no_order_of_summation_rounds() -> None:
    assert _worst_rounding(_converted(exact=True), _greys(4)) == 0.0
    assert _worst_rounding(_converted(exact=False), _greys(4)) > 0.0  # the control


def test_on_the_grid_the_graph_equals_the_float64_simulation_to_the_last_bit() -> None:
    made, samples = _converted(exact=True), _greys(12, seed=5)
    layers = [*made.ann.layers]
    weighted = iter(made.spiking.synapses)
    for index, layer in enumerate(layers):
        if hasattr(layer.operation, "weight"):
            layers[index] = replace(layer, operation=next(weighted).operation)
    units = {relu.output: np.ones(relu.shape[0]) for relu in made.ann.relus()}
    expected, _ = anns.simulate(replace(made.ann, layers=tuple(layers)), units, samples.astype(np.float64), T)
    np.testing.assert_array_equal(run_spiking(made.spiking, samples, T).scores, expected)


def test_the_grid_costs_next_to_nothing_beside_the_steps_themselves() -> None:
    samples = _greys(200, seed=5)
    reference = Ann(fold(network(anns.plain()))).logits(samples)
    coarse, fine = (
        np.sqrt(np.mean((run_spiking(_converted(exact=exact).spiking, samples, T).scores - reference) ** 2))
        for exact in (True, False)
    )
    assert coarse < 1.1 * fine


def test_layers_that_leave_the_grid_are_refused_by_name() -> None:
    with pytest.raises(RefusedNodesError) as caught:
        convert(network(anns.residual()), _greys(8), T, Options(exact=True))
    ops = {refusal.op for refusal in caught.value.refusals}
    assert {"AveragePool", "Sum"} <= ops


def test_inputs_off_the_grid_are_refused() -> None:
    for samples in (anns.images(4), _greys(4) + 2):
        with pytest.raises(ConversionError, match="not on the exact grid"):
            grid.check_samples(samples)
    grid.check_samples(_greys(4))


def test_sums_that_could_leave_the_exact_range_are_refused() -> None:
    made = _converted(exact=True)
    grid.prove(made.spiking, T)
    with pytest.raises(ConversionError, match="beyond the exact"):
        grid.prove(made.spiking, 10**6)


def _sums(weight: list[float], *, signed: bool = False) -> None:
    """Prove 100 steps of one layer behind spikes."""
    dense = Dense(np.array(weight, np.float32)[:, np.newaxis], np.zeros(1, np.float32))
    made = _converted(exact=True).spiking
    layer = replace(made.synapses[-1], operation=dense)
    grid.prove(replace(made, synapses=(layer,)), 100, signed=signed)


def test_weights_of_both_signs_cannot_add_up_behind_spikes_of_zero_and_one() -> None:
    most = 2**24 * 2.0**-12 / 100
    half = [0.4 * most] * 2
    _sums([*half, *(-w for w in half)])  # all together 1.6 of what is exact, but half of them subtract
    for weight, signed in (([*half, *half], False), ([*half, *(-w for w in half)], True)):
        with pytest.raises(ConversionError, match="beyond the exact"):
            _sums(weight, signed=signed)


def test_a_sweep_goes_on_where_more_steps_cannot_be_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    made, samples = _converted(exact=True), _greys(16, seed=5)
    reach = max(float(np.abs(s.operation.weight).sum()) for s in made.spiking.synapses)
    monkeypatch.setattr(grid, "_EXACT", int(reach * 64 / grid._WEIGHT))
    with pytest.raises(ConversionError, match="beyond the exact"):
        convert(network(anns.plain()), _greys(64), 512, Options(exact=True))
    report = assess(network(anns.plain()), _greys(64), made, Evaluation(samples, None, "greys"), sweep=(T, 512))
    assert [point.timesteps for point in report.by_timesteps] == [T, 512]


def test_a_relu_without_weights_of_its_own_is_refused() -> None:
    ann = anns.AnnWriter()
    value = ann.node("Flatten", ann.node("Relu", ann.node("Relu", ann.conv("x", (3, 2, 8, 8)))))
    with pytest.raises(RefusedNodesError) as caught:
        grid.check_layers(fold(network(ann.model(value, anns.SHAPE, 3))))
    assert [refusal.op for refusal in caught.value.refusals] == ["Relu"]
