"""The engine ``lava-fixed``: what Loihi computes, bit by bit, by Lava's fixed-point models on the CPU.

It shows what a model will be on the chip (docs/lava.md), and serves where that is what is wanted.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
from lava.magma.core.run_configs import Loihi2SimCfg  # type: ignore[import-not-found]  # in the worker's environment

from edged.bundle.graph.spec import GraphSpec
from edged.engines.wire import Load
from edged.engines.worker.lava.affine import Unsupported
from edged.engines.worker.lava.engine import LAVA, Model
from edged.engines.worker.lava.fixed import Fixed, quantise
from edged.engines.worker.lava.inproc import InProcess
from edged.engines.worker.lava.model import LavaModel
from edged.engines.worker.lava.network import Network
from edged.engines.worker.lava.spec import golden_name
from edged.engines.worker.lava.wiring import IN_THREAD, wire

SCALE, INPUT = "loihi.scale", "loihi.input"  # the arrays of golden data: units of the currents, and of the messages


class Engine:
    """Lava on the CPU, in Loihi's integers."""

    version: str = LAVA

    def load(self, load: Load, memory: mmap.mmap, progress: Callable[[str], None]) -> Model:
        """Build the network. Raises Unsupported, naming the node, where Lava cannot run it."""
        return Model(load, memory, "lava-cpu-fixed", make, progress)


def make(network: Network, spec: GraphSpec, bundle: Path) -> LavaModel:
    """A network on Lava's fixed-point models, in the integers for which ``bundle`` has golden data."""
    fixed = fit(network, spec, bundle)
    wired = wire(fixed.network, fixed.lifs, IN_THREAD)
    return LavaModel(network, spec, wired, InProcess(wired, Loihi2SimCfg(select_tag="fixed_pt")), fixed)


def fit(network: Network, spec: GraphSpec, bundle: Path) -> Fixed:
    """The network in the integers of the golden data. Raises OSError, Unsupported."""
    with np.load(bundle / golden_name(bundle), allow_pickle=False) as golden:
        if SCALE not in golden.files or len(golden[SCALE]) != len(network.populations):
            raise Unsupported(
                "an engine in integers needs golden data in integers, and this bundle has none; convert it again with "
                "this release, or name another engine"
            )
        scales = {p.name: float(scale) for p, scale in zip(network.populations, golden[SCALE])}  # noqa: B905  # Python 3.8
        return quantise(network, scales, {entry.name: float(golden[INPUT]) for entry in spec.inputs})
