"""TensorRT in tests: the plans that it is given, of every bundled model and of random graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from hypothesis import HealthCheck, Phase, given, settings
from onnx import numpy_helper

from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.plans import window_plan
from edged.bundle.graph.quantized import output_axis
from edged.bundle.graph.spec import GraphSpec
from edged.bundle.loaded import Bundle, open_bundle
from tests.support.random_graphs import Scenario, scenarios
from tests.support.tree import ROOT

GRAPHS = 60  # random ones
VARIANTS = ("f32", "fp16", "int8")


@dataclass(frozen=True)
class Subject:
    """A step graph and its unrolled window."""

    name: str
    model: onnx.ModelProto
    spec: GraphSpec

    @property
    def plans(self) -> dict[str, onnx.ModelProto]:
        return {"step": self.model, "window": window_plan(self.model, self.spec, "unrolled")}


def bundles() -> list[Bundle]:
    """Every bundled model."""
    return [open_bundle(path) for path in sorted((ROOT / "models").glob("*/bundle"))]


def subject(bundle: Bundle) -> Subject:
    """A bundle's graph."""
    model = check_step_graph(bundle.read(bundle.manifest.variant.model), bundle.spec)
    return Subject(bundle.name, model, bundle.spec)


def random_scenarios(count: int = GRAPHS) -> list[Scenario]:
    """The same random graphs each time, each with a batch of inputs."""
    found: list[Scenario] = []

    @settings(max_examples=count, database=None, derandomize=True, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(scenarios())
    def collect(scenario: Scenario) -> None:
        found.append(scenario)

    collect()
    return found[:count]


def random_subjects() -> Iterator[tuple[Subject, dict[str, np.ndarray]]]:
    """The random graphs with their inputs."""
    for k, scenario in enumerate(random_scenarios()):
        model = check_step_graph(scenario.graph.model.SerializeToString(), scenario.spec)
        yield Subject(f"random-{k}", model, scenario.spec), scenario.inputs


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its weights as multiples of one step a channel, as ``--weights int8`` makes them."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    axes = {node.input[1]: output_axis(node) for node in made.graph.node if len(node.input) > 1}
    for tensor in made.graph.initializer:
        axis = axes.get(tensor.name)
        if axis is not None:
            weight = numpy_helper.to_array(tensor)
            rest = tuple(k for k in range(weight.ndim) if k != axis)
            peak = np.abs(weight).max(axis=rest, keepdims=True)
            step = (np.where(peak > 0, peak, 127) / np.float32(127)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array((np.round(weight / step) * step).astype(np.float32), tensor.name))
    return made
