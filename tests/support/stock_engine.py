"""An engine in the test's own process, on stock ONNX Runtime: the port without worker and wire."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from edged.bundle.graph.plans import Form, window_plan
from edged.bundle.graph.spec import READOUT, GraphSpec
from edged.bundle.graph.stock import Stock
from edged.domain import Array
from edged.ports import Inference


class StockEngine:
    """``step`` runs the step graph, ``infer`` its window plan in the given form."""

    def __init__(self, model: onnx.ModelProto, spec: GraphSpec, form: Form = "unrolled", max_batch: int = 8) -> None:
        self.name = f"stock-{form}"
        self.max_batch = max_batch
        self.spec = spec
        self.stepper = Stock(model)
        self.window = Stock(window_plan(model, spec, form))

    async def infer(self, inputs: Mapping[str, Array]) -> Inference:
        start = time.perf_counter_ns()
        readout: Any = self.window.run(inputs)[READOUT]
        return Inference(np.asarray(readout, dtype=np.float32), time.perf_counter_ns() - start)

    async def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        values = self.stepper.run({**inputs, **states})
        new = {state.input: values[state.output] for state in self.spec.states}
        return {self.spec.output: values[self.spec.output]}, new
