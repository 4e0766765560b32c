"""Lava without its corrections, for controls: constant currents act while a population still waits for its input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edged.bundle.graph.spec import GraphSpec
from edged.engines.worker.lava import cpu
from edged.engines.worker.lava.model import LavaModel
from edged.engines.worker.lava.network import Network
from edged.engines.worker.lava.wiring import Wired


def make(network: Network, spec: GraphSpec, bundle: Path) -> LavaModel:
    """The engine ``lava``, with gates that are always open."""
    Wired.gate_values = _always  # type: ignore[method-assign,assignment]  # this process is for the control alone
    return cpu.make(network, spec, bundle)


def _always(wired: Wired, steps: int, length: int) -> Any:
    return np.ones((length, len(wired.gates)), np.int64)
