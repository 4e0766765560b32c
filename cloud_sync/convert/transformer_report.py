"""What the conversion of a transformer cost and kept: ``report.json``, with NeuroBench's fields for both networks.

Beside them stands what no neuron does: the operations that stay floating point on the host at every step. Holds no
times, as ``report`` does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from cloud_sync.convert.evaluate import accuracy, agreement
from cloud_sync.convert.network import Conv, Dense, Floats
from cloud_sync.convert.operations import LayerCounter, SynapticOperations
from cloud_sync.convert.progress import Progress, Say, silent
from cloud_sync.convert.report import Cost, Evaluation, Footprint, Operations, Point, four_digits, share
from cloud_sync.convert.runtime import Runtime
from cloud_sync.convert.transformer import Converted, convert
from cloud_sync.convert.transformer_emit import ann
from cloud_sync.convert.transformer_graph import Arithmetic, Node, Product, Shape, Transformer, Unary, stored
from edged.bundle.graph.builder import StepGraph

SCHEMA = "edged.report.transformer.v1"
SWEEP = (1, 2, 4, 8, 16)

_BATCH = 64
_FLOAT_BYTES = 4


class HostOperation(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of operation that stays floating point: how many nodes, results and multiplications a step.

    ``macs`` counts the products of activations only; other functions are counted by their ``results``.
    """

    operation: str
    nodes: int
    results: int
    macs: int


class TransformerReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report. ``alphabet`` are the values of one spike as shares of its neuron's largest: figures for other
    alphabets are not comparable at the same T. ``host`` is done once in the ANN, at every step in the spiking graph."""

    schema: str
    evaluated_on: str
    samples: int
    calibration_samples: int
    timesteps: int
    levels: int
    alphabet: tuple[float, ...]
    agreement: float
    spiking: Cost
    ann: Cost
    host: tuple[HostOperation, ...]
    by_timesteps: tuple[Point, ...]


def assess(
    calibration: Floats,
    converted: Converted,
    evaluation: Evaluation,
    *,
    sweep: Sequence[int] = SWEEP,
    say: Say = silent,
) -> TransformerReport:
    """Judge a conversion beside its ANN, and the same conversion at every number of steps of ``sweep``.

    ``say`` is told how far it got.
    """
    reference = run_ann(converted.ann, evaluation.samples)
    own = run_spiking(converted, evaluation.samples, say)
    points = []
    for timesteps in sweep:
        scores = own.scores
        if timesteps != converted.timesteps:
            other = convert(converted.ann, calibration, timesteps, converted.levels)
            scores = run_spiking(other, evaluation.samples, say).scores
        points.append(
            Point(
                timesteps=timesteps,
                accuracy=_accuracy(scores, evaluation),
                agreement=share(agreement(scores, reference.scores)),
            )
        )
        say(f"  judged T = {timesteps}")
    graph = converted.spiking.graph
    neurons = sum(math.prod(made.shape) for made in converted.spiking.neurons)
    return TransformerReport(
        schema=SCHEMA,
        evaluated_on=evaluation.name,
        samples=len(evaluation.samples),
        calibration_samples=len(calibration),
        timesteps=converted.timesteps,
        levels=converted.levels,
        alphabet=alphabet(converted.levels),
        agreement=share(agreement(own.scores, reference.scores)),
        spiking=_cost(converted.ann, own, evaluation, _footprint(graph), neurons * converted.timesteps),
        ann=_cost(converted.ann, reference, evaluation, _footprint(ann(converted.ann)), 0),
        host=host_operations(converted.spiking.host, converted.ann.shapes),
        by_timesteps=tuple(points),
    )


def alphabet(levels: int) -> tuple[float, ...]:
    """The values of one spike as shares of the largest, in ascending order."""
    sizes = [2.0**-k for k in range(levels)]
    return (*(-size for size in sizes), 0.0, *reversed(sizes))


def host_operations(nodes: Sequence[Node], shapes: Mapping[str, Shape]) -> tuple[HostOperation, ...]:
    """What the nodes do for one sample in one step, by kind."""
    kinds: dict[str, list[Node]] = {}
    for node in nodes:
        kinds.setdefault(_kind(node), []).append(node)
    return tuple(
        HostOperation(
            operation=kind,
            nodes=len(found),
            results=sum(math.prod(node.shape) for node in found),
            macs=sum(
                math.prod(node.shape) * shapes[node.activations[0]][-1]
                for node in found
                if isinstance(node.operation, Product)
            ),
        )
        for kind, found in sorted(kinds.items())
    )


def _kind(node: Node) -> str:
    match node.operation:
        case Unary(op=op) | Arithmetic(op=op):
            return op
    return type(node.operation).__name__


@dataclass(frozen=True, slots=True, eq=False)
class Activity:
    """What a network did on some samples. ``sparsity``: the share of what enters matrix products that was zero."""

    scores: Floats
    sparsity: float
    operations: SynapticOperations


class _Meter:
    """Adds up what enters weighted layers, and how much of what neurons stand for is zero."""

    def __init__(self, network: Transformer, weighted: Sequence[Node]) -> None:
        self._weighted = weighted
        self._counters = [_counter(node, network.shapes[node.activations[0]]) for node in weighted]
        self._zeros = self._elements = 0

    def see(self, inputs: Sequence[Floats], carried: Sequence[Floats]) -> None:
        """One pass over a batch."""
        for node, counter, value in zip(self._weighted, self._counters, inputs, strict=True):
            counter.see(value.reshape(-1, value.shape[-1]) if isinstance(node.operation, Dense) else value)
        self._zeros += sum(int(value.size - np.count_nonzero(value)) for value in carried)
        self._elements += sum(value.size for value in carried)

    def activity(self, scores: Floats) -> Activity:
        """Everything that was seen."""
        done = sum((counter.total(len(scores)) for counter in self._counters), SynapticOperations())
        return Activity(scores, self._zeros / self._elements, done)


def _counter(node: Node, source: Shape) -> LayerCounter:
    """A Dense works on each token by itself: its counter sees tokens."""
    assert isinstance(node.operation, Conv | Dense)
    if isinstance(node.operation, Dense):
        return LayerCounter(node.operation, source[-1:], node.shape[-1:])
    return LayerCounter(node.operation, stored(source), stored(node.shape))


def run_ann(network: Transformer, samples: Floats) -> Activity:
    """One pass of the ANN over samples (N, *input_shape)."""
    weighted = [node for node in network.nodes if node.weighted]
    entering = [node.activations[0] for node in weighted]
    taps = dict.fromkeys((*entering, *network.spiking()))
    graph = ann(network, tuple(taps))
    names = [graph.output, *(f"tap/{value}" for value in taps)]
    runtime, meter, scores = Runtime(graph.model, names), _Meter(network, weighted), []
    for start in range(0, len(samples), _BATCH):
        made, *values = runtime.run({network.input: samples[start : start + _BATCH]}, names)
        by_name = dict(zip(taps, values, strict=True))
        meter.see([by_name[value] for value in entering], [by_name[value] for value in network.spiking()])
        scores.append(made)
    return meter.activity(np.concatenate(scores))


def run_spiking(converted: Converted, samples: Floats, say: Say = silent) -> Activity:
    """All steps of a window from zero state over samples (N, *input_shape). Scores are the mean output.

    ``say`` is told how far it got.
    """
    progress = Progress(say, f"images through {converted.timesteps} steps", len(samples))
    spiking, graph = converted.spiking, converted.spiking.graph
    sources, carried = [made.source for made in spiking.synapses], [made.spikes for made in spiking.neurons]
    fetches = [graph.output, *(state.output for state in graph.states), *sources, *carried]
    runtime = Runtime(graph.model, sorted({*sources, *carried}))
    meter, scores = _Meter(converted.ann, [made.node for made in spiking.synapses]), []
    for start in range(0, len(samples), _BATCH):
        batch = samples[start : start + _BATCH]
        feeds = {state.input: np.zeros((len(batch), *state.shape), np.float32) for state in graph.states}
        total = np.zeros((len(batch), graph.classes), np.float32)
        for _ in range(converted.timesteps):
            made, *values = runtime.run({graph.inputs[0].name: batch, **feeds}, fetches)
            total += made
            feeds = {state.input: value for state, value in zip(graph.states, values, strict=False)}
            seen = values[len(graph.states) :]
            meter.see(seen[: len(sources)], seen[len(sources) :])
        scores.append(total / np.float32(converted.timesteps))
        progress.at(start + len(batch))
    return meter.activity(np.concatenate(scores))


def _footprint(graph: StepGraph) -> Footprint:
    parameters = sum(math.prod(tensor.dims) for tensor in graph.model.graph.initializer)
    states = sum(math.prod(state.shape) for state in graph.states)
    return Footprint(parameters_bytes=parameters * _FLOAT_BYTES, states_bytes=states * _FLOAT_BYTES)


def _cost(
    network: Transformer, activity: Activity, evaluation: Evaluation, footprint: Footprint, membrane_updates: int
) -> Cost:
    weights = [node.operation.weight for node in network.nodes if isinstance(node.operation, Conv | Dense)]
    done = activity.operations
    return Cost(
        accuracy=_accuracy(activity.scores, evaluation),
        footprint=footprint,
        connection_sparsity=share(sum(int((w == 0).sum()) for w in weights) / sum(w.size for w in weights)),
        activation_sparsity=round(activity.sparsity, 3),
        synaptic_operations=Operations(
            effective_macs=four_digits(done.effective_macs),
            effective_acs=four_digits(done.effective_acs),
            dense=done.dense,
        ),
        membrane_updates=membrane_updates,
    )


def _accuracy(scores: Floats, evaluation: Evaluation) -> float | None:
    return None if evaluation.labels is None else share(accuracy(scores, evaluation.labels))
