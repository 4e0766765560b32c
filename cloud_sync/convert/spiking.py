"""Pass 4: the folded ANN and its thresholds → the canonical graph of one time step.

Each Relu becomes a neuron (``firing``). Where a Relu directly follows a Conv or Dense of its own, that layer's weights
are divided by θ and the neuron counts in units of θ.

A spike stands for θ. This gain is folded into the next weights (through pooling and reshaping, which do not mind it),
and is a Mul only where values of different gains are added or leave the network. The input is the same at every step,
or a sequence of event frames; biases act at every step, the readout is the mean over steps.

Averages and sums are taken step by step. A maximum is taken of running sums, RunningSum → MaxPool → Difference: what
has been sent after t steps is the largest of what has been received, so the mean over steps is the largest mean. Of
spikes that makes spikes: sums of 0 and 1 never fall, and their maximum grows by at most one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from cloud_sync.convert.emit import emit
from cloud_sync.convert.firing import Firing, NeuronWriter
from cloud_sync.convert.network import (
    AveragePool,
    Concat,
    Conv,
    Dense,
    Floats,
    GlobalAveragePool,
    Layer,
    MaxPool,
    Network,
    Relu,
    Scale,
    Sum,
)
from cloud_sync.convert.step import Neurons, SpikingNetwork, Synapses, Value
from cloud_sync.convert.weights import Weights, as_they_are
from edged.bundle.graph.builder import StepBuilder


def spiking(
    network: Network,
    thresholds: Mapping[str, Floats],
    timesteps: int = 1,
    *,
    firing: Firing = Firing.BINARY,
    weights: Weights = as_they_are,
    events: bool = False,
) -> SpikingNetwork:
    """Write the step graph of a network without Affine layers; ``thresholds`` has θ (C,) for each Relu's output.

    ``timesteps`` is T, which only ACCUMULATE needs to know. ``weights`` may round them. ``events``: the input is a
    sequence, at each step another frame of zeros and ones.
    """
    writer = _Writer(network, thresholds, timesteps, firing, weights, events=events)
    for index, layer in enumerate(network.layers):
        writer.add(layer, index)
    return writer.finish()


class _Writer:
    """Adds layer after layer; remembers under which tensor and with which gain each value of the ANN lives."""

    def __init__(
        self,
        network: Network,
        thresholds: Mapping[str, Floats],
        timesteps: int,
        firing: Firing,
        weights: Weights,
        *,
        events: bool,
    ) -> None:
        self._network = network
        self._thresholds = thresholds
        self._timesteps = timesteps
        self._firing = firing
        self._weights = weights
        self._builder = StepBuilder()
        self._write = NeuronWriter(self._builder, firing, timesteps)
        entry = self._builder.input(network.input, network.input_shape, sequence=events)
        shown = self._write.shown(entry, len(network.input_shape))
        self._analogue = "" if events else shown  # event frames are spikes like any other
        self._values = {network.input: Value(shown, moving=events or firing is Firing.ACCUMULATE)}
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
            case Sum() | Concat():
                made = self._joined(layer, inputs, name)
            case Scale() as scale:
                made = replace(inputs[0], gain=_times(inputs[0].gain, scale.factor, layer.shape))
            case AveragePool() | GlobalAveragePool() | MaxPool():
                made = self._pool(layer, inputs[0], name)
            case _:
                gain = _reshaped(inputs[0].gain, self._network.shape(layer.inputs[0]), layer.shape)
                made = replace(inputs[0], tensor=emit(self._builder, layer, (inputs[0].tensor,), name), gain=gain)
        self._values[layer.output] = made

    def finish(self) -> SpikingNetwork:
        """The graph, with the network's output as ``y``."""
        last = self._values[self._network.output]
        steps = self._firing.steps(self._timesteps, last.depth)
        if steps != self._timesteps:  # the mean is over all steps, the spikes are worth a T-th each
            factor = np.full(self._network.classes, steps / self._timesteps, np.float32)
            last = replace(last, gain=_times(last.gain, factor, (self._network.classes,)))
        graph = self._builder.build(self._plain(last).tensor, self._network.classes)
        neurons, synapses = tuple(self._neurons), tuple(self._synapses)
        return SpikingNetwork(graph, synapses, neurons, steps, self._analogue, self._values)

    def _neuron(self, layer: Layer, value: Value, name: str) -> Value:
        theta = self._theta(layer)
        counts_in_theta = _same_gain(value, Value("", theta))
        step = np.ones_like(theta) if counts_in_theta else theta
        current = value if counts_in_theta else self._plain(value)
        spikes = self._write.add(current.tensor, layer.shape, step, value.depth, name)
        self._neurons.append(Neurons(spikes, layer.shape, layer.output))
        return Value(spikes, theta, value.depth + 1, moving=True)

    def _weighted(self, layer: Layer, value: Value, name: str) -> Value:
        if not _one_gain_a_channel(value) and isinstance(layer.operation, Conv):
            value = self._plain(value)
        theta = self._theta_of_own_relu(layer)
        folded = _rescaled(layer.operation, value.gain, theta)
        folded = self._weights(folded, analogue=value.tensor == self._analogue)
        self._synapses.append(Synapses(folded, value.tensor, self._network.shape(layer.inputs[0]), layer.shape))
        bias = self._write.bias(folded.bias, len(layer.shape))
        written = folded if bias is None else replace(folded, bias=np.zeros_like(folded.bias))
        tensor = emit(self._builder, replace(layer, operation=written), (value.tensor,), name)
        if bias is not None:
            tensor = self._builder.node("Add", tensor, bias, name=f"{name}.biased")
        return replace(value, tensor=tensor, gain=theta)

    def _pool(self, layer: Layer, value: Value, name: str) -> Value:
        whole = _one_gain_a_channel(value)
        largest = isinstance(layer.operation, MaxPool)
        if not whole or (largest and value.gain is not None and value.gain.min() < 0):
            value = self._plain(value)
        if not largest or not value.moving:
            return replace(value, tensor=emit(self._builder, layer, (value.tensor,), name))
        shape = self._network.shape(layer.inputs[0])
        received = self._builder.neuron("RunningSum", value.tensor, shape, name=f"{name}.received")
        most = emit(self._builder, layer, (received,), f"{name}.most")
        return replace(value, tensor=self._builder.neuron("Difference", most, layer.shape, name=name))

    def _theta(self, relu: Layer) -> Floats:
        return self._thresholds[relu.output].reshape(-1, *(1,) * (len(relu.shape) - 1))

    def _theta_of_own_relu(self, layer: Layer) -> Floats | None:
        """θ of the Relu that alone reads a layer's output; None where something else reads it."""
        readers = [relu for relu in self._network.relus() if layer.output in relu.inputs]
        return self._theta(readers[0]) if len(readers) == 1 == self._network.uses(layer.output) else None

    def _joined(self, layer: Layer, values: list[Value], name: str) -> Value:
        gain = values[0].gain
        if isinstance(layer.operation, Concat):
            if all(_one_gain_a_channel(value) for value in values):
                shapes = [self._network.shape(value) for value in layer.inputs]
                gain = np.concatenate([_by_channel(*pair) for pair in zip(values, shapes, strict=True)])
            else:
                values, gain = [self._plain(value) for value in values], None
        elif not all(_same_gain(values[0], other) for other in values[1:]):
            values, gain = [self._plain(value) for value in values], None
        depth, moving = max(value.depth for value in values), any(value.moving for value in values)
        return Value(emit(self._builder, layer, tuple(value.tensor for value in values), name), gain, depth, moving)

    def _plain(self, value: Value) -> Value:
        """The same value with its gain applied."""
        if value.gain is None:
            return value
        scaled = self._builder.node("Mul", value.tensor, self._builder.constant(value.gain[np.newaxis]))
        return replace(value, tensor=scaled, gain=None)


def _one_gain_a_channel(value: Value) -> bool:
    return value.gain is None or value.gain.size == value.gain.shape[0]


def _same_gain(one: Value, other: Value) -> bool:
    if one.gain is None or other.gain is None:
        return one.gain is other.gain
    return one.gain.shape == other.gain.shape and bool((one.gain == other.gain).all())


def _by_channel(value: Value, shape: tuple[int, ...]) -> Floats:
    """The gain of each channel, (C, 1, …)."""
    gain = np.ones((), np.float32) if value.gain is None else value.gain
    return np.array(np.broadcast_to(gain, (shape[0], *(1,) * (len(shape) - 1))))


def _times(gain: Floats | None, factor: Floats, shape: tuple[int, ...]) -> Floats:
    """A gain times a factor for each channel."""
    by_channel = factor.reshape(-1, *(1,) * (len(shape) - 1))
    return by_channel if gain is None else np.asarray(gain * by_channel, np.float32)


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
