"""Pass 4: the folded ANN and its thresholds → the canonical graph of one time step.

Each Relu becomes an IF neuron that starts half full: every state of the domain starts at zero, so "θ/2 of θ" is
written as ``v_th = θ/2, v_sub = θ``, which spikes at the same steps. Where a Relu directly follows a Conv or Dense of
its own, that layer's weights are divided by θ and the neuron counts in units of θ: ``v_th = 1/2, v_sub = 1``.

A spike stands for θ. This gain is folded into the next weights (through pooling and reshaping, which are linear), and
is a Mul only where values of different gains are added or leave the network. The input is the same at every step, or
a sequence of event frames; biases act at every step, the readout is the mean over steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from cloud_sync.convert.emit import emit
from cloud_sync.convert.grid import snapped
from cloud_sync.convert.network import AveragePool, Conv, Dense, Floats, GlobalAveragePool, Layer, Network, Relu, Sum
from edged.bundle.graph.builder import StepBuilder, StepGraph


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
class SpikingNetwork:
    """The step graph and where in it the synapses and the neurons are."""

    graph: StepGraph
    synapses: tuple[Synapses, ...]
    neurons: tuple[Neurons, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Value:
    """A tensor of the step graph; the ANN's value is ``tensor * gain`` on average. gain broadcasts to one sample."""

    tensor: str
    gain: Floats | None = None


def spiking(
    network: Network, thresholds: Mapping[str, Floats], *, exact: bool = False, events: bool = False
) -> SpikingNetwork:
    """Write the step graph of a network without Affine layers; ``thresholds`` has θ (C,) for each Relu's output.

    ``exact`` rounds weights to the grid of ``grid``, so that no engine rounds a sum. ``events``: the input is a
    sequence, at each step another frame of zeros and ones.
    """
    writer = _Writer(network, thresholds, exact=exact, events=events)
    for index, layer in enumerate(network.layers):
        writer.add(layer, index)
    return writer.finish()


