"""What a conversion cost and kept: ``report.json``, with the fields of NeuroBench (Yik et al., 2023) for both networks.

Holds no times: a time belongs to a machine, and the report must be the same wherever it is made. ``timing`` measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloud_sync.convert.evaluate import Activity, accuracy, agreement, run_ann, run_spiking
from cloud_sync.convert.network import Conv, Dense, Floats, Network
from cloud_sync.convert.pipeline import Converted, convert
from cloud_sync.convert.spiking import SpikingNetwork

SCHEMA = "edged.report.v1"
SWEEP = (4, 8, 16, 32)

_FLOAT_BYTES = 4


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


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """The spiking network at another number of steps, thresholds chosen anew."""

    timesteps: int
    accuracy: float | None
    agreement: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report. ``alphabet`` are the values of one spike: figures for other alphabets are not comparable."""

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


def assess(
    original: Network,
    calibration: Floats,
    converted: Converted,
    evaluation: Evaluation,
    *,
    exact: bool = False,
    sweep: Sequence[int] = SWEEP,
) -> Report:
    """Judge a conversion beside its ANN, and the same conversion at every number of steps of ``sweep``."""
    ann = run_ann(converted.ann, evaluation.samples)
    own = run_spiking(converted.spiking, evaluation.samples, converted.timesteps)
    points = []
    for timesteps in sweep:
        scores = own.scores
        if timesteps != converted.timesteps:
            other = convert(original, calibration, timesteps, exact=exact)
            scores = run_spiking(other.spiking, evaluation.samples, timesteps).scores
        points.append(_point(timesteps, scores, ann.scores, evaluation))
    return Report(
        schema=SCHEMA,
        evaluated_on=evaluation.name,
        samples=len(evaluation.samples),
        calibration_samples=len(calibration),
        timesteps=converted.timesteps,
        alphabet=(0, 1),
        exact=exact,
        agreement=share(agreement(own.scores, ann.scores)),
        spiking=spiking_cost(converted.spiking, converted.timesteps, own, evaluation),
        ann=_ann_cost(converted.ann, ann, evaluation),
        by_timesteps=tuple(points),
    )


def encode(report: msgspec.Struct) -> bytes:
    """The report as JSON: the same bytes for the same report."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def _point(timesteps: int, scores: Floats, reference: Floats, evaluation: Evaluation) -> Point:
    right = _accuracy(scores, evaluation)
    return Point(timesteps=timesteps, accuracy=right, agreement=share(agreement(scores, reference)))


def spiking_cost(network: SpikingNetwork, timesteps: int, activity: Activity, evaluation: Evaluation) -> Cost:
    """The fields of a spiking network after ``timesteps`` steps over the samples of an evaluation."""
    neurons = sum(math.prod(state.shape) for state in network.graph.states)
    weights = [synapses.operation for synapses in network.synapses]
    initializers = network.graph.model.graph.initializer
    parameters = sum(math.prod(tensor.dims) for tensor in initializers)
    footprint = Footprint(parameters_bytes=parameters * _FLOAT_BYTES, states_bytes=neurons * _FLOAT_BYTES)
    return _cost(activity, evaluation, footprint, weights, neurons * timesteps)


def _ann_cost(network: Network, activity: Activity, evaluation: Evaluation) -> Cost:
    weights = [layer.operation for layer in network.layers if isinstance(layer.operation, Conv | Dense)]
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
