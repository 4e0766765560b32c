"""Plans compute what an independent simulator computes, in every form, for any canonical graph."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from edged.bundle.graph.analysis import components
from edged.bundle.graph.builder import StepBuilder
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.plans import Form, window_plan
from edged.bundle.graph.probe import probe_batch
from edged.bundle.graph.spec import READOUT
from edged.bundle.graph.stock import Stock
from tests.support.bundles import GRAPHS, Kind, make_bundle
from tests.support.random_graphs import Scenario, scenarios
from tests.support.reference import Reference

FORMS: tuple[Form, ...] = get_args(Form)
SEVERAL = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(scenarios())
@SEVERAL
def test_the_step_graph_follows_the_table_of_neurons(scenario: Scenario) -> None:
    """States and output of every step, bit for bit: the numbers lie on a grid on which sums are exact."""
    model = check_step_graph(scenario.graph.model, scenario.spec)
    probe_batch(model, scenario.spec)
    stock, reference = Stock(model), Reference(model, scenario.spec)
    sequences = {entry.name for entry in scenario.spec.inputs if entry.sequence}
    first = scenario.spec.inputs[0]
    states = reference.zero(scenario.inputs[first.name].shape[1 if first.sequence else 0])
    for t in range(scenario.spec.timesteps):
        frame = {name: value[t] if name in sequences else value for name, value in scenario.inputs.items()}
        found = stock.run({**frame, **states})
        y, states = reference.step(frame, states)
        np.testing.assert_array_equal(found[scenario.spec.output], y)
        for state in scenario.spec.states:
            np.testing.assert_array_equal(found[state.output], states[state.input], err_msg=state.input)


@given(scenarios())
@SEVERAL
def test_both_window_plans_equal_stepping(scenario: Scenario) -> None:
    expected, _ = Reference(scenario.graph.model, scenario.spec).window(scenario.inputs)
    for form in FORMS:
        plan = window_plan(scenario.graph.model, scenario.spec, form)
        onnx.checker.check_model(plan, full_check=True)
        found = Stock(plan).run(scenario.inputs)
        assert list(found) == [READOUT]
        assert found[READOUT].dtype == np.float32
        np.testing.assert_allclose(found[READOUT], expected, rtol=1e-6, atol=1e-6, err_msg=form)


@pytest.mark.parametrize("kind", list(GRAPHS))
def test_a_window_starts_from_zero_however_often_it_runs(kind: Kind) -> None:
    graph = GRAPHS[kind](np.random.default_rng(1))
    spec = graph.spec(5)
    shape = ((5,) if spec.inputs[0].sequence else ()) + (2, *spec.inputs[0].shape)
    feed = {spec.inputs[0].name: np.random.default_rng(2).random(shape, dtype=np.float32)}
    for form in FORMS:
        session = Stock(window_plan(graph.model, spec, form))
        first = session.run(feed)[READOUT]
        np.testing.assert_array_equal(session.run(feed)[READOUT], first)


def test_what_depends_on_a_constant_input_only_runs_once() -> None:
    graph = GRAPHS["conv"](np.random.default_rng(0))
    for form in FORMS:
        plan = window_plan(graph.model, graph.spec(8), form)
        convs = [node for node in plan.graph.node if node.op_type == "Conv"]
        assert len(convs) == 1
        assert convs[0].input[0] == "image", "the frame itself, not eight copies of it"


def test_stateless_layers_run_once_for_all_steps() -> None:
    graph = GRAPHS["conv"](np.random.default_rng(0))
    for form in FORMS:
        ops = [node.op_type for node in window_plan(graph.model, graph.spec(8), form).graph.node]
        assert [ops.count(op) for op in ("AveragePool", "Gemm", "MatMul")] == [1, 1, 1]


def test_neurons_are_unrolled_or_scanned() -> None:
    graph = GRAPHS["conv"](np.random.default_rng(0))
    unrolled = [node.op_type for node in window_plan(graph.model, graph.spec(8), "unrolled").graph.node]
    scanned = [node.op_type for node in window_plan(graph.model, graph.spec(8), "scan").graph.node]
    assert [unrolled.count(op) for op in ("IF", "LIF", "LI", "Scan")] == [8, 8, 8, 0]
    assert [scanned.count(op) for op in ("IF", "LIF", "LI", "Scan")] == [0, 0, 0, 3]


def test_a_recurrent_layer_is_one_sequential_region() -> None:
    graph = GRAPHS["sequence"](np.random.default_rng(0))
    plan = window_plan(graph.model, graph.spec(8), "scan")
    scans = [node for node in plan.graph.node if node.op_type == "Scan"]
    body = next(attribute.g for attribute in scans[0].attribute if attribute.name == "body")
    assert {"MatMul", "Add", "LIFZ"} <= {node.op_type for node in body.node}
    assert [node.op_type for node in plan.graph.node].count("Gemm") == 1, "the input layer is outside the cycle"


def test_strongly_connected_components_come_after_what_they_read() -> None:
    # 0 reads 1, 1 reads 2, 2 reads 1 (a cycle), 3 reads 3 (a loop), 4 reads nothing
    assert components([[1], [2], [1], [3], []]) == [[2, 1], [0], [3], [4]]
    deep = components([[k + 1] for k in range(50_000)] + [[]])
    assert [part[0] for part in deep] == list(range(50_000, -1, -1)), "no recursion limit"


def test_first_spike_scores_the_earliest_class_highest() -> None:
    b = StepBuilder()
    x = b.input("x", (3,), sequence=True)
    graph = b.build(x, 3)
    trains = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=np.float32)[:, np.newaxis]
    for form in FORMS:
        found = Stock(window_plan(graph.model, graph.spec(4, "first_spike"), form)).run({"x": trains})[READOUT]
        np.testing.assert_array_equal(found, [[3, 2, 0]])
        later = Stock(window_plan(graph.model, graph.spec(4, "first_spike", (2, 4)), form)).run({"x": trains})[READOUT]
        np.testing.assert_array_equal(later, [[1, 2, 0]])


ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "edged":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
try:
    import edged
except ModuleNotFoundError:
    pass
else:
    sys.exit("our code can be imported")
import numpy, onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
feeds = {i.name: numpy.ones([2, *i.shape[1:]], dtype=numpy.float32) for i in session.get_inputs()}
outputs = session.run(None, feeds)
assert all(numpy.isfinite(value).all() for value in outputs)
print([len(value) for value in outputs])
"""


def test_the_model_file_runs_in_stock_onnx_runtime_without_our_code(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "conv", kind="conv")
    run = subprocess.run(
        [sys.executable, "-P", "-c", ALONE, str(bundle.path / "model.onnx")],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, "[2, 2, 2, 2]\n"), run.stderr
