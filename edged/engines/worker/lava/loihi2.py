"""The engine ``lava-loihi2``: the network on a Loihi 2 board, through Intel's extension of Lava.

The extension is not public, and neither it nor a board was at hand when this was written: what is tested is how the
engine says that they are missing, and everything up to the run configuration, which ``lava-fixed`` shares.
The board's host comes from the environment: ``EDGED_LOIHI2_HOST`` is ``ethernet:ADDRESS`` or ``slurm:PARTITION``
(``slurm`` alone: any), ``EDGED_LOIHI2_CHIP`` the generation (N3B3 unless it says otherwise).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from lava.utils import loihi  # type: ignore[import-not-found]  # in the worker's environment

from edged.bundle.graph.spec import GraphSpec
from edged.engines.wire import Load
from edged.engines.worker.lava.cpu_fixed import fit
from edged.engines.worker.lava.engine import LAVA, Model
from edged.engines.worker.lava.model import LavaModel
from edged.engines.worker.lava.network import Network
from edged.engines.worker.lava.runtime import Runtime
from edged.engines.worker.lava.wiring import IN_RUNTIME, wire

HOST, CHIP = "EDGED_LOIHI2_HOST", "EDGED_LOIHI2_CHIP"
DEFAULT_CHIP = "N3B3"


class NotPresent(Exception):
    """There is no Loihi 2 here, and why."""


class Engine:
    """Loihi 2."""

    version: str = LAVA

    def __init__(self) -> None:
        """Raises NotPresent."""
        if not loihi.is_installed():
            raise NotPresent("no Loihi 2: Intel's extension of Lava (lava-loihi) is not installed")
        choose_host(os.environ)

    def load(self, load: Load, memory: mmap.mmap, progress: Callable[[str], None]) -> Model:
        """Place the network on the chip. Raises Unsupported, naming the node."""
        return Model(load, memory, "lava-loihi2", make, progress)


def choose_host(environment: Mapping[str, str]) -> None:
    """Tell Lava where the board is. Raises NotPresent where that is not said, not known or not reachable."""
    kind, _, place = environment.get(HOST, "").partition(":")
    try:
        chip = loihi.ChipGeneration(environment.get(CHIP, DEFAULT_CHIP))
        if kind == "ethernet" and place:
            loihi.use_ethernet_host(host_address=place, loihi_gen=chip)
        elif kind == "slurm":
            loihi.use_slurm_host(partition=place or None, loihi_gen=chip)
        else:
            raise NotPresent(f"{HOST} is {kind!r}; it must be ethernet:ADDRESS, slurm or slurm:PARTITION")
    except (ImportError, ValueError) as error:
        raise NotPresent(f"no Loihi 2: {error}") from None


def make(network: Network, spec: GraphSpec, bundle: Path) -> LavaModel:
    """The network in Loihi's integers, in the runtime, with the chip's own neurons and synapses."""
    from lava.magma.core.run_configs import Loihi2HwCfg  # type: ignore[import-not-found]  # needs the extension

    fixed = fit(network, spec, bundle)
    wired = wire(fixed.network, fixed.lifs, IN_RUNTIME)
    return LavaModel(network, spec, wired, Runtime(wired, Loihi2HwCfg(select_tag="fixed_pt")), fixed)
