"""Lava against the NumPy reference and ONNX Runtime, float for float: random networks, a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edged.bundle.graph.cells import cells, tapped
from edged.bundle.graph.plans import window_plan
from edged.bundle.graph.stock import Stock
from tests.support.lava import Case, random_case, run_lava
from tests.support.reference import Reference

SEEDS = range(30)


def batched(case: Case) -> dict[str, Any]:
    """The windows of a case in the layout of a plan."""
    return {
        entry.name: np.swapaxes(case.inputs[entry.name], 0, 1) if entry.sequence else case.inputs[entry.name]
        for entry in case.spec.inputs
    }


def stock_scores(case: Case) -> Any:
    return Stock(window_plan(case.model, case.spec, "unrolled")).run(batched(case))["readout"]


def stock_spikes(case: Case) -> dict[str, Any]:
    """Spikes of every spiking neuron node, summed over the window, from stock ONNX Runtime step by step."""
    found = [cell for cell in cells(case.model, case.spec) if cell.row.spiking]
    session = Stock(tapped(case.model, found))
    feeds = batched(case)
    count = len(next(iter(case.inputs.values())))
    states = {s.input: np.zeros((count, *s.shape), np.float32) for s in case.spec.states}
    totals = {cell.emission: np.zeros((count, int(np.prod(cell.shape)))) for cell in found}
    sequences = {entry.name for entry in case.spec.inputs if entry.sequence}
    for t in range(case.spec.timesteps):
        now = {name: value[t] if name in sequences else value for name, value in feeds.items()}
        out = session.run({**now, **states})
        for name, total in totals.items():
            total += out[name].reshape(count, -1)
        states = {s.input: out[s.output] for s in case.spec.states}
    return totals


def test_random_networks_give_the_same_numbers_on_numpy_onnxruntime_and_lava(tmp_path: Path) -> None:
    cases = [random_case(seed) for seed in SEEDS]
    active = 0
    for seed, (case, result) in enumerate(zip(cases, run_lava(tmp_path, cases), strict=True)):
        assert not result.refusal, (seed, result.refusal)
        reference, _ = Reference(case.model, case.spec).window(batched(case))
        np.testing.assert_array_equal(stock_scores(case), reference, err_msg=f"ONNX Runtime, seed {seed}")
        np.testing.assert_array_equal(result.scores, reference, err_msg=f"Lava, seed {seed}")
        for name, total in stock_spikes(case).items():
            np.testing.assert_array_equal(result.spikes[name], total, err_msg=f"spikes of {name}, seed {seed}")
            active += bool(total.any())
    assert active > len(SEEDS)  # the networks do spike, most of them in more than one layer
