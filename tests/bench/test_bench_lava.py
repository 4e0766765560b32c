"""What Lava costs: a step in plain NumPy, in Lava in one thread, and in Lava's own runtime, of the same networks."""

from __future__ import annotations

import json
import os
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.bundle.graph.builder import StepBuilder
from edged.bundle.loaded import open_bundle
from tests.support.lava import Case, case_of, lava_python, save_case
from tests.support.tree import ROOT

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # as the daemon starts workers


def dense(sizes: list[int], op: str) -> Case:
    """A network of full layers."""
    rng = np.random.default_rng(0)
    builder = StepBuilder("dense")
    x = builder.input("x", (sizes[0],), sequence=True)
    for width, size in pairwise(sizes):
        weights = builder.constant(
            rng.normal(0.1, 0.5, (width, size)).astype(np.float32) * np.float32(4 / np.sqrt(width))
        )
        bias = builder.constant(np.full(size, 0.02, np.float32))
        reset: dict[str, Any] = {"v_sub": 1.0} if op == "LIF" else {"v_reset": 0.0}
        current = builder.node("Gemm", x, weights, bias)
        x = builder.neuron(op, current, (size,), decay=0.9, bias=0.0, v_th=1.0, **reset)
    graph = builder.build(x, sizes[-1])
    samples = (rng.random((1, 32, sizes[0])) < 0.2).astype(np.float32)
    return Case(graph.model, graph.spec(32), {"x": samples})


def cases() -> dict[str, Case]:
    found = {
        "64-128-10, hard reset": dense([64, 128, 10], "LIFZ"),
        "64-128-10, soft reset": dense([64, 128, 10], "LIF"),
        "1024-1024-256, hard reset": dense([1024, 1024, 256], "LIFZ"),
    }
    for name in ("digits", "nmnist"):
        bundle = open_bundle(ROOT / "models" / name / "bundle")
        entry = bundle.spec.inputs[0]
        shape = (bundle.spec.timesteps, *entry.shape) if entry.sequence else entry.shape
        found[name] = case_of(bundle, np.random.default_rng(0).random((1, *shape)).astype(np.float32))
    return found


def test_a_step_on_lava_beside_numpy(tmp_path: Path) -> None:
    print(
        "\nmicroseconds a step           NumPy  (by hand)  Lava, one thread  Lava's runtime   of NumPy: thread  runtime"
    )
    for name, case in cases().items():
        save_case(tmp_path / name / "000", case)
        command = [lava_python(), "-m", "tests.bench.bench_lava", str(tmp_path / name)]
        environment = {**os.environ, **ONE_THREAD}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        us = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{name:<27}{us['numpy']:>8.0f}{us['lean']:>11.0f}{us['cpu']:>18.0f}{us['sim']:>16.0f}"
            f"{us['cpu'] / us['numpy']:>19.1f}{us['sim'] / us['numpy']:>9.1f}"
        )
