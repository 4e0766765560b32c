"""How a step graph becomes a network for Lava: what is linear, how deep it is, and what is refused by node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from edged.bundle.graph.builder import StepBuilder
from edged.engines.worker.lava.affine import GATE, Source, Unsupported
from edged.engines.worker.lava.network import Network, read
from edged.engines.worker.lava.neurons import strict
from tests.support.lava import random_case
from tests.support.reference import STANDARD

Build = Callable[[StepBuilder, np.random.Generator], tuple[str, int]]


def network(build: Build, steps: int = 4) -> Network:
    builder = StepBuilder("test")
    y, classes = build(builder, np.random.default_rng(0))
    graph = builder.build(y, classes)
    return read(graph.model, graph.spec(steps))


def weights(b: StepBuilder, rng: np.random.Generator, *shape: int) -> str:
    return b.constant(rng.normal(0, 1, shape).astype(np.float32))


def spikes(b: StepBuilder, rng: np.random.Generator, x: str, width: int, size: int, name: str) -> str:
    return b.neuron("IF", b.node("Gemm", x, weights(b, rng, width, size)), (size,), name=name, v_th=1.0, v_sub=1.0)


# Depths


def test_every_synapse_is_a_step_and_a_shortcut_waits() -> None:
    def build(b: StepBuilder, rng: np.random.Generator) -> tuple[str, int]:
        first = spikes(b, rng, b.input("x", (3,)), 3, 4, "first")
        second = spikes(b, rng, first, 4, 4, "second")
        third = spikes(b, rng, b.node("Add", first, second), 4, 4, "third")
        return third, 4

    found = network(build)
    assert found.depths == {"x": 0, "first": 1, "second": 2, "third": 3}
    extra = {(link.source, link.target): link.extra for link in found.links if link.source != link.target}
    assert extra == {("x", "first"): 0, ("first", "second"): 0, ("first", "third"): 1, ("second", "third"): 0}


def test_recurrence_within_a_layer_needs_no_delay_and_one_over_two_layers_is_refused() -> None:
    def one(b: StepBuilder, rng: np.random.Generator) -> tuple[str, int]:
        past = b.state("past", (4,))
        forward = b.node("Gemm", b.input("x", (3,)), weights(b, rng, 3, 4))
        current = b.node("Add", forward, b.node("MatMul", past, weights(b, rng, 4, 4)))
        fired = b.neuron("IFZ", current, (4,), name="cell", v_th=1.0, v_reset=0.0)
        b.update(past, fired)
        return fired, 4

    (link,) = [link for link in network(one).links if link.source == "cell"]
    assert (link.lag, link.extra) == (1, 0)

    def two(b: StepBuilder, rng: np.random.Generator) -> tuple[str, int]:
        past = b.state("past", (4,))
        forward = b.node("Gemm", b.input("x", (3,)), weights(b, rng, 3, 4))
        current = b.node("Add", forward, b.node("MatMul", past, weights(b, rng, 4, 4)))
        first = b.neuron("IFZ", current, (4,), name="first", v_th=1.0, v_reset=0.0)
        second = spikes(b, rng, first, 4, 4, "second")
        b.update(past, second)
        return second, 4

    with pytest.raises(Unsupported, match=r"node '(first|second)' \(edged\.snn\.IFZ?\): it is part of a loop"):
        network(two)


def test_a_constant_that_comes_late_is_silent_at_first() -> None:
    def build(b: StepBuilder, rng: np.random.Generator) -> tuple[str, int]:
        past = b.state("past", (4,))
        shifted = b.node("Add", b.input("x", (4,)), b.constant(np.full((1, 4), 0.5)))
        b.update(past, shifted)
        return b.neuron("IF", past, (4,), name="late", v_th=1.0, v_sub=1.0), 4

    found = network(build)
    assert {gate.first: value.tolist() for gate, value in found.gates["late"].items()} == {1: [0.5] * 4}
    assert {(link.source, link.lag, link.extra) for link in found.links} == {("x", 1, 1), ("late", 1, 0)}


# Linear maps


def test_what_lies_between_neurons_is_the_matrix_that_the_ops_compute() -> None:
    """A chain of every kind of linear op, applied to unit vectors one by one."""
    rng = np.random.default_rng(1)

    def build(b: StepBuilder, _: np.random.Generator) -> tuple[str, int]:
        x = b.input("x", (2, 6, 6))
        conv = b.node("Conv", x, b.constant(kernel), b.constant(bias), pads=[1, 0, 1, 0], strides=[1, 2], group=2)
        pooled = b.node("AveragePool", conv, kernel_shape=[2, 2], strides=[2, 1], pads=[0, 1, 0, 0])
        turned = b.node("Transpose", pooled, perm=[0, 2, 3, 1])
        flat = b.node("Reshape", turned, b.constant(np.array([0, -1])))
        both = b.node("Concat", flat, b.node("Flatten", x), axis=1)
        current = b.node("Gemm", both, b.constant(matrix), b.constant(offset), transB=1)
        scaled = b.node("Mul", b.node("Sub", current, b.constant(offset)), b.constant(np.float32(0.5)))
        return b.neuron("IF", scaled, (3,), name="cell", v_th=1.0, v_sub=1.0), 3

    kernel, bias = rng.normal(0, 1, (4, 1, 3, 3)).astype(np.float32), rng.normal(0, 1, 4).astype(np.float32)
    width = 4 * 3 * 2 + 72
    matrix, offset = rng.normal(0, 1, (3, width)).astype(np.float32), rng.normal(0, 1, 3).astype(np.float32)
    found = network(build)
    (current,) = [population.current for population in found.populations]

    def through(x: Any) -> Any:
        grouped = [
            STANDARD["Conv"](x[:, k : k + 1], kernel[2 * k : 2 * k + 2], bias[2 * k : 2 * k + 2], pads=[1, 0, 1, 0],
                             strides=[1, 2])[0] for k in range(2)
        ]  # fmt: skip
        conv = np.concatenate(grouped, axis=1)
        padded = np.pad(conv, [(0, 0), (0, 0), (0, 0), (1, 0)])
        counts = np.pad(np.ones_like(conv), [(0, 0), (0, 0), (0, 0), (1, 0)])
        pooled = np.zeros((*conv.shape[:2], 3, 2))
        for y in range(3):
            for z in range(2):
                window = np.s_[:, :, 2 * y : 2 * y + 2, z : z + 2]
                pooled[:, :, y, z] = padded[window].sum((2, 3)) / counts[window].sum((2, 3))
        flat = pooled.transpose(0, 2, 3, 1).reshape(len(x), -1)
        return (np.concatenate([flat, x.reshape(len(x), -1)], axis=1) @ matrix.T) * 0.5

    units = np.concatenate([np.zeros((1, 72)), np.eye(72)]).reshape(-1, 2, 6, 6)
    wanted = through(units)
    np.testing.assert_allclose(current.constant, wanted[0], atol=1e-5)
    np.testing.assert_allclose(current.terms[Source("x")].toarray(), (wanted[1:] - wanted[0]).T, atol=1e-5)


def test_random_networks_are_all_read() -> None:
    found = [read(case.model, case.spec) for case in map(random_case, range(40))]
    assert any(link.extra for one in found for link in one.links)
    assert any(link.lag > 1 for one in found for link in one.links)
    assert any(link.kernel is not None for one in found for link in one.links)
    assert any(gate.first for one in found for gates in one.gates.values() for gate in gates)
    assert any(key.name == GATE for one in found for current in one.currents.values() for key in current.terms)


# The comparison


@given(st.floats(2.0**-100, 2.0**100, width=32))
@settings(max_examples=200)
def test_a_strict_comparison_in_float64_is_the_graphs_in_float32(v_th: float) -> None:
    theta = np.float32(v_th)
    x = float(strict(np.array([theta]))[0])
    middle = (float(theta) + float(np.nextafter(theta, np.float32(0)))) / 2
    near = [np.nextafter(middle, 0), middle, np.nextafter(middle, np.inf), float(theta)]
    near += [float(np.nextafter(theta, np.float32(side))) for side in (0, np.inf)]
    for u in near:
        assert (u > x) == (np.float32(u) >= theta)


# Refusals


def refusing(op: str, **parameters: Any) -> Build:
    def build(b: StepBuilder, rng: np.random.Generator) -> tuple[str, int]:
        first = spikes(b, rng, b.input("x", (3,)), 3, 4, "first")
        return b.neuron(op, first, (4,), name="odd", **parameters), 4

    return build


CUBA = {"c_decay": 0.5, "c_gain": 1.0, "decay": 0.5, "bias": 0.0, "gain": 1.0}


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (refusing("CubaLIF", v_th=1.0, v_sub=1.0, **CUBA), "resets to zero and forgets"),
        (refusing("SignedIF", v_th=1.0, v_sub=1.0), "no negative spikes"),
        (refusing("MultiThreshold", fire=[1.0, 0.5], level=[1.0, 0.5]), "has one threshold"),
        (refusing("RunningSum"), "no neuron that sends a running sum"),
        (refusing("Difference"), "no neuron that sends a difference"),
        (refusing("Threshold", v_th=0.0), "not positive"),
        (refusing("CubaLIFZ", v_th=1.0, v_reset=0.0, **{**CUBA, "gain": 0.0}), "a gain of zero"),
    ],
    ids=["CubaLIF", "SignedIF", "MultiThreshold", "RunningSum", "Difference", "Threshold", "gain"],
)
def test_a_neuron_that_lava_lacks_is_refused_by_name(build: Build, reason: str) -> None:
    with pytest.raises(Unsupported, match=rf"node 'odd' \(edged\.snn\.\w+\): .*{reason}"):
        network(build)


def test_a_clock_is_refused() -> None:
    def build(b: StepBuilder, rng: np.random.Generator) -> tuple[str, int]:
        clock = b.neuron("Clock", "", (1,), name="clock")
        current = b.node("Mul", b.input("x", (3,)), clock)
        return b.neuron("IF", current, (3,), v_th=1.0, v_sub=1.0), 3

    with pytest.raises(Unsupported, match=r"node 'clock' \(edged\.snn\.Clock\)"):
        network(build)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [("Relu", {}), ("MaxPool", {"kernel_shape": [2, 2]}), ("Softmax", {"axis": 1}), ("Exp", {}), ("Sigmoid", {})],
)
def test_an_op_that_is_not_linear_is_refused_by_name(op: str, attributes: dict[str, Any]) -> None:
    def build(b: StepBuilder, rng: np.random.Generator) -> tuple[str, int]:
        made = b.node(op, b.input("x", (1, 4, 4)), name="bent", **attributes)
        flat = b.node("Flatten", made)
        size = 9 if op == "MaxPool" else 16
        return spikes(b, rng, flat, size, 2, "cell"), 2

    with pytest.raises(Unsupported, match=rf"node 'bent' \({op}\): Lava has synapses and neurons only"):
        network(build)


@pytest.mark.parametrize("op", ["Mul", "MatMul"])
def test_a_product_of_two_activations_is_refused(op: str) -> None:
    def build(b: StepBuilder, rng: np.random.Generator) -> tuple[str, int]:
        x = b.input("x", (3, 3))
        made = b.node(op, x, x, name="square")
        return spikes(b, rng, b.node("Flatten", made), 9, 2, "cell"), 2

    with pytest.raises(Unsupported, match=rf"node 'square' \({op}\): a product"):
        network(build)


def test_a_leaky_integrator_may_stand_behind_the_last_spikes_only() -> None:
    def build(b: StepBuilder, rng: np.random.Generator) -> tuple[str, int]:
        first = spikes(b, rng, b.input("x", (3,)), 3, 4, "first")
        trace = b.neuron("LI", first, (4,), name="trace", decay=0.5, bias=0.0)
        return spikes(b, rng, trace, 4, 2, "last"), 2

    with pytest.raises(Unsupported, match=r"node 'last' \(edged\.snn\.IF\): it reads node 'trace' \(LI\)"):
        network(build)


def test_a_loop_without_a_neuron_is_refused() -> None:
    def build(b: StepBuilder, rng: np.random.Generator) -> tuple[str, int]:
        trace = b.state("trace", (3,))
        summed = b.node("Add", b.node("Mul", trace, b.constant(np.float32(0.5))), b.input("x", (3,)))
        b.update(trace, summed)
        return spikes(b, rng, summed, 3, 2, "cell"), 2

    with pytest.raises(Unsupported, match="state 'trace': it feeds back to itself without a neuron"):
        network(build)


def test_a_network_without_neurons_is_refused() -> None:
    def build(b: StepBuilder, rng: np.random.Generator) -> tuple[str, int]:
        return b.node("Gemm", b.input("x", (3,)), weights(b, rng, 3, 2)), 2

    with pytest.raises(Unsupported, match="no spiking neuron"):
        network(build)


def test_a_refusal_names_an_unnamed_node_by_its_output() -> None:
    b, rng = StepBuilder("test"), np.random.default_rng(0)
    b.node("Relu", b.input("x", (3,)), name="bent")
    graph = b.build(spikes(b, rng, "bent", 3, 2, "cell"), 2)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.graph.node[0].CopyFrom(helper.make_node("Relu", ["x"], ["bent"]))
    with pytest.raises(Unsupported, match="node 'bent'"):
        read(model, graph.spec(2))
