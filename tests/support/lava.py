"""Lava in tests: its interpreter, networks that it can run, and a run of many of them in one process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edged.bundle.golden_form import load_golden
from edged.bundle.golden_loihi import Scales, in_integers
from edged.bundle.graph.builder import StepBuilder, StepGraph
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.spec import GraphSpec, ReadoutKind
from edged.bundle.loaded import Bundle
from edged.bundle.loihi import Integers
from tests.support.parts import missing, optional, program
from tests.support.tree import ROOT

PYTHON = ROOT / ".venv-lava" / "bin" / "python"
GRID = 64  # weights are multiples of 1/64, inputs of 1/16: sums are exact in float32 and float64
DECAYS = (0.5, 0.75, 1.0)
OF_A_DEVICE = Path("/opt/python3.10")  # as docs/install.md has it for a release without a Python 3.10
PARTS = """
import json, os, sys, sysconfig
library = os.path.join(sys.base_prefix, "lib", sysconfig.get_config_var("INSTSONAME"))
print(json.dumps([os.path.realpath(sys._base_executable), sysconfig.get_path("stdlib"), library]))
"""
READOUTS: tuple[ReadoutKind, ...] = ("mean", "sum", "last", "max", "first_spike")


def lava_python() -> str:
    """Lava's interpreter. Without it the test is skipped; in CI it fails where a Python 3.10 could have made it."""
    if not PYTHON.exists():
        if _runs("python3.10"):
            missing("Lava", "scripts/lava makes its environment")
        optional("Lava", f"no {PYTHON.relative_to(ROOT)}: scripts/test makes it where there is a Python 3.10")
    return str(PYTHON)


def _runs(name: str) -> bool:
    """Whether a program is here and starts."""
    path = program(name)
    return path is not None and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0


def bring_python(root: Path) -> str:
    """Give a device, whose file system is at ``root``, the Python 3.10 that Lava has here; its path there.

    The interpreter and its standard library, without what is installed for it. Its library, where it has one, is found
    only after the device's own ``ldconfig``.
    """
    told = subprocess.run([lava_python(), "-I", "-c", PARTS], capture_output=True, check=True, text=True).stdout
    binary, stdlib, library = map(Path, json.loads(told))
    there = root / OF_A_DEVICE.relative_to("/")
    (there / "bin").mkdir(parents=True)
    shutil.copy2(binary, there / "bin/python3.10")
    left_out = shutil.ignore_patterns("site-packages", "dist-packages", "test", "config-*")
    shutil.copytree(stdlib, there / "lib/python3.10", symlinks=True, ignore=left_out)
    if library.suffix != ".a" and library.exists():
        shutil.copy2(library, there / "lib")
        settings = root / "etc/ld.so.conf.d/python3.10.conf"
        settings.write_text(f"{OF_A_DEVICE}/lib\n")
    return str(OF_A_DEVICE / "bin/python3.10")


@dataclass(frozen=True)
class Case:
    """A graph, how it is run, and windows to run: (N, …) for each input, as the model sees one sample.

    ``golden``: the windows of its golden data, from which the ranges of integers are taken; the same where it has none.
    """

    model: onnx.ModelProto
    spec: GraphSpec
    inputs: dict[str, Any]
    golden: Any = None


@dataclass(frozen=True)
class Result:
    """What Lava gave: scores (N, classes), spikes of each population by emission (N, size), or why it refused.

    ``steps``: the output and each state of the first window, step by step (T, size).
    """

    scores: Any
    spikes: dict[str, Any]
    refusal: str = ""
    window_s: float = 0.0
    steps: dict[str, Any] = field(default_factory=dict)


def case_of(bundle: Bundle, samples: Any) -> Case:
    """Samples (N, …) of the one input of a bundle."""
    model = check_step_graph(bundle.read(bundle.manifest.variant.model), bundle.spec)
    golden = load_golden(bundle)["free.input"]
    return Case(model, bundle.spec, {bundle.spec.inputs[0].name: samples}, golden)


