"""``report.json`` of a network that was trained as a spiking one: there is no ANN to stand beside it."""

from __future__ import annotations

import msgspec

from cloud_sync.convert.report import Cost

SCHEMA = "edged.report.trained.v1"


class CrossValidated(msgspec.Struct, frozen=True, kw_only=True):
    """What the recipe reached on recordings that each network had not seen. ``deviation`` is between the folds."""

    recordings: int
    accuracy: float
    confidence_95: tuple[float, float]
    deviation: float
    folds: tuple[float, ...]


class TrainedReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report. ``alphabet`` are the values of one spike; the fields of ``spiking`` are NeuroBench's."""

    schema: str
    evaluated_on: str
    samples: int
    timesteps: int
    alphabet: tuple[int, ...]
    exact: bool
    spiking: Cost
    cross_validation: CrossValidated