class _Writer:
    """Adds layer after layer; remembers under which tensor and with which gain each value of the ANN lives."""

    def __init__(self, network: Network, thresholds: Mapping[str, Floats], *, exact: bool, events: bool) -> None:
        self._network = network
        self._thresholds = thresholds
        self._exact = exact
        self._analogue = None if events else network.input  # event frames are spikes like any other
        self._builder = StepBuilder()
        entry = self._builder.input(network.input, network.input_shape, sequence=events)
        self._values = {network.input: _Value(entry)}
        self._synapses: list[Synapses] = []
        self._neurons: list[Neurons] = []

    def add(self, layer: Layer, index: int) -> None:
        """Write one layer; its inputs have been written."""
        inputs = [self._values[value] for value in layer.inputs]
        name = f"{type(layer.operation).__name__.lower()}{index}"
        match layer.operation:
            case Relu():
                made = self._neuron(layer, inputs[0], name)
            case Conv() | Dense():
                made = self._weighted(layer, inputs[0], name)
            case Sum():
                made = self._sum(layer, inputs, name)
            case AveragePool() | GlobalAveragePool():
                value = inputs[0] if _one_gain_a_channel(inputs[0]) else self._plain(inputs[0])
                made = _Value(emit(self._builder, layer, (value.tensor,), name), value.gain)
            case _:
                gain = _reshaped(inputs[0].gain, self._network.shape(layer.inputs[0]), layer.shape)
                made = _Value(emit(self._builder, layer, (inputs[0].tensor,), name), gain)
        self._values[layer.output] = made

    def finish(self) -> SpikingNetwork:
        """The graph, with the network's output as ``y``."""
        output = self._plain(self._values[self._network.output])
        graph = self._builder.build(output.tensor, self._network.classes)
        return SpikingNetwork(graph, tuple(self._synapses), tuple(self._neurons))

    def _neuron(self, layer: Layer, value: _Value, name: str) -> _Value:
        theta = self._theta(layer)
        counts_in_theta = _same_gain(value, _Value("", theta))
        step = np.ones_like(theta) if counts_in_theta else theta
        current = value.tensor if counts_in_theta else self._plain(value).tensor
        spikes = self._builder.neuron("IF", current, layer.shape, name=name, v_th=step / 2, v_sub=step)
        self._neurons.append(Neurons(spikes, layer.shape, layer.output))
        return _Value(spikes, theta)

    def _weighted(self, layer: Layer, value: _Value, name: str) -> _Value:
        if not _one_gain_a_channel(value) and isinstance(layer.operation, Conv):
            value = self._plain(value)
        theta = self._theta_of_own_relu(layer)
        folded = _rescaled(layer.operation, value.gain, theta)
        if self._exact:
            folded = snapped(folded, analogue=value.tensor == self._analogue)
        self._synapses.append(Synapses(folded, value.tensor, self._network.shape(layer.inputs[0]), layer.shape))
        return _Value(emit(self._builder, replace(layer, operation=folded), (value.tensor,), name), theta)

    def _theta(self, relu: Layer) -> Floats:
        return self._thresholds[relu.output].reshape(-1, *(1,) * (len(relu.shape) - 1))

    def _theta_of_own_relu(self, layer: Layer) -> Floats | None:
        """θ of the Relu that alone reads a layer's output; None where something else reads it."""
        readers = [relu for relu in self._network.relus() if layer.output in relu.inputs]
        return self._theta(readers[0]) if len(readers) == 1 == self._network.uses(layer.output) else None

    def _sum(self, layer: Layer, values: list[_Value], name: str) -> _Value:
        one, other = values
        if not _same_gain(one, other):
            one, other = self._plain(one), self._plain(other)
        return _Value(emit(self._builder, layer, (one.tensor, other.tensor), name), one.gain)

    def _plain(self, value: _Value) -> _Value:
        """The same value with its gain applied."""
        if value.gain is None:
            return value
        return _Value(self._builder.node("Mul", value.tensor, self._builder.constant(value.gain[np.newaxis])))


def _one_gain_a_channel(value: _Value) -> bool:
    return value.gain is None or value.gain.size == value.gain.shape[0]


def _same_gain(one: _Value, other: _Value) -> bool:
    if one.gain is None or other.gain is None:
        return one.gain is other.gain
    return one.gain.shape == other.gain.shape and bool((one.gain == other.gain).all())


def _reshaped(gain: Floats | None, before: tuple[int, ...], after: tuple[int, ...]) -> Floats | None:
    """The gain of a reshaped value: the same number for each element, kept short where a channel shares one."""
    if gain is None:
        return None
    full = np.broadcast_to(gain, before).reshape(after)
    first = full[(slice(None), *(slice(0, 1),) * (len(after) - 1))]
    return np.array(first if (full == first).all() else full)


def _rescaled(operation: object, gain: Floats | None, theta: Floats | None) -> Conv | Dense:
    """The operation for inputs that are short of ``gain``, with outputs in units of ``theta``; products in float64."""
    assert isinstance(operation, Conv | Dense)
    weight, bias = operation.weight.astype(np.float64), operation.bias.astype(np.float64)
    if gain is not None:
        weight *= _on_inputs(operation, gain)
    if theta is not None:
        units = theta.ravel().astype(np.float64)
        bias /= units
        weight /= units if isinstance(operation, Dense) else units.reshape(-1, *(1,) * (weight.ndim - 1))
    return replace(operation, weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def _on_inputs(operation: Conv | Dense, gain: Floats) -> Floats:
    """One gain for each input channel, shaped to multiply the weights."""
    if isinstance(operation, Dense):
        return gain.reshape(-1, 1)
    outputs, inputs = operation.weight.shape[:2]
    by_group = gain.reshape(operation.groups, inputs).repeat(outputs // operation.groups, axis=0)
    return by_group.reshape(outputs, inputs, *(1,) * (operation.weight.ndim - 2))
