"""An engine file: ``lava-fixed`` with one thing wrong, which ``EDGED_TEST_MUTANT`` names; empty: nothing."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lava.magma.core.run_configs import Loihi2SimCfg  # type: ignore[import-not-found]  # in the worker's environment

from edged.bundle.graph.spec import GraphSpec
from edged.engines.wire import Load
from edged.engines.worker.lava.cpu_fixed import fit
from edged.engines.worker.lava.engine import LAVA, Model
from edged.engines.worker.lava.fixed import Fixed
from edged.engines.worker.lava.inproc import InProcess
from edged.engines.worker.lava.model import LavaModel
from edged.engines.worker.lava.network import Link, Network
from edged.engines.worker.lava.wiring import IN_THREAD, wire

MUTANT = "EDGED_TEST_MUTANT"


class Engine:
    """Lava in integers, with a defect."""

    version: str = LAVA

    def load(self, load: Load, memory: mmap.mmap, progress: Callable[[str], None]) -> Model:
        """Build the network."""
        return Model(load, memory, "lava-cpu-fixed", make, progress)


def make(network: Network, spec: GraphSpec, bundle: Path) -> LavaModel:
    """The network that the bundle asks for, with the defect."""
    fixed = fit(network, spec, bundle)
    name = os.environ.get(MUTANT, "")
    if name:
        kind, _, place = name.partition(":")
        fixed = DEFECTS[kind](fixed, network.populations[int(place)].name)
    wired = wire(fixed.network, fixed.lifs, IN_THREAD)
    return LavaModel(network, spec, wired, InProcess(wired, Loihi2SimCfg(select_tag="fixed_pt")), fixed)


def _linked(change: Callable[[Link], Link]) -> Callable[[Fixed, str], Fixed]:
    """A change of what leads into a population from the one before it."""

    def apply(fixed: Fixed, name: str) -> Fixed:
        links = [change(one) if one.target == name != one.source else one for one in fixed.network.links]
        return replace(fixed, network=replace(fixed.network, links=tuple(links)))

    return apply


def _one_up(link: Link) -> Link:
    weights = link.weights.copy()
    weights.data = weights.data + 2  # the least that 8 bits with both signs hold
    return replace(link, weights=weights)


def _threshold(fixed: Fixed, name: str) -> Fixed:
    """One unit more of a threshold, or of the bias that stands for it."""
    lif = dict(fixed.lifs[name])
    if "bias_mant" in lif:
        lif["bias_mant"] = lif["bias_mant"] - 1
    else:
        lif["vth"] = lif["vth"] + 1
    return replace(fixed, lifs={**fixed.lifs, name: lif})


DEFECTS: dict[str, Callable[[Fixed, str], Fixed]] = {
    "weights": _linked(_one_up),
    "shift": _linked(lambda link: replace(link, exponent=link.exponent - 1)),
    "threshold": _threshold,
}
