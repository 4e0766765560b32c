"""The engine ``lava``: Lava's floating-point models on the CPU, in this process and one thread."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

from lava.magma.core.run_configs import Loihi2SimCfg  # type: ignore[import-not-found]  # in the worker's environment

from edged.bundle.graph.spec import GraphSpec
from edged.engines.wire import Load
from edged.engines.worker.lava.engine import LAVA, Model
from edged.engines.worker.lava.inproc import InProcess
from edged.engines.worker.lava.model import LavaModel
from edged.engines.worker.lava.network import Network
from edged.engines.worker.lava.neurons import lif
from edged.engines.worker.lava.wiring import IN_THREAD, wire


class Engine:
    """Lava on the CPU."""

    version: str = LAVA

    def load(self, load: Load, memory: mmap.mmap, progress: Callable[[str], None]) -> Model:
        """Build the network. Raises Unsupported, naming the node, where Lava cannot run it."""
        return Model(load, memory, "lava-cpu", make, progress)


def make(network: Network, spec: GraphSpec, bundle: Path) -> LavaModel:
    """A network on Lava's floating-point models; ``bundle`` is not read."""
    del bundle
    wired = wire(network, {p.name: lif(p)._asdict() for p in network.populations}, IN_THREAD)
    return LavaModel(network, spec, wired, InProcess(wired, Loihi2SimCfg(select_tag="floating_pt")))