def manifest_of(spec: GraphSpec) -> dict[str, Any]:
    """The part of a manifest that the Lava worker reads."""
    return {
        "timesteps": spec.timesteps,
        "inputs": [
            {"name": i.name, "shape": i.shape, "time": "sequence" if i.sequence else "constant"} for i in spec.inputs
        ],
        "states": [{"in": s.input, "out": s.output, "shape": s.shape, "neuron": s.neuron} for s in spec.states],
        "output": {"name": spec.output, "classes": spec.classes},
        "readout": {
            "kind": spec.readout.kind,
            "window": {"start": spec.readout.start, "stop": spec.readout.stop},
        },
        "variants": [{"golden": "golden.npz"}],
    }


def save_case(place: Path, case: Case, *, integers: bool = False) -> None:
    """Write a case as a directory, in the form in which the worker gets a bundle and its plans.

    ``integers``: with the scales that an engine in integers asks for.
    """
    place.mkdir(parents=True, exist_ok=True)
    onnx.save_model(case.model, str(place / "step.onnx"))
    (place / "manifest.json").write_text(json.dumps(manifest_of(case.spec)))
    np.savez(place / "golden.npz", **(_scales(case) if integers else {}))
    np.savez(place / "inputs.npz", **case.inputs)


def _scales(case: Case) -> dict[str, Any]:
    _, scales = whole_numbers(case)
    return {"loihi.scale": np.array(scales.cells), "loihi.input": np.array(scales.input)}


def whole_numbers(case: Case) -> tuple[Integers, Scales]:
    """The case in Loihi's integers, computed in NumPy."""
    shown = next(iter(case.inputs.values())) if case.golden is None else case.golden
    return in_integers(case.model, case.spec, shown.astype(np.float32))


def run_lava(folder: Path, cases: list[Case], engine: str = "cpu", *, steps: bool = False) -> list[Result]:
    """Run every case on one of Lava's engines: cpu, cpu_fixed, sim (one case only), or a module of tests.support."""
    for number, case in enumerate(cases):
        save_case(folder / f"{number:03}", case, integers=engine == "cpu_fixed")
    command = [lava_python(), "-m", "tests.support.lava_probe", str(folder), engine, *(["steps"] if steps else [])]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [_result(folder / f"{number:03}") for number in range(len(cases))]


def _result(place: Path) -> Result:
    if (place / "refusal.txt").exists():
        return Result(None, {}, (place / "refusal.txt").read_text())
    with np.load(place / "result.npz") as found:
        spikes, steps = ({name[len(kind) :]: found[name] for name in found.files if name.startswith(kind)}
                         for kind in ("spikes:", "step:"))  # fmt: skip
        return Result(found["scores"], spikes, window_s=float(found["window_s"]), steps=steps)


def random_case(seed: int, *, alike: bool = False) -> Case:
    """A network of what Lava has: images or vectors, pooling, residual adds, recurrence, delays, all resets.

    ``alike``: the neurons of a population have the same parameters, as on a chip.
    """
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(2, 7))
    builder = StepBuilder("random")
    shape: tuple[int, ...] = [(5,), (2, 6, 6), (1, 4, 4)][int(rng.integers(3))]
    sequence = bool(rng.integers(2))
    x = builder.input("x", shape, sequence=sequence)
    if len(shape) == 3:
        x, shape = _image_layers(builder, rng, x, shape, alike)
    width = shape[0]
    for _ in range(int(rng.integers(1, 4))):
        x, width = _dense_layer(builder, rng, x, width, alike)
    classes = int(rng.integers(1, 5))
    y = builder.node("Gemm", x, _weights(builder, rng, (width, classes)), _weights(builder, rng, (classes,)))
    kind = ["", "LI", "CubaLI"][int(rng.integers(3))]
    y = builder.neuron(kind, y, (classes,), **_parameters(kind, rng, ())) if kind else y
    graph = builder.build(y, classes)
    start = int(rng.integers(0, steps))
    spec = graph.spec(steps, READOUTS[seed % 5], (start, int(rng.integers(start + 1, steps + 1))))
    return Case(graph.model, spec, {"x": windows(graph, steps, 3, rng)})


def windows(graph: StepGraph, steps: int, count: int, rng: np.random.Generator) -> Any:
    """Windows of the graph's one input, on the grid."""
    entry = graph.inputs[0]
    time = (steps,) if entry.sequence else ()
    return (rng.integers(0, 17, (count, *time, *entry.shape)) / 16).astype(np.float32)


