"""Every op of the domain, alone: its body in ONNX Runtime against equations written apart from it, ties, checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from edged.bundle.golden import make_golden
from edged.bundle.graph.builder import StepBuilder, StepGraph
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.neurons import NEURONS, Neuron
from edged.bundle.graph.plans import window_plan
from edged.bundle.graph.probe import probe_batch
from edged.bundle.graph.spec import READOUT
from edged.bundle.graph.stock import Stock
from edged.errors import BundleError
from tests.support.random_graphs import Scenario, scenarios
from tests.support.reference import Reference

WIDTH = 3
THETA = np.array([0.3, 0.7, 1.1], dtype=np.float32)
LEVELS = np.array([0.8, 0.4, 0.2], dtype=np.float32)
PARAMETERS: dict[str, Any] = {
    "v_th": THETA,
    "v_sub": np.array([0.3, 0.9, 0.5]),
    "v_reset": np.array([0.1, -0.2, 0.3]),
    "decay": np.array([0.9, 0.5, 0.77]),
    "bias": np.array([0.01, -0.03, 0.0]),
    "c_decay": np.array([0.6, 0.3, 0.95]),
    "c_gain": np.array([1.3, 0.4, 0.7]),
    "gain": np.array([0.8, 1.1, 0.6]),
    "fire": 0.75 * LEVELS,
    "level": np.array([0.4, 0.2, 0.2]),
    "w": np.eye(4)[:, [0, 3, 2]],
}


def alone(op: str, *, sequence: bool = True) -> StepGraph:
    """The op between input and output, without anything else."""
    row = NEURONS[op]
    b = StepBuilder(op)
    x = b.input("x", (WIDTH,), sequence=sequence)
    shape = (WIDTH,) if row.current else (1,)
    made = b.neuron(op, x if row.current else "", shape, name="cell", **{k: PARAMETERS[k] for k in row.parameters})
    return b.build(made if row.current else b.node("Mul", x, made), WIDTH)


@pytest.mark.parametrize("op", NEURONS)
@pytest.mark.parametrize("optimized", [False, True])
def test_the_body_computes_the_equation_bit_for_bit(op: str, optimized: bool) -> None:
    graph = alone(op)
    spec = graph.spec(12)
    model = check_step_graph(graph.model, spec)
    stock, reference = Stock(model, optimized=optimized), Reference(model, spec)
    states = reference.zero(5)
    values = np.random.default_rng(0).normal(0.1, 0.6, (12, 5, WIDTH)).astype(np.float32)
    emitted = []
    for x in values:
        found = stock.run({"x": x, **states})
        y, states = reference.step({"x": x}, states)
        np.testing.assert_array_equal(found["y"], y)
        for state in spec.states:
            np.testing.assert_array_equal(found[state.output], states[state.input], err_msg=state.input)
        emitted.append(y)
    assert np.ptp(np.stack(emitted), axis=(0, 1)).all(), "every element answered"


@pytest.mark.parametrize("op", [op for op, row in NEURONS.items() if row.spiking])
def test_the_comparison_is_exact_at_every_threshold(op: str) -> None:
    """The last number below is silent, the threshold itself fires, and so does the next above."""
    graph = alone(op)
    model = check_step_graph(graph.model, graph.spec(1))
    stock, row = Stock(model), NEURONS[op]
    thresholds = 0.75 * LEVELS[:1].repeat(WIDTH) if row.axis == "levels" else THETA
    quiet = {state.input: np.zeros((1, *state.shape), dtype=np.float32) for state in graph.states}
    below, above = (np.nextafter(thresholds, np.float32(side)) for side in (-np.inf, np.inf))
    fired = []
    for current in (below, thresholds, above):
        if "c_gain" in row.parameters or "bias" in row.parameters:  # bring the potential there by the membrane
            fired.append(_fired_at(model, graph, row, current))
        else:
            fired.append(stock.run({"x": current[np.newaxis], **quiet})["y"][0])
    low = 0.4 if row.axis == "levels" else 0  # below the highest level the next one speaks
    np.testing.assert_allclose(fired, [[low] * WIDTH, *[[0.8 if row.axis == "levels" else 1] * WIDTH] * 2], rtol=1e-6)


def _fired_at(model: onnx.ModelProto, graph: StepGraph, row: Neuron, potential: np.ndarray) -> np.ndarray:
    """The emission where u is exactly ``potential``: no bias, no decay, the state alone."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        name = tensor.name.rsplit(".", 1)[-1]
        if name in ("bias", "decay"):
            value = np.full(tensor.dims, name == "decay", dtype=np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    states = {s.input: np.zeros((1, *s.shape), dtype=np.float32) for s in graph.states}
    states[f"cell.{row.membrane}"] = potential[np.newaxis]
    y: np.ndarray = Stock(copy).run({"x": np.zeros((1, WIDTH), dtype=np.float32), **states})["y"][0]
    return y


def test_a_signed_neuron_takes_back_only_what_it_gave() -> None:
    graph = alone("SignedIF")
    stock = Stock(graph.model)
    for owed, u, expected in ((0, -0.1, 0), (1, -0.1, -1), (1, 0.0, 0), (1, 0.29, 0), (1, 1.2, 1)):
        feeds = {"cell.v": np.full((1, 3), u, dtype=np.float32), "cell.e": np.full((1, 3), owed, dtype=np.float32)}
        found = stock.run({"x": np.zeros((1, 3), dtype=np.float32), **feeds})
        assert found["y"][0, 0] == expected, (owed, u)
        assert found["cell.e_next"][0, 0] == owed + expected


def test_a_delay_gives_back_each_element_after_its_own_number_of_steps() -> None:
    graph = alone("Delay")  # the last of four is the newest: delays 3, 0 and 1
    reference, stock = [], Stock(graph.model)
    states = {s.input: np.zeros((1, *s.shape), dtype=np.float32) for s in graph.states}
    values = np.arange(1, 19, dtype=np.float32).reshape(6, 1, 3)
    for x in values:
        found = stock.run({"x": x, **states})
        states = {s.input: found[s.output] for s in graph.states}
        reference.append(found["y"][0])
    delayed = np.stack(reference)
    for element, delay in enumerate((3, 0, 1)):
        expected = np.concatenate([np.zeros(delay), values[: 6 - delay, 0, element]])
        np.testing.assert_array_equal(delayed[:, element], expected)


@pytest.mark.parametrize("op", NEURONS)
@pytest.mark.parametrize("sequence", [False, True])
def test_rows_of_different_age_share_a_batch(op: str, sequence: bool) -> None:
    """A server steps sources that began at different times together; each gets what it would have got alone."""
    graph, steps, rows = alone(op, sequence=sequence), 6, 3
    spec, rng = graph.spec(steps), np.random.default_rng(1)
    stock = Stock(graph.model)
    inputs = rng.normal(0.2, 0.6, (rows, steps if sequence else 1, WIDTH)).astype(np.float32)
    inputs = np.broadcast_to(inputs, (rows, steps, WIDTH))
    alone_y = np.stack([_stepped(stock, graph, inputs[row][:, np.newaxis])[:, 0] for row in range(rows)])
    states = {s.input: np.zeros((rows, *s.shape), dtype=np.float32) for s in spec.states}
    for now in range(steps + rows - 1):  # row k begins at step k
        ages = [now - row for row in range(rows)]
        for row, age in enumerate(ages):
            if age == 0:
                for value in states.values():
                    value[row] = 0
        x = np.stack([inputs[row, min(max(age, 0), steps - 1)] for row, age in enumerate(ages)])
        found = stock.run({"x": np.ascontiguousarray(x), **states})
        states = {s.input: found[s.output].copy() for s in spec.states}
        for row, age in enumerate(ages):
            if 0 <= age < steps:
                np.testing.assert_array_equal(found["y"][row], alone_y[row, age], err_msg=f"row {row}, age {age}")


def _stepped(stock: Stock, graph: StepGraph, inputs: np.ndarray) -> np.ndarray:
    states = {s.input: np.zeros((inputs.shape[1], *s.shape), dtype=np.float32) for s in graph.states}
    outputs = []
    for x in inputs:
        found = stock.run({"x": np.ascontiguousarray(x), **states})
        states = {s.input: found[s.output] for s in graph.states}
        outputs.append(found["y"])
    return np.stack(outputs)


@pytest.mark.parametrize("op", NEURONS)
def test_both_window_plans_and_the_batch_probe_hold_for_the_op(op: str) -> None:
    for sequence in (False, True):
        graph = alone(op, sequence=sequence)
        spec = graph.spec(7, "sum", (2, 6))
        probe_batch(check_step_graph(graph.model, spec), spec)
        shape = (7, 2, WIDTH) if sequence else (2, WIDTH)
        inputs = {"x": np.random.default_rng(2).normal(0.2, 0.6, shape).astype(np.float32)}
        expected, _ = Reference(graph.model, spec).window(inputs)
        for form in ("unrolled", "scan"):
            found = Stock(window_plan(graph.model, spec, form)).run(inputs)[READOUT]
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6, err_msg=form)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a synapse that grows": ("CubaLIF", {"c_decay": 1.1}, "its c_decay must lie between"),
    "levels that rise": ("MultiThreshold", {"fire": [0.1, 0.2, 0.3]}, "its fire must fall"),
    "a level of nothing": ("MultiThreshold", {"level": [0.4, 0.2, 0.0]}, "each level be positive"),
    "levels of two lengths": ("MultiThreshold", {"level": [0.4, 0.2]}, "its fire has 3 levels, its level 2"),
    "two delays at once": ("Delay", {"w": np.ones((4, 3))}, "must hold one 1 along its history"),
    "half a delay": ("Delay", {"w": np.full((2, 3), 0.5)}, "must hold one 1 along its history"),
    "a threshold that does not fit": ("Threshold", {"v_th": np.ones(2)}, "Incompatible dimensions"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_parameters_that_mean_nothing_are_refused(name: str) -> None:
    op, wrong, message = REFUSED[name]
    b = StepBuilder()
    x = b.input("x", (WIDTH,))
    graph = b.build(b.neuron(op, x, (WIDTH,), **{k: PARAMETERS[k] for k in NEURONS[op].parameters} | wrong), WIDTH)
    with pytest.raises(BundleError, match=message):
        check_step_graph(graph.model, graph.spec(2))


def test_a_clock_is_one_number_a_row() -> None:
    b = StepBuilder()
    x = b.input("x", (WIDTH,))
    graph = b.build(b.node("Mul", x, b.neuron("Clock", "", (WIDTH,))), WIDTH)
    with pytest.raises(BundleError, match="a clock is one number a row"):
        check_step_graph(graph.model, graph.spec(2))


def test_a_current_that_would_be_broadcast_over_the_batch_is_refused() -> None:
    """(B,) beside a state (B, 3) lines the batch up with the features: three samples would be mixed."""
    b = StepBuilder()
    x = b.input("x", (WIDTH,))
    flat = b.node("ReduceSum", x, b.constant(np.array([1])), keepdims=0)
    graph = b.build(b.neuron("IF", flat, (WIDTH,), v_th=1.0, v_sub=1.0), WIDTH)
    with pytest.raises(BundleError, match=r"its i has shape \[\], it emits \[3\]|ONNX's own checks|does not match"):
        check_step_graph(graph.model, graph.spec(2))
    b = StepBuilder()
    narrow = b.input("x", (1,))
    graph = b.build(b.neuron("IF", narrow, (WIDTH,), v_th=1.0, v_sub=1.0), WIDTH)
    with pytest.raises(BundleError, match=r"its i has shape \[1\], it emits \[3\]"):
        check_step_graph(graph.model, graph.spec(2))


@pytest.mark.parametrize("op", [op for op, row in NEURONS.items() if row.spiking and row.membrane])
def test_golden_data_holds_ties_for_every_threshold(op: str) -> None:
    b = StepBuilder()
    x = b.input("x", (WIDTH,))
    current = b.node("Gemm", x, b.constant(np.eye(WIDTH)))
    graph = b.build(b.neuron(op, current, (WIDTH,), **{k: PARAMETERS[k] for k in NEURONS[op].parameters}), WIDTH)
    golden = make_golden(check_step_graph(graph.model, graph.spec(6)), graph.spec(6), seed=1)
    (key,) = (name for name in golden if name.startswith("tie.") and name.endswith(".hit"))
    thresholds = {"SignedIF": 2, "MultiThreshold": 6}.get(op, 1)
    hit = golden[key]
    assert hit.shape == (3 * thresholds, WIDTH)
    if NEURONS[op].parameters[0] in ("v_th", "fire"):  # without a decay every potential can be met exactly
        assert hit.all()
    else:
        assert hit.any(axis=1).all()


SEEN: set[str] = set()


@given(scenarios())
@settings(max_examples=120, deadline=None, phases=[Phase.generate], database=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
def test_random_graphs_hold_every_op(scenario: Scenario) -> None:
    SEEN.update(node.op_type for node in scenario.graph.model.graph.node if node.domain)
    if not scenario.spec.inputs[0].sequence:
        SEEN.add("a static input")
    if any(not state.neuron for state in scenario.spec.states):
        SEEN.add("recurrence")


def test_random_graphs_held_every_op() -> None:
    if not SEEN:
        test_random_graphs_hold_every_op()
    assert {*NEURONS, "a static input", "recurrence"} <= SEEN
