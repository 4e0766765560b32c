"""Times ANN and spiking network side by side: one sample, one thread, ONNX Runtime, this machine.

The spiking network runs as a window plan, which is how a CPU runs it. On a CPU it is often the slower one: that is
what the comparison is for.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import onnx

from cloud_sync.convert.ann import build
from cloud_sync.convert.network import Floats
from cloud_sync.convert.pipeline import Converted
from cloud_sync.convert.runtime import Runtime
from edged.bundle.graph.builder import StepGraph
from edged.bundle.graph.plans import window_plan

_RUNS = 200  # the median of so many moves by a few percent
_WARM_UP = 20


@dataclass(frozen=True, slots=True)
class Times:
    """Median time for one sample in microseconds."""

    ann_us: float
    spiking_us: float


def measure(converted: Converted, sample: Floats) -> Times:
    """Time both networks on one sample (1, *input_shape)."""
    return compare(build(converted.ann), converted.spiking.graph, converted.spiking.steps, sample)


def compare(ann: onnx.ModelProto, graph: StepGraph, timesteps: int, sample: Floats) -> Times:
    """Time any ANN, and the faster of the two window plans of a step graph, on one sample."""
    spec = graph.spec(timesteps)
    plans = [window_plan(graph.model, spec, form) for form in ("unrolled", "scan")]
    return Times(
        ann_us=_median_us(ann, sample),
        spiking_us=min(_median_us(plan, sample) for plan in plans),
    )


def _median_us(model: onnx.ModelProto, sample: Floats) -> float:
    runtime = Runtime(model)
    feeds = {model.graph.input[0].name: sample}
    fetches = [model.graph.output[0].name]
    for _ in range(_WARM_UP):
        runtime.run(feeds, fetches)
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter_ns()
        runtime.run(feeds, fetches)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000
