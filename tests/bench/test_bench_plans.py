"""Prints what each form of a plan costs on stock ONNX Runtime, and what golden data and proof cost. Decides nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edged.bundle.golden import make_golden
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.plans import window_plan
from edged.bundle.graph.stock import Stock
from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.selftest import prove
from tests.support.bundles import Kind, make_bundle
from tests.support.stock_engine import StockEngine

DIGITS = Path(__file__).parents[2] / "models" / "digits" / "bundle"
ROUNDS = 300
BATCH = 1


def least_us(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The least of many calls: what the code costs when nothing else runs."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return min(times) / 1000


def measured(bundle: Bundle) -> str:
    spec = bundle.spec
    model = check_step_graph(bundle.read("model.onnx"), spec)
    entry = spec.inputs[0]
    frame = np.random.default_rng(0).random((BATCH, *entry.shape), dtype=np.float32)
    window = np.repeat(frame[np.newaxis], spec.timesteps, axis=0) if entry.sequence else frame
    unrolled, scan = Stock(window_plan(model, spec, "unrolled")), Stock(window_plan(model, spec, "scan"))
    stepper = Stock(model)

    def step_through() -> None:
        states = {s.input: np.zeros((BATCH, *s.shape), dtype=np.float32) for s in spec.states}
        for _ in range(spec.timesteps):
            values = stepper.run({entry.name: frame, **states})
            states = {s.input: values[s.output] for s in spec.states}

    runs = [least_us(lambda s=s: s.run({entry.name: window})) for s in (unrolled, scan)]  # type: ignore[misc]  # default
    engine = StockEngine(model, spec)
    proof = least_us(lambda: asyncio.run(prove(engine, bundle)), rounds=3) / 1000
    golden = least_us(lambda: make_golden(model, spec, 0), rounds=1) / 1000
    return (
        f"{bundle.name:14} {spec.timesteps:5} {runs[0]:11.0f} {runs[1]:7.0f} {least_us(step_through):8.0f}"
        f" {proof:9.1f} {golden:10.0f} {len(bundle.read('golden.npz')) / 1024:10.0f}"
    )


@pytest.mark.bench
def test_bench_of_plan_forms_and_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds: tuple[Kind, ...] = ("dense", "conv", "sequence", "events")
    bundles = [open_bundle(DIGITS), *(make_bundle(tmp_path / kind, kind=kind, timesteps=16) for kind in kinds)]
    lines = [measured(bundle) for bundle in bundles]
    with capsys.disabled():
        print("\none window of one sample, least µs; proof and golden data in ms; golden.npz in KiB")
        print("model          steps    unrolled    scan  stepped  proof ms  golden ms golden KiB")
        print("\n".join(lines))
