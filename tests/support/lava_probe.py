"""``python -m tests.support.lava_probe FOLDER ENGINE``, on Lava's interpreter: run every case below a folder.

A case is a directory with ``step.onnx``, ``manifest.json`` and ``inputs.npz``; what came out goes into ``result.npz``,
or why the network was refused into ``refusal.txt``. Sees more than the wire shows: spikes of every population.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edged.engines.worker.lava.affine import Unsupported
from edged.engines.worker.lava.network import read
from edged.engines.worker.lava.spec import read_graph, read_spec


def main(folder: Path, engine: str) -> None:
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
        model.close()
        by_name: dict[str, Any] = {f"spikes:{name}": np.stack([one[name] for one in spikes]) for name in spikes[0]}
        np.savez(place / "result.npz", scores=np.stack(scores), window_s=np.array(took), **by_name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