def _image_layers(
    builder: StepBuilder, rng: np.random.Generator, x: str, shape: tuple[int, ...], alike: bool
) -> tuple[str, tuple[int, ...]]:
    for _ in range(int(rng.integers(1, 3))):
        channels = int(rng.integers(1, 4))
        kernel, stride = int(rng.integers(1, 4)), int(rng.integers(1, 3))
        pad = kernel // 2
        weights = _weights(builder, rng, (channels, shape[0], kernel, kernel))
        x = builder.node(
            "Conv", x, weights, _weights(builder, rng, (channels,)), pads=[pad] * 4, strides=[stride, stride]
        )
        extents = [(extent + 2 * pad - kernel) // stride + 1 for extent in shape[1:]]
        shape = (channels, *extents)
        x = _neuron(builder, rng, x, shape, alike)
        if rng.integers(2) and min(shape[1:]) >= 2:
            x = builder.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
            shape = (channels, shape[1] // 2, shape[2] // 2)
    return builder.node("Flatten", x), (int(np.prod(shape)),)


def _dense_layer(builder: StepBuilder, rng: np.random.Generator, x: str, width: int, alike: bool) -> tuple[str, int]:
    size = int(rng.integers(1, 7))
    current = builder.node("Gemm", x, _weights(builder, rng, (width, size)), _weights(builder, rng, (size,)))
    if rng.integers(3) == 0:  # a current that comes again a step later, its constant part too
        echo = builder.state(f"echo{current}", (size,))
        builder.update(echo, current)
        current = builder.node("Add", current, builder.node("Mul", echo, builder.constant(np.float32(0.5))))
    past = ""
    if rng.integers(2):  # recurrence of one layer
        past = builder.state(f"past{current}", (size,))
        back = builder.node("MatMul", past, _weights(builder, rng, (size, size)))
        current = builder.node("Add", current, back)
    spikes = _neuron(builder, rng, current, (size,), alike)
    if past:
        builder.update(past, spikes)
    if rng.integers(2):
        late = builder.neuron("Delay", spikes, (size,), w=np.eye(4)[:, rng.integers(0, 4, size)])
        spikes = builder.node("Add", late, spikes) if rng.integers(2) else late
    if rng.integers(2):  # a residual connection around one layer
        inner = builder.node("Gemm", spikes, _weights(builder, rng, (size, size)), _weights(builder, rng, (size,)))
        spikes = builder.node("Add", _neuron(builder, rng, inner, (size,), alike), spikes)
    return spikes, size


def _neuron(builder: StepBuilder, rng: np.random.Generator, current: str, shape: tuple[int, ...], alike: bool) -> str:
    op = ["IF", "IFZ", "LIF", "LIFZ", "CubaLIFZ", "Threshold"][int(rng.integers(6))]
    wide = (shape[0], *(1 for _ in shape[1:])) if rng.integers(2) and not alike else ()
    return builder.neuron(op, current, shape, **_parameters(op, rng, wide))


def _parameters(op: str, rng: np.random.Generator, wide: tuple[int, ...]) -> dict[str, Any]:
    made = {
        "v_th": rng.integers(GRID // 2, 2 * GRID, wide) / np.float32(GRID),
        "v_sub": rng.integers(1, 2 * GRID, wide) / np.float32(GRID),
        "v_reset": rng.integers(-GRID, GRID // 2, wide) / np.float32(GRID),
        "decay": rng.choice(DECAYS, wide),
        "bias": rng.integers(-8, 8, wide) / np.float32(GRID),
        "c_decay": rng.choice(DECAYS[:2], wide),
        "c_gain": rng.choice((0.5, 1.0, 2.0), wide),
        "gain": rng.choice((0.5, 1.0), wide),
    }
    names = {
        "IF": ("v_th", "v_sub"),
        "IFZ": ("v_th", "v_reset"),
        "LIF": ("decay", "bias", "v_th", "v_sub"),
        "LIFZ": ("decay", "bias", "v_th", "v_reset"),
        "CubaLIFZ": ("c_decay", "c_gain", "decay", "bias", "gain", "v_th", "v_reset"),
        "Threshold": ("v_th",),
        "LI": ("decay", "bias"),
        "CubaLI": ("c_decay", "c_gain", "decay", "bias", "gain"),
    }
    return {name: made[name] for name in names[op]}


def _weights(builder: StepBuilder, rng: np.random.Generator, shape: tuple[int, ...]) -> str:
    return builder.constant(rng.integers(-GRID, GRID + 1, shape) / np.float32(GRID))
