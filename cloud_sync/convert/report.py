"""What a conversion cost and kept: ``report.json``, with the fields of NeuroBench (Yik et al., 2023) for both networks.

Holds no times: a time belongs to a machine, and the report must be the same wherever it is made. ``timing`` measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from cloud_sync.convert.evaluate import Activity, accuracy, agreement, run_ann, run_spiking
from cloud_sync.convert.firing import Firing
from cloud_sync.convert.network import Conv, Dense, Floats, Network
from cloud_sync.convert.pipeline import Converted, convert
from cloud_sync.convert.progress import Say, silent
from cloud_sync.convert.step import SpikingNetwork

SCHEMA = "edged.report.v1"
SWEEP = (4, 8, 16, 32)

_FLOAT_BYTES = 4
_BYTES = {onnx.TensorProto.INT8: 1}  # of one number; shapes and axes are few


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Samples (N, *input_shape) to judge on, their labels where they are known, and what they are called."""

    samples: Floats
    labels: NDArray[np.int64] | None
    name: str


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """Memory in bytes: weights, biases and thresholds; membrane potentials of one sample."""

    parameters_bytes: int
    states_bytes: int


class Operations(msgspec.Struct, frozen=True, kw_only=True):
    """Synaptic operations for one sample, summed over all steps."""

    effective_macs: float
    effective_acs: float
    dense: float


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """The NeuroBench fields of one network. ``accuracy`` is null without labels.

    ``membrane_updates`` counts every neuron at every step: the neurons here have no way to skip one.
    """

    accuracy: float | None
    footprint: Footprint
    connection_sparsity: float
    activation_sparsity: float
    synaptic_operations: Operations
    membrane_updates: int


