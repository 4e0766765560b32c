"""What the manifest's readout makes of the outputs of a window. Runs on Python 3.10 with NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from edged.bundle.graph.spec import ReadoutSpec


def scores(outputs: Any, readout: ReadoutSpec) -> Any:
    """(steps, …, classes) → (…, classes), as the manifest's readout says."""
    chosen = outputs[readout.start : readout.stop]
    if readout.kind == "first_spike":
        fired = chosen > 0
        first = np.where(fired.any(axis=0), fired.argmax(axis=0), len(chosen))
        return (len(chosen) - first).astype(np.float32)
    if readout.kind == "last":
        return chosen[-1]
    if readout.kind == "max":
        return chosen.max(axis=0)
    return chosen.sum(axis=0) if readout.kind == "sum" else chosen.mean(axis=0)


def quantum(readouts: Any, readout: ReadoutSpec) -> float:
    """The effect of one output spike where readouts (N, classes) are counts of spikes; 0 for continuous readouts."""
    steps = readout.stop - readout.start
    gaps = [np.diff(np.unique(column)) for column in readouts.T]
    counts = all(len(gap) <= steps for gap in gaps)
    return max((float(gap.min()) for gap in gaps if gap.size), default=0.0) if counts else 0.0
