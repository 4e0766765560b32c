"""``python -m tests.support.tensorrt_cycles BUNDLE PLANS CACHE CYCLES [PACKAGE]``: load, run, unload, again and again.

One line of JSON: how much memory of the GPU was free, and this process's own, after each tenth of the cycles; on the
test double, how many things were allocated. In one process, as no worker of ours does it, so that a leak adds up.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import sys
from pathlib import Path

from edged.engines.layout import Layout, Role, Tensor, lay_out
from edged.engines.wire import Load
from edged.engines.worker.tensorrt.api import Api
from edged.engines.worker.tensorrt.cuda import Cuda
from edged.engines.worker.tensorrt.model import Model

MAX_BATCH = 4


def layout(bundle: Path) -> Layout:
    """As the daemon lays it out."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    classes = (manifest["output"]["classes"],)
    inputs = [(i["name"], tuple(i["shape"]), i["time"] == "sequence") for i in manifest["inputs"]]
    states = [(s["in"], tuple(s["shape"])) for s in manifest["states"]]
    tensors = [(Role.INPUT, Tensor(name, "float32", shape, sequence)) for name, shape, sequence in inputs]
    tensors += [(Role.READOUT, Tensor("readout", "float32", classes))]
    tensors += [(Role.STEP_INPUT, Tensor(name, "float32", shape)) for name, shape, _ in inputs]
    tensors += [(Role.STATE, Tensor(name, "float32", shape)) for name, shape in states]
    tensors += [(Role.STEP_OUTPUT, Tensor(manifest["output"]["name"], "float32", classes))]
    tensors += [(Role.NEXT_STATE, Tensor(name, "float32", shape)) for name, shape in states]
    return lay_out(manifest["timesteps"], MAX_BATCH, tensors)


def main() -> None:
    """Cycles."""
    bundle, plans, cache, cycles = sys.argv[1:5]
    package = sys.argv[5] if len(sys.argv) > 5 else "tensorrt"
    cuda, api = Cuda(), Api(package)
    load = Load("model", "d" * 64, bundle, plans, cache, 900.0, layout(Path(bundle)))
    memory = mmap.mmap(-1, load.layout.size)
    free, own, live = [], [], []
    for cycle in range(int(cycles)):
        model = Model(cuda, api, "f32", load, memory, lambda _: None)
        for batch in (1, MAX_BATCH):
            for _ in range(3):  # call by call, recorded, launched
                model.infer(0, batch)
                model.step(1, batch)
        model.close()
        del model
        gc.collect()
        if (cycle + 1) % max(1, int(cycles) // 10) == 0:
            free.append(cuda.memory()[0])
            own.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"))
            counted = getattr(cuda._library, "fake_live", None)
            live.append(counted() if counted is not None else 0)
    print(json.dumps({"cycles": int(cycles), "free": free, "own": own, "live": live}))


if __name__ == "__main__":
    main()