class Point(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The spiking network at another T, thresholds chosen anew. ``steps``: how long it runs where that is not T."""

    timesteps: int
    accuracy: float | None
    agreement: float
    steps: int | None = None


class Unrounded(msgspec.Struct, frozen=True, kw_only=True):
    """The same conversion with its weights in float32: what int8 cost, and how large it would be."""

    accuracy: float | None
    agreement: float
    parameters_bytes: int


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The whole report. ``alphabet`` are the values of one spike: figures for other alphabets are not comparable.

    ``steps`` is how long the network runs where that is not T; ``firing`` is binary and ``weights`` are
    float32 where they are absent, else ``unrounded`` stands beside; ``notes`` say what was left out of the ANN.
    """

    schema: str
    evaluated_on: str
    samples: int
    calibration_samples: int
    timesteps: int
    alphabet: tuple[int, ...]
    exact: bool
    agreement: float
    spiking: Cost
    ann: Cost
    by_timesteps: tuple[Point, ...]
    firing: str | None = None
    steps: int | None = None
    weights: str | None = None
    unrounded: Unrounded | None = None
    bias_correction: bool = False
    notes: tuple[str, ...] = ()


def assess(
    original: Network,
    calibration: Floats,
    converted: Converted,
    evaluation: Evaluation,
    *,
    sweep: Sequence[int] = SWEEP,
    say: Say = silent,
) -> Report:
    """Judge a conversion beside its ANN, and the same conversion at every T of ``sweep``."""
    options, spiking = converted.options, converted.spiking
    ann = run_ann(converted.ann, evaluation.samples)
    own = run_spiking(spiking, evaluation.samples, spiking.steps, say)
    points = []
    for timesteps in sweep:
        made, scores = converted, own.scores
        if timesteps != converted.timesteps:
            made = convert(original, calibration, timesteps, options, proof=False)
            scores = run_spiking(made.spiking, evaluation.samples, made.spiking.steps, say).scores
        points.append(_point(made, scores, ann.scores, evaluation))
        say(f"  judged T = {timesteps}")
    return Report(
        schema=SCHEMA,
        evaluated_on=evaluation.name,
        samples=len(evaluation.samples),
        calibration_samples=len(calibration),
        timesteps=converted.timesteps,
        alphabet=options.firing.alphabet,
        exact=options.exact,
        agreement=share(agreement(own.scores, ann.scores)),
        spiking=spiking_cost(spiking, spiking.steps, own, evaluation, converted.stored()),
        ann=_ann_cost(converted.ann, ann, evaluation),
        by_timesteps=tuple(points),
        firing=None if options.firing is Firing.BINARY else str(options.firing),
        steps=_steps(converted),
        weights=None if options.weights == "float32" else options.weights,
        unrounded=None
        if options.weights == "float32"
        else _unrounded(original, calibration, converted, ann, evaluation),
        bias_correction=options.correct_biases,
        notes=original.notes,
    )


def encode(report: msgspec.Struct) -> bytes:
    """The report as JSON: the same bytes for the same report."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def _point(made: Converted, scores: Floats, reference: Floats, evaluation: Evaluation) -> Point:
    right, same = _accuracy(scores, evaluation), share(agreement(scores, reference))
    return Point(timesteps=made.timesteps, accuracy=right, agreement=same, steps=_steps(made))


def _unrounded(
    original: Network, calibration: Floats, converted: Converted, ann: Activity, evaluation: Evaluation
) -> Unrounded:
    options = replace(converted.options, weights="float32")
    made = convert(original, calibration, converted.timesteps, options)
    scores = run_spiking(made.spiking, evaluation.samples, made.spiking.steps).scores
    return Unrounded(
        accuracy=_accuracy(scores, evaluation),
        agreement=share(agreement(scores, ann.scores)),
        parameters_bytes=_parameters_bytes(made.spiking.graph.model),
    )


def _steps(made: Converted) -> int | None:
    return None if made.spiking.steps == made.timesteps else made.spiking.steps


def spiking_cost(
    network: SpikingNetwork,
    steps: int,
    activity: Activity,
    evaluation: Evaluation,
    stored: onnx.ModelProto | None = None,
) -> Cost:
    """The fields of a spiking network after ``steps`` steps over the samples of an evaluation.

    ``stored`` is the graph as its file keeps it, where that is not the one that was run.
    """
    neurons = sum(math.prod(layer.shape) for layer in network.neurons)
    states = sum(math.prod(state.shape) for state in network.graph.states)
    weights = [synapses.operation for synapses in network.synapses]
    parameters_bytes = _parameters_bytes(stored or network.graph.model)
    footprint = Footprint(parameters_bytes=parameters_bytes, states_bytes=states * _FLOAT_BYTES)
    return _cost(activity, evaluation, footprint, weights, neurons * steps)


def _parameters_bytes(model: onnx.ModelProto) -> int:
    return sum(math.prod(t.dims) * _BYTES.get(t.data_type, _FLOAT_BYTES) for t in model.graph.initializer)


def _ann_cost(network: Network, activity: Activity, evaluation: Evaluation) -> Cost:
    weights = [made for _, made in network.weighted()]
    footprint = Footprint(parameters_bytes=network.parameters * _FLOAT_BYTES, states_bytes=0)
    return _cost(activity, evaluation, footprint, weights, 0)


def _cost(
    activity: Activity,
    evaluation: Evaluation,
    footprint: Footprint,
    weights: Sequence[Conv | Dense],
    membrane_updates: int,
) -> Cost:
    zeros = sum(int((operation.weight == 0).sum()) for operation in weights)
    done = activity.operations
    return Cost(
        accuracy=_accuracy(activity.scores, evaluation),
        footprint=footprint,
        connection_sparsity=share(zeros / sum(operation.weight.size for operation in weights)),
        activation_sparsity=round(activity.sparsity, 4),
        synaptic_operations=Operations(
            effective_macs=four_digits(done.effective_macs),
            effective_acs=four_digits(done.effective_acs),
            dense=done.dense,
        ),
        membrane_updates=membrane_updates,
    )


def _accuracy(scores: Floats, evaluation: Evaluation) -> float | None:
    return None if evaluation.labels is None else share(accuracy(scores, evaluation.labels))


def share(value: float) -> float:
    """A share as reports write it."""
    return round(value, 6)  # finer than one sample in a million


def four_digits(value: float) -> float:
    """Counts of what was active: one activation at the brink of zero must not change the report of another machine."""
    return float(f"{value:.4g}")
