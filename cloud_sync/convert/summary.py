"""What ``edged-convert`` prints of a report: accuracy and agreement for each T, and both networks side by side.

Says also what looks like a mistake in the command: inputs that were not scaled, an ANN that guesses.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cloud_sync.convert.card import cost_rows, percent
from cloud_sync.convert.network import Floats
from cloud_sync.convert.report import Report
from cloud_sync.convert.timing import Times
from cloud_sync.convert.transformer_report import TransformerReport

_LARGE = 16.0  # normalised images stay below 5, scaled ones within 1, bytes reach 255
_GUESSING = 2.0  # an ANN that is right less than twice as often as chance was not given what it was trained on


def suspicions(samples: Floats) -> Iterator[str]:
    """What the inputs of a network look like, where that is unusual."""
    low, high = float(samples.min()), float(samples.max())
    if max(abs(low), abs(high)) > _LARGE:
        yield f"the network's inputs reach from {low:g} to {high:g}: is --scale 1/255 missing?"
    if np.ptp(samples, axis=0).max() == 0:
        yield "all images are the same: thresholds need images like those in the field"


def lines(report: Report | TransformerReport, times: Times, classes: int) -> Iterator[str]:
    """The report as lines of text."""
    alphabet = values(report.alphabet)
    yield f"spikes are {alphabet}; figures for other spikes at the same T are not comparable"
    for point in report.by_timesteps:
        right = "" if point.accuracy is None else f"{percent(point.accuracy):>8} right, "
        steps = f" ({point.steps} steps)" if point.steps else ""
        yield f"  T = {point.timesteps:<3} {right}{percent(point.agreement):>8} as the ANN{steps}"
    yield from _table(report, times)
    accuracy = report.ann.accuracy
    if accuracy is not None and accuracy < _GUESSING / classes:
        yield f"note: the ANN itself is right on {percent(accuracy)} only: check preprocessing and the order of labels"
    for note in report.notes if isinstance(report, Report) else ():
        yield f"note: {note}"
    if isinstance(report, TransformerReport):
        floating = ", ".join(f"{one.nodes} {one.operation}" for one in report.host)
        yield f"floating point at every step, not spikes: {floating}"


def values(alphabet: tuple[float, ...]) -> str:
    """The values of one spike, in words."""
    if len(alphabet) > 3:
        return f"of {len(alphabet)} values, {', '.join(f'{value:g}' for value in alphabet)} of a neuron's largest"
    return f"{', '.join(f'{value:g}' for value in alphabet[:-1])} and {alphabet[-1]:g}"


def _table(report: Report | TransformerReport, times: Times) -> Iterator[str]:
    rows = [("one image of " + report.evaluated_on, f"spiking, T = {report.timesteps}", "ANN")]
    if report.ann.accuracy is not None:
        rows.append(("right", percent(report.spiking.accuracy), percent(report.ann.accuracy)))
    rows.append(("as the ANN", percent(report.agreement), ""))
    rows += cost_rows(report.spiking, report.ann)
    rows.append(("µs, one thread of this machine", f"{times.spiking_us:,.0f}", f"{times.ann_us:,.0f}"))
    if isinstance(report, Report) and report.unrounded is not None:
        yield f"with float32 weights: {_unrounded(report)}"
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, spiking, ann in rows:
        yield f"  {name:<{widths[0]}}  {spiking:>{widths[1]}}  {ann:>{widths[2]}}"


def _unrounded(report: Report) -> str:
    assert report.unrounded is not None
    whole = report.unrounded
    right = "" if whole.accuracy is None else f"{percent(whole.accuracy)} right, "
    small = report.spiking.footprint.parameters_bytes
    return f"{right}{percent(whole.agreement)} as the ANN, {whole.parameters_bytes:,} bytes instead of {small:,}"
