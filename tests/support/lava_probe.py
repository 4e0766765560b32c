"""``python -m tests.support.lava_probe FOLDER ENGINE``, on Lava's interpreter: run every case below a folder.

A case is a directory with ``step.onnx``, ``manifest.json`` and ``inputs.npz``; what came out goes into ``result.npz``,
or why the network was refused into ``refusal.txt``. Sees more than the wire shows: spikes of every population, and with
the third argument ``steps`` the first window once more, step by step: every output and state of each.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edged.bundle.graph.spec import GraphSpec
from edged.engines.worker.lava.affine import Unsupported
from edged.engines.worker.lava.model import LavaModel
from edged.engines.worker.lava.network import read
from edged.engines.worker.lava.spec import read_graph, read_spec


def main(folder: Path, engine: str, steps: bool) -> None:
    """Run all cases."""
    package = "tests.support" if engine.startswith("lava_") else "edged.engines.worker.lava"
    module = importlib.import_module(f"{package}.{engine}")
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            spec = read_spec(place)
            model = module.make(read(read_graph(place), spec), spec, place)
        except Unsupported as error:
            (place / "refusal.txt").write_text(str(error))
            continue
        with np.load(place / "inputs.npz") as inputs:
            given = {name: inputs[name] for name in inputs.files}
        scores, spikes, began = [], [], time.perf_counter()
        for row in range(len(next(iter(given.values())))):
            scores.append(model.window({name: value[row] for name, value in given.items()}))
            spikes.append(dict(model.spikes))
        took = (time.perf_counter() - began) / len(scores)
        stepped = _steps(model, spec, {name: value[0] for name, value in given.items()}) if steps else {}
        model.close()
        by_name: dict[str, Any] = {f"spikes:{name}": np.stack([one[name] for one in spikes]) for name in spikes[0]}
        np.savez(place / "result.npz", scores=np.stack(scores), window_s=np.array(took), **by_name, **stepped)


def _steps(model: LavaModel, spec: GraphSpec, sample: dict[str, Any]) -> dict[str, Any]:
    """A window by single steps from zero states: ``step:NAME`` (T, size) of the output and of every state."""
    states = {state.input: np.zeros(state.shape, np.float32) for state in spec.states}
    found: dict[str, list[Any]] = {name: [] for name in (spec.output, *states)}
    for t in range(spec.timesteps):
        now = {entry.name: sample[entry.name][t] if entry.sequence else sample[entry.name] for entry in spec.inputs}
        out = model.step(now, states)
        states = {state.input: np.asarray(out[state.input], np.float32).reshape(state.shape) for state in spec.states}
        for name, values in found.items():
            values.append(np.asarray(out[name], np.float32).reshape(-1))
    return {f"step:{name}": np.stack(values) for name, values in found.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], "steps" in sys.argv[3:])
