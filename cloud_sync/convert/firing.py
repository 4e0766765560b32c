"""How a Relu becomes a neuron: three kinds, all of which carry an activation as a number of spikes that stand for θ.

BINARY fires when it holds θ. It starts half full; every state of the domain starts at zero, so "θ/2 of θ" is written
as ``v_th = θ/2, v_sub = θ``, which spikes at the same steps.

SIGNED may take a spike back: it sends -1 when it holds less than nothing and has sent more +1 than -1 (Li et al.,
2022). What it compares with zero must be the true potential, so its θ/2 is a current of the first step.

ACCUMULATE waits until all of its input has arrived, then fires what the sum is worth, at most T spikes: no spike ever
comes too early, and the network equals the ANN with activations rounded to T levels. The image is shown for one step,
T times as bright; biases act in that step too. A layer fires T steps and its last spike is the next one's last input,
so D layers in a row take ``1 + D·(T - 1)`` steps.
"""

from __future__ import annotations

import enum

import numpy as np

from cloud_sync.convert.network import Floats
from edged.bundle.graph.builder import StepBuilder

_TOO_NEGATIVE = -(2.0**100)  # Clip needs a lower bound too; no sum of a network gets here


class Firing(enum.StrEnum):
    """The kind of all neurons of a network."""

    BINARY = "binary"
    SIGNED = "signed"
    ACCUMULATE = "accumulate"

    @property
    def alphabet(self) -> tuple[int, ...]:
        """The values of one spike."""
        return (-1, 0, 1) if self is Firing.SIGNED else (0, 1)

    def steps(self, timesteps: int, depth: int) -> int:
        """How long a network with ``depth`` layers of neurons in a row must run for T = ``timesteps``."""
        return 1 + depth * (timesteps - 1) if self is Firing.ACCUMULATE else timesteps


class Pulses:
    """Tensors (B, 1, …) that are 1 at one step and 0 at all others; each is written once."""

    def __init__(self, builder: StepBuilder) -> None:
        self._builder = builder
        self._clocks: dict[int, str] = {}
        self._written: dict[tuple[int, int], str] = {}

    def at(self, step: int, rank: int) -> str:
        """The pulse of a step (the first is 1), to be broadcast against samples of ``rank`` axes."""
        ones = (1,) * rank
        if rank not in self._clocks:
            self._clocks[rank] = self._builder.neuron("Clock", "", ones, name=f"clock{rank}")
        if (step, rank) not in self._written:
            name = f"step{step}.{rank}"
            since = self._builder.neuron("Threshold", self._clocks[rank], ones, name=f"{name}.since", v_th=float(step))
            self._written[step, rank] = self._builder.neuron("Difference", since, ones, name=name)
        return self._written[step, rank]


class NeuronWriter:
    """Adds layers of neurons of one kind for T = ``timesteps`` to a graph."""

    def __init__(self, builder: StepBuilder, firing: Firing, timesteps: int) -> None:
        self._builder = builder
        self._firing = firing
        self._timesteps = timesteps
        self._pulses = Pulses(builder)

    def add(self, current: str, shape: tuple[int, ...], theta: Floats, depth: int, name: str) -> str:
        """Neurons that fire at ``theta`` (C, 1, …) on a current; returns their spikes.

        ``depth``: how many layers of neurons are on the longest way to the current.
        """
        match self._firing:
            case Firing.BINARY:
                return self._builder.neuron("IF", current, shape, name=name, v_th=theta / 2, v_sub=theta)
            case Firing.SIGNED:
                half = self.at_first(np.asarray(theta / 2, np.float32), len(shape))
                charged = self._builder.node("Add", current, half, name=f"{name}.charged")
                return self._builder.neuron("SignedIF", charged, shape, name=name, v_th=theta, v_sub=theta)
            case Firing.ACCUMULATE:
                total = self._total(current, shape, theta, depth, name)
                return self._builder.neuron("IF", total, shape, name=name, v_th=theta / 2, v_sub=theta)

    def shown(self, image: str, rank: int) -> str:
        """The image, or what takes its place."""
        if self._firing is not Firing.ACCUMULATE:
            return image
        return self._builder.node("Mul", image, self.at_first(np.float32(self._timesteps), rank), name="image.shown")

    def bias(self, bias: Floats, rank: int) -> str | None:
        """The tensor to add in place of a bias that acts at every step, (B, C, 1, …); None where that is right."""
        if self._firing is not Firing.ACCUMULATE:
            return None
        whole = np.asarray(bias * self._timesteps, np.float32)  # all of it at once
        return self.at_first(whole.reshape(-1, *(1,) * (rank - 1)), rank)

    def at_first(self, value: Floats | np.float32, rank: int) -> str:
        """A constant at the first step, zero at all others."""
        constant = np.broadcast_to(value, np.shape(value) or (1,) * rank)[np.newaxis]
        return self._builder.node("Mul", self._pulses.at(1, rank), self._builder.constant(constant))

    def _total(self, current: str, shape: tuple[int, ...], theta: Floats, depth: int, name: str) -> str:
        """The sum of a current, at most T·θ, at the one step at which it is complete."""
        builder, steps = self._builder, self._timesteps
        total = builder.neuron("RunningSum", current, shape, name=f"{name}.sum")
        if (theta == theta.flat[0]).all():
            bounds = [builder.constant(_TOO_NEGATIVE), builder.constant(float(theta.flat[0]) * steps)]
            capped = builder.node("Clip", total, *bounds, name=f"{name}.capped")
        else:
            most = builder.constant((theta * np.float32(steps))[np.newaxis])
            capped = builder.node("Min", total, most, name=f"{name}.capped")
        complete = self._pulses.at(1 + depth * (steps - 1), len(shape))
        return builder.node("Mul", capped, complete, name=f"{name}.total")
