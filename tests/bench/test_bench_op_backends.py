"""Every published neuron op in other runtimes: built by TensorRT-RTX, compiled and run by OpenVINO, after inlining.

    scripts/test --bench tests/bench/test_bench_op_backends.py

Prints a table, decides nothing. The first run makes ``.venv-backends`` and installs both from PyPI (150 MB);
``EDGED_BACKENDS`` names another environment that has them. Each op stands alone: as a step, and as both forms of a
window of four steps; the bundled models follow. TensorRT-RTX builds without a GPU, but nothing runs there: its column
says that a plan was made. OpenVINO runs, and is compared with ONNX Runtime.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import pytest

from edged.bundle.graph.builder import StepBuilder
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.neurons import NEURONS
from edged.bundle.graph.plans import window_plan
from edged.bundle.graph.spec import GraphSpec
from edged.bundle.graph.stock import Stock
from edged.bundle.loaded import open_bundle
from tests.support.tree import ROOT

STEPS, SHAPE, BATCH = 4, (3, 4, 4), 2
BACKENDS = ("tensorrt-rtx", "openvino")
PLANS = ("step", "unrolled", "scan")
PARAMETERS = {
    "v_th": [0.3, 0.7, 1.1],
    "v_sub": [0.3, 0.9, 0.5],
    "v_reset": [0.1, -0.2, 0.3],
    "decay": [0.9, 0.5, 0.77],
    "bias": [0.01, -0.03, 0.0],
    "c_decay": [0.6, 0.3, 0.95],
    "c_gain": [1.3, 0.4, 0.7],
    "gain": [0.8, 1.1, 0.6],
    "fire": [0.6, 0.3, 0.15],
    "level": [0.4, 0.2, 0.2],
    "w": [0, 0, 1, 0],
}


def environment() -> Path:
    """The Python of the backends' environment, made first where there is none."""
    folder = Path(os.environ.get("EDGED_BACKENDS", ROOT / ".venv-backends"))
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        packages = ["tensorrt-rtx>=1.7,<2", "openvino>=2026.4", "onnx"]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def alone(op: str) -> tuple[onnx.ModelProto, GraphSpec]:
    """One op on images of three channels."""
    row, builder = NEURONS[op], StepBuilder(op)
    x = builder.input("x", SHAPE, sequence=True)
    shape = SHAPE if row.current else (1, 1, 1)
    given = {name: np.asarray(PARAMETERS[name]) for name in row.parameters}
    made = builder.neuron(op, x if row.current else "", shape, name="cell", **given)
    flat = builder.node("Flatten", made if row.current else builder.node("Mul", x, made), axis=1)
    graph = builder.build(flat, int(np.prod(SHAPE)))
    return check_step_graph(graph.model, graph.spec(STEPS)), graph.spec(STEPS)


def subjects() -> Iterator[tuple[str, onnx.ModelProto, GraphSpec]]:
    """What the rows of the table are."""
    yield from ((op, *alone(op)) for op in NEURONS)
    for name in ("digits", "spikeformer_digits"):
        bundle = open_bundle(ROOT / "models" / name / "bundle")
        yield name, check_step_graph(bundle.read(bundle.manifest.variant.model), bundle.spec), bundle.spec


def store(folder: Path, name: str, model: onnx.ModelProto, spec: GraphSpec, plan: str) -> None:
    """The inlined graph, inputs, and what ONNX Runtime makes of them."""
    random = np.random.default_rng(0)
    entry = spec.inputs[0]
    window = (spec.timesteps, BATCH) if entry.sequence and plan != "step" else (BATCH,)
    feeds = {entry.name: random.random((*window, *entry.shape), dtype=np.float32)}
    if plan == "step":
        feeds |= {state.input: np.zeros((BATCH, *state.shape), np.float32) for state in spec.states}
    else:
        model = window_plan(model, spec, "scan" if plan == "scan" else "unrolled")
    plain = onnx.inliner.inline_local_functions(model)
    assert not plain.functions
    del plain.opset_import[1:]
    onnx.save(plain, folder / f"{name}.{plan}.onnx")
    found = Stock(plain, optimized=False).run(feeds)
    arrays = {f"in.{k}": v for k, v in feeds.items()} | {f"out.{k}": v for k, v in found.items()}
    np.savez(folder / f"{name}.{plan}.npz", **arrays)  # type: ignore[arg-type]  # numpy reads names as its own options


def results(python: Path, backend: str, folder: Path, names: list[str]) -> dict[str, str]:
    """What a backend says of each graph; one that takes the process with it is named, and the rest go on."""
    found: dict[str, str] = {}
    while left := [name for name in names if name not in found]:
        command = [str(python), "-m", "tests.bench.op_backends", backend, str(folder), *left]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        last = ""
        for line in done.stdout.splitlines():
            if line.startswith('{"graph"'):
                entry = json.loads(line)
                last = entry["graph"]
                found |= {last: entry["result"]} if "result" in entry else {}
        if last in found and done.returncode == 0:
            continue
        reason = (done.stderr.strip().splitlines() or [""])[-1]
        assert last, f"{backend} does not start: {reason}"
        found.setdefault(last, f"exit {done.returncode}: {reason}")
    return found


@pytest.mark.bench
@pytest.mark.timeout(1800)
def test_every_op_in_other_runtimes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = environment()
    rows = []
    for name, model, spec in subjects():
        for plan in PLANS:
            store(tmp_path, name, model, spec, plan)
        rows.append(name)
    names = [f"{row}.{plan}" for row in rows for plan in PLANS]
    found = {backend: results(python, backend, tmp_path, names) for backend in BACKENDS}
    with capsys.disabled():
        print("\n" + f"{'graph':20}" + "".join(f"{f'{b}, {p}':26}" for b in BACKENDS for p in PLANS))
        for row in rows:
            cells = (found[backend][f"{row}.{plan}"] for backend in BACKENDS for plan in PLANS)
            print(f"{row:20}" + "".join(f"{cell if cell[:2] in ('ok', 'wr') else 'no (below)':26}" for cell in cells))
        for backend in BACKENDS:
            for name, result in found[backend].items():
                if result[:2] not in ("ok", "wr"):
                    print(f"{backend}, {name}: {result}")
