"""The engine ``lava-fixed``: what Loihi computes, bit by bit, by Lava's fixed-point models on the CPU.

It is no substitute for the model in floating point: it shows what a model will be on the chip (docs/lava.md).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lava.magma.core.run_configs import Loihi2SimCfg  # type: ignore[import-not-found]  # in the worker's environment

from edged.bundle.graph.spec import GraphSpec
from edged.engines.wire import Load
from edged.engines.worker.lava import cpu
from edged.engines.worker.lava.engine import LAVA, Model
from edged.engines.worker.lava.fixed import Fixed, quantise
from edged.engines.worker.lava.inproc import InProcess
from edged.engines.worker.lava.model import LavaModel
from edged.engines.worker.lava.network import Network
from edged.engines.worker.lava.neurons import Range
from edged.engines.worker.lava.wiring import IN_THREAD, wire

GOLDEN = "golden.npz"
WINDOWS = "free.input"


class Engine:
    """Lava on the CPU, in Loihi's integers."""

    version: str = LAVA

    def load(self, load: Load, memory: mmap.mmap, progress: Callable[[str], None]) -> Model:
        """Build the network. Raises Unsupported, naming the node, where Lava cannot run it."""
        return Model(load, memory, "lava-cpu-fixed", make, progress)


def make(network: Network, spec: GraphSpec, bundle: Path) -> LavaModel:
    """A network on Lava's fixed-point models; the golden windows of ``bundle`` say how large its numbers become."""
    fixed = fit(network, spec, bundle)
    wired = wire(fixed.network, fixed.lifs, IN_THREAD)
    return LavaModel(network, spec, wired, InProcess(wired, Loihi2SimCfg(select_tag="fixed_pt")), fixed)


def fit(network: Network, spec: GraphSpec, bundle: Path) -> Fixed:
    """The network in integers that suit the golden windows. Raises OSError, KeyError, Unsupported."""
    with np.load(bundle / GOLDEN, allow_pickle=False) as golden:
        windows: Any = golden[WINDOWS].astype(np.float32)
    (entry,) = spec.inputs
    floating = cpu.make(network, spec, bundle)
    ranges: dict[str, Range] = {}
    for window in windows:
        floating.window({entry.name: window})
        ranges = {name: found.widened(ranges.get(name, found)) for name, found in floating.ranges().items()}
    return quantise(network, ranges, {entry.name: float(np.abs(windows).max())})
