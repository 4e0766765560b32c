"""What a canonical graph of one time step is told about itself: inputs, states, output, time and readout.

Pure values, shared by manifest, builder, checks and plans. Imports neither onnx nor msgspec, and runs on Python 3.10.
Every ``shape`` is that of one sample: no batch axis, no time axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ReadoutKind = Literal["mean", "sum", "last", "max", "first_spike"]
READOUT = "readout"  # the one output of a window plan
BATCH = "B"  # the symbolic axis 0 of every activation


@dataclass(frozen=True)
class InputSpec:
    """One input of the step graph. ``sequence``: it has a new value at every step; else the same value at each."""

    name: str
    shape: tuple[int, ...]
    sequence: bool = False


@dataclass(frozen=True)
class StateSpec:
    """One state: the graph reads tensor ``input`` and writes ``output``, which is ``input`` of the next step.

    ``neuron`` names the op of the ``edged.snn`` domain that owns the state; empty for a plain delayed tensor.
    """

    input: str
    output: str
    shape: tuple[int, ...]
    neuron: str = ""


@dataclass(frozen=True)
class ReadoutSpec:
    """How the outputs y of steps ``start`` ≤ t < ``stop`` become one row of scores.

    ``first_spike`` scores ``stop - t`` for the first step with y > 0 (the earlier, the higher), 0 where there is none.
    """

    kind: ReadoutKind
    start: int
    stop: int


@dataclass(frozen=True)
class GraphSpec:
    """Everything that plans and checks need beside the ONNX file. y is (B, classes)."""

    inputs: tuple[InputSpec, ...]
    states: tuple[StateSpec, ...]
    output: str
    classes: int
    timesteps: int
    readout: ReadoutSpec
