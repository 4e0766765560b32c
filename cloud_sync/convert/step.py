"""The spiking network as the passes behind ``spiking`` see it: its step graph, and what is where in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloud_sync.convert.network import Conv, Dense, Floats
from edged.bundle.graph.builder import StepGraph


@dataclass(frozen=True, slots=True, eq=False)
class Synapses:
    """A weighted layer of the step graph: what it computes on tensor ``source`` with samples of ``source_shape``."""

    operation: Conv | Dense
    source: str
    source_shape: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Neurons:
    """One layer of neurons: its spike tensor, its shape, and the value of the ANN that it stands for."""

    spikes: str
    shape: tuple[int, ...]
    stands_for: str


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A tensor of the step graph; the ANN's value is ``tensor * gain`` on average. gain broadcasts to one sample.

    ``depth`` counts the neurons on the longest way to it; ``moving``: it is not the same at every step.
    """

    tensor: str
    gain: Floats | None = None
    depth: int = 0
    moving: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class SpikingNetwork:
    """The step graph and where in it the synapses and the neurons are.

    ``steps`` is how long it must run. ``analogue`` is the tensor that carries the image (empty: events do),
    ``values`` finds each value of the ANN.
    """

    graph: StepGraph
    synapses: tuple[Synapses, ...]
    neurons: tuple[Neurons, ...]
    steps: int = 0
    analogue: str = ""
    values: Mapping[str, Value] = field(default_factory=dict)
