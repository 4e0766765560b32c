"""A vision transformer and its levels → the canonical graph of one time step, without training.

Two kinds of operations, two ways to keep the ANN's value as a mean over time:

- *Rates*: a tensor whose mean over the steps is the value. Matrices, convolutions, sums and whatever else is linear
  work on rates, biases at every step. What enters a matrix product is first turned into spikes of a few levels by
  ``MultiThreshold`` neurons, which keep the rest for later steps.
- *Running means*: at step t, the mean of steps 1 to t. LayerNorm, GELU, Softmax and the products of two activations
  work on running means: ``Σ/t`` by RunningSum and Clock. Where a rate is needed again, it is the temporal difference
  ``t·f(Σ/t)`` less the same of the step before, by a Mul with t and Difference; its mean over t steps is ``f(Σ/t)``.

A value stays in the form in which it was made until the other is asked for, so a chain of functions (GELU, scale and
Softmax) costs one RunningSum and one Difference. What depends on the constant input alone needs neither: it is the same
at each step. Clocks are one number a row, so rows of different age share a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloud_sync.convert.errors import ConversionError
from cloud_sync.convert.network import Floats
from cloud_sync.convert.transformer_emit import Emitter
from cloud_sync.convert.transformer_graph import Node, Product, Shape, Transformer, stored
from cloud_sync.convert.transformer_levels import calibrate, parameters
from edged.bundle.graph.builder import StepBuilder, StepGraph
from edged.bundle.manifest import MAX_TIMESTEPS

LEVELS = 4  # the tiny ViTs that were measured lose less than a point with these at four steps
MAX_LEVELS = 16  # 2⁻¹⁶ of the largest spike: finer than what float32 sums of a layer keep


@dataclass(frozen=True, slots=True, eq=False)
class Neurons:
    """One layer of neurons: its spike tensor, its shape, and the value of the ANN that it stands for."""

    spikes: str
    shape: Shape
    stands_for: str


@dataclass(frozen=True, slots=True, eq=False)
class Synapses:
    """A Conv or Dense of the network and the tensor of the step graph that it weighs."""

    node: Node
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class SpikingTransformer:
    """The step graph, where in it neurons and synapses are, and the operations that no neuron does."""

    graph: StepGraph
    neurons: tuple[Neurons, ...]
    synapses: tuple[Synapses, ...]
    host: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Converted:
    """A spiking transformer for ``timesteps`` with spikes of ``levels`` sizes, and the ANN that it came from."""

    ann: Transformer
    spiking: SpikingTransformer
    timesteps: int
    levels: int


def convert(network: Transformer, calibration: Floats, timesteps: int, levels: int = LEVELS) -> Converted:
    """Convert a loaded ANN with calibration samples (N, *input_shape).

    The same arguments give the same graph. Raises ConversionError.
    """
    if not 1 <= timesteps <= MAX_TIMESTEPS:
        raise ConversionError(f"{timesteps} timesteps", f"choose 1 to {MAX_TIMESTEPS}")
    if not 1 <= levels <= MAX_LEVELS:
        raise ConversionError(f"{levels} levels", f"choose 1 to {MAX_LEVELS}")
    if calibration.shape[1:] != network.input_shape or not len(calibration):
        raise ConversionError(
            f"the calibration data has shape {calibration.shape}", f"the ANN takes (N, {network.input_shape})"
        )
    largest = calibrate(network, calibration, timesteps, levels)
    return Converted(network, spiking(network, largest, levels), timesteps, levels)


def spiking(network: Transformer, largest: dict[str, float], levels: int = LEVELS) -> SpikingTransformer:
    """Write the step graph; ``largest`` has λ for each value of ``network.spiking()``."""
    writer = _Writer(network, largest, levels)
    for node in network.nodes:
        writer.add(node)
    return writer.finish()


@dataclass(slots=True)
class _Value:
    """A value of the ANN in the step graph, in whichever forms were asked for so far; at least one is there.

    ``shape`` is that of one sample as stored. ``fixed``: the same at each step, so both forms are one tensor.
    """

    shape: Shape
    rate: str = ""
    mean: str = ""
    fixed: bool = False


class _Writer:
    """Adds node after node; remembers under which tensors each value of the ANN lives."""

    def __init__(self, network: Transformer, largest: dict[str, float], levels: int) -> None:
        self._network = network
        self._largest = largest
        self._levels = levels
        self._analogue = network.analogue()
        self._as_means = _read_as_means(network)
        self._builder = StepBuilder()
        self._emitter = Emitter(self._builder, network.shapes)
        entry = self._builder.input(network.input, network.input_shape)
        self._values = {network.input: _Value(network.input_shape, entry, entry, fixed=True)}
        self._spikes: dict[str, _Value] = {}
        self._clocks: dict[int, str] = {}
        self._neurons: list[Neurons] = []
        self._synapses: list[Synapses] = []
        self._host: list[Node] = []

    def add(self, node: Node) -> None:
        """Write one node; its inputs have been written."""
        if node.weighted or isinstance(node.operation, Product):
            values = [self._spiking(name) for name in node.activations]
        else:
            values = [self._values[name] for name in node.activations]
        if node.weighted:
            self._synapses.append(Synapses(node, self._rate(values[0])))
        as_rate = node.linear and self._meet_as_rates(node, values)
        tensors = [self._rate(value) if as_rate else self._mean(value) for value in values]
        made = self._emitter.emit(node, tensors)
        fixed = all(value.fixed for value in values)
        self._values[node.output] = _Value(
            stored(node.shape), made if as_rate or fixed else "", "" if as_rate and not fixed else made, fixed
        )
        if not node.linear:
            self._host.append(node)

    def finish(self) -> SpikingTransformer:
        """The graph, with the network's output as ``y``."""
        output = self._rate(self._values[self._network.output])
        graph = self._builder.build(output, self._network.classes)
        return SpikingTransformer(graph, tuple(self._neurons), tuple(self._synapses), tuple(self._host))

    def _spiking(self, name: str) -> _Value:
        """A value as the spikes of its neurons; the analogue input goes in as it is."""
        value = self._values[name]
        if name in self._analogue:
            return value
        if name not in self._spikes:
            fire, level = parameters(self._largest[name], self._levels)
            label = f"neurons{len(self._neurons)}"
            made = self._builder.neuron(
                "MultiThreshold", self._rate(value), value.shape, name=label, fire=fire, level=level
            )
            self._spikes[name] = _Value(value.shape, made)
            self._neurons.append(Neurons(made, value.shape, name))
        return self._spikes[name]

    def _rate(self, value: _Value) -> str:
        if not value.rate:
            weighted = self._builder.node("Mul", value.mean, self._clock(len(value.shape)))
            value.rate = self._builder.neuron("Difference", weighted, value.shape)
        return value.rate

    def _mean(self, value: _Value) -> str:
        if not value.mean:
            total = self._builder.neuron("RunningSum", value.rate, value.shape)
            value.mean = self._builder.node("Div", total, self._clock(len(value.shape)))
        return value.mean

    def _meet_as_rates(self, node: Node, values: Sequence[_Value]) -> bool:
        """Whether a linear node works on rates: not where running means are all that it has, or all that it is for."""
        if all(value.fixed for value in values):
            return True
        if len(values) == 1 and node.output in self._as_means and not node.weighted:
            return False
        return any(value.rate and not value.fixed for value in values)

    def _clock(self, rank: int) -> str:
        """t, of the rank of samples that it is multiplied with."""
        if not self._clocks:
            self._clocks[1] = self._builder.neuron("Clock", "", (1,), name="clock")
        if rank not in self._clocks:
            shape = self._builder.constant(np.array([0, *(1,) * rank], np.int64))
            self._clocks[rank] = self._builder.node("Reshape", self._clocks[1], shape)
        return self._clocks[rank]


def _read_as_means(network: Transformer) -> set[str]:
    """The values of which nothing but functions of running means is made, directly or by linear nodes."""
    rates = {network.output, *network.spiking()}
    for node in reversed(network.nodes):
        if node.linear and (node.weighted or len(node.activations) > 1 or node.output in rates):
            rates.update(node.activations)
    return {node.output for node in network.nodes} - rates
