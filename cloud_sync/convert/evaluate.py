"""Runs ANN and spiking network over labelled samples and counts: accuracy, agreement, spikes, synaptic operations.

Both run on stock ONNX Runtime; the spiking network as its canonical step graph, step after step from zero state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloud_sync.convert.ann import Ann
from cloud_sync.convert.network import Floats, Network
from cloud_sync.convert.operations import LayerCounter, SynapticOperations
from cloud_sync.convert.progress import Progress, Say, silent
from cloud_sync.convert.runtime import Runtime, batch_size
from cloud_sync.convert.step import SpikingNetwork


@dataclass(frozen=True, slots=True, eq=False)
class Activity:
    """What a network did on some samples. ``sparsity`` is the share of activations (over all steps) that were zero."""

    scores: Floats
    sparsity: float
    operations: SynapticOperations


class _Meter:
    """Adds up what passes through one network: inputs of its weighted layers, outputs of its Relus or neurons."""

    def __init__(self, counters: Sequence[LayerCounter]) -> None:
        self._counters = counters
        self._scores: list[Floats] = []
        self._active = 0
        self._elements = 0

    def see(self, values: Sequence[Floats]) -> None:
        """One pass over a batch: first the inputs of the layers, then the activations."""
        for counter, value in zip(self._counters, values, strict=False):
            counter.see(value)
        activations = values[len(self._counters) :]
        self._active += sum(int(np.count_nonzero(value)) for value in activations)
        self._elements += sum(value.size for value in activations)

    def keep(self, scores: Floats) -> None:
        """The result of one batch."""
        self._scores.append(scores)

    def activity(self) -> Activity:
        """Everything that was seen."""
        scores = np.concatenate(self._scores)
        operations = sum((counter.total(len(scores)) for counter in self._counters), SynapticOperations())
        return Activity(scores, 1 - self._active / self._elements, operations)


def run_ann(network: Network, samples: Floats) -> Activity:
    """One pass of the folded ANN over samples (N, *input_shape)."""
    ann = Ann(network)
    weighted = list(network.weighted())
    meter = _Meter([LayerCounter(made, network.shape(layer.inputs[0]), layer.shape) for layer, made in weighted])
    watched = [*(layer.inputs[0] for layer, _ in weighted), *(relu.output for relu in network.relus())]
    for batch in _batches(samples, ann.batch):
        scores, *values = ann.values(batch, [network.output, *watched])
        meter.see(values)
        meter.keep(scores)
    return meter.activity()


def run_spiking(spiking: SpikingNetwork, samples: Floats, steps: int, say: Say = silent) -> Activity:
    """``steps`` steps from zero state over samples (N, *input_shape), or (N, T, *input_shape) of a sequence.

    Scores are the mean output. ``say`` is told how far it got.
    """
    graph = spiking.graph
    sequence = graph.inputs[0].sequence
    meter = _Meter([LayerCounter(s.operation, s.source_shape, s.shape) for s in spiking.synapses])
    watched = [*(s.source for s in spiking.synapses), *(n.spikes for n in spiking.neurons)]
    runtime = Runtime(graph.model, sorted(set(watched)))
    fetches = [graph.output, *(state.output for state in graph.states), *watched]
    numbers = sum(math.prod(s.source_shape) for s in spiking.synapses) + sum(
        math.prod(n.shape) for n in spiking.neurons
    )
    progress, done = Progress(say, f"images through {steps} steps", len(samples)), 0
    for batch in _batches(samples, batch_size(numbers)):
        feeds = {state.input: np.zeros((len(batch), *state.shape), np.float32) for state in graph.states}
        total = np.zeros((len(batch), graph.classes), np.float32)
        for step in range(steps):
            feeds[graph.inputs[0].name] = np.ascontiguousarray(batch[:, step]) if sequence else batch
            output, *values = runtime.run(feeds, fetches)
            total += output
            feeds |= {state.input: value for state, value in zip(graph.states, values, strict=False)}
            meter.see(values[len(graph.states) :])
        meter.keep(total / np.float32(steps))
        done += len(batch)
        progress.at(done)
    return meter.activity()


def _batches(samples: Floats, size: int) -> Iterator[Floats]:
    return (samples[start : start + size] for start in range(0, len(samples), size))


def accuracy(scores: Floats, labels: NDArray[np.int64]) -> float:
    """Share of samples whose highest score is the label's; ties go to the lowest index."""
    return float((scores.argmax(axis=1) == labels).mean())


def agreement(one: Floats, other: Floats) -> float:
    """Share of samples on which two networks name the same class."""
    return float((one.argmax(axis=1) == other.argmax(axis=1)).mean())
