"""The engine ``lava-sim``: Lava's floating-point models in its own runtime, one process each. For conformance."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lava.magma.core.run_configs import Loihi2SimCfg  # type: ignore[import-not-found]  # in the worker's environment
from lava.proc.io.extractor import (  # type: ignore[import-not-found]  # as above
    Extractor,
    PyLoihiExtractorModel,
)
from lava.proc.io.injector import (  # type: ignore[import-not-found]  # as above
    Injector,
    PyLoihiInjectorModel,
)

from edged.bundle.graph.spec import GraphSpec
from edged.engines.wire import Load
from edged.engines.worker.lava.containment import sweep
from edged.engines.worker.lava.engine import LAVA, Model
from edged.engines.worker.lava.model import LavaModel
from edged.engines.worker.lava.network import Network
from edged.engines.worker.lava.neurons import lif
from edged.engines.worker.lava.runtime import Runtime
from edged.engines.worker.lava.wiring import IN_RUNTIME, wire


class Engine:
    """Lava in its own runtime."""

    version: str = LAVA

    def __init__(self) -> None:
        """Remove what is left of workers whose guard was killed too: not every start comes as far as a runtime."""
        sweep()

    def load(self, load: Load, memory: mmap.mmap, progress: Callable[[str], None]) -> Model:
        """Build the network and start the runtime. Raises Unsupported, naming the node."""
        return Model(load, memory, "lava-sim", make, progress)


def make(network: Network, spec: GraphSpec, bundle: Path) -> LavaModel:
    """A network in the runtime, with Lava's own convolutions; ``bundle`` is not read."""
    del bundle
    wired = wire(network, {p.name: lif(p)._asdict() for p in network.populations}, IN_RUNTIME)
    return LavaModel(network, spec, wired, Runtime(wired, simulated("floating_pt")))


def simulated(tag: str) -> Any:
    """The run configuration for models with a tag. Injector and Extractor have two models each, and no tag."""
    models = {Injector: PyLoihiInjectorModel, Extractor: PyLoihiExtractorModel}
    return Loihi2SimCfg(select_tag=tag, exception_proc_model_map=models)
