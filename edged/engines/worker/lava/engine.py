"""What the Lava engines have in common: a bundle becomes a network, a batch becomes windows and steps, row by row."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edged.bundle.graph.spec import GraphSpec
from edged.engines.layout import Layout, Role
from edged.engines.wire import Load
from edged.engines.worker.arrays import Arrays
from edged.engines.worker.lava.model import LavaModel
from edged.engines.worker.lava.network import Network, read
from edged.engines.worker.lava.spec import read_graph, read_spec

LAVA = version("lava-nc")


class Make(Protocol):
    """How an engine puts a network on Lava."""

    def __call__(self, network: Network, spec: GraphSpec, bundle: Path) -> LavaModel:
        """The network, ready to run; ``bundle`` is the directory with its golden data."""


class Model:
    """A model that stands, in the shared memory of the daemon."""

    def __init__(self, load: Load, memory: mmap.mmap, plan: str, make: Make, progress: Callable[[str], None]) -> None:
        """Build it. Raises Unsupported, naming the node, where Lava cannot run the network."""
        started = time.perf_counter()
        progress("reading the network")
        bundle = Path(load.bundle_dir)
        spec = read_spec(bundle)
        network = read(read_graph(Path(load.plan_dir)), spec)
        progress("building Lava's processes")
        self._model = make(network, spec, bundle)
        self._arrays = Arrays(memory, load.layout)
        self._layout: Layout = load.layout
        self._sequences = {entry.name for entry in spec.inputs if entry.sequence}
        self.plan = plan
        self.timings = {"load_s": time.perf_counter() - started}

    def infer(self, slot: int, batch: int) -> None:
        """Run windows: INPUT to READOUT."""
        inputs = self._arrays.of(slot, Role.INPUT, batch)
        (readout,) = self._arrays.of(slot, Role.READOUT, batch).values()
        for row in range(batch):
            one = {name: value[:, row] if name in self._sequences else value[row] for name, value in inputs.items()}
            readout[row] = self._model.window(one)

    def step(self, slot: int, batch: int) -> None:
        """Run one time step: STEP_INPUT and STATE to STEP_OUTPUT and NEXT_STATE."""
        inputs, states, outputs, after = (
            self._arrays.of(slot, role, batch)
            for role in (Role.STEP_INPUT, Role.STATE, Role.STEP_OUTPUT, Role.NEXT_STATE)
        )
        for row in range(batch):
            found = self._model.step(_row(inputs, row), _row(states, row))
            for name, value in (*outputs.items(), *after.items()):
                value[row] = np.asarray(found[name], np.float32).reshape(value.shape[1:])


def _row(arrays: dict[str, Any], row: int) -> dict[str, Any]:
    return {name: value[row] for name, value in arrays.items()}
