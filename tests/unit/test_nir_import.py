"""NIR files become canonical graphs that send the same spikes as an independent simulator of NIR's equations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cloud_sync.convert.errors import ConversionError, RefusedNodesError
from cloud_sync.convert.network import Floats
from cloud_sync.convert.nir.importer import FIELDS
from edged.bundle.graph.plans import window_plan
from edged.bundle.graph.probe import probe_batch
from edged.bundle.graph.stock import Stock
from tests.support.nir_files import Fields, Net, Rules, Simulator
from tests.support.nir_runs import T, imported, single, spikes, stepped
from tests.support.random_nir import ANALOGUE, SPIKING, cell, dense_net, spatial_net


def _certainly(clear: bool) -> None:
    assert clear, "a potential so near to its threshold that rounding decides: take another seed"


def agree(net: Net, rules: Rules, inputs: Floats, path: Path, clear: Callable[[bool], object] = _certainly) -> Floats:
    """Both run the network; ``clear`` is told whether no potential came so near its threshold that rounding decides."""
    simulator = Simulator(net, rules)
    expected = simulator.run(inputs).reshape(len(inputs), -1)
    clear(simulator.margin > 1e-4)
    found = stepped(imported(net, rules, path), inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    return expected


RULES = st.builds(
    Rules,
    dt=st.sampled_from([0.25, 1e-3, 1.0]),
    reset=st.sampled_from(["subtract", "zero", "value"]),
    comparison=st.sampled_from([">", ">="]),
    start=st.sampled_from(["zero", "reset", "leak"]),
    exponential=st.booleans(),
)
MANY = settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow],
)  # fmt: skip


@MANY
@given(seed=st.integers(0, 10**6), rules=RULES, spatial=st.booleans())
def test_random_networks_send_what_the_simulator_sends(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rules: Rules, spatial: bool
) -> None:
    rng = np.random.default_rng(seed)
    net = (spatial_net if spatial else dense_net)(rng, rules)
    agree(net, rules, spikes(rng, tuple(net.nodes["in"]["shape"])), tmp_path_factory.mktemp("net"), assume)


def test_the_random_networks_hold_every_node_type_and_do_spike() -> None:
    """The control of the test above: it would pass on silence."""
    held, active = set(), 0
    for seed in range(120):
        rng, rules = np.random.default_rng(seed), Rules()
        net = (spatial_net if seed % 2 else dense_net)(rng, rules)
        held |= {fields["type"] for fields in net.nodes.values()}
        sent = Simulator(net, rules).run(spikes(rng, tuple(net.nodes["in"]["shape"])))
        active += len(np.unique(sent)) > 1
    assert held == set(FIELDS) - {"Through"}
    assert active > 80


@pytest.mark.parametrize("kind", [*SPIKING, *ANALOGUE])
@pytest.mark.parametrize("reset", ["subtract", "zero", "value"])
@pytest.mark.parametrize("start", ["zero", "reset", "leak"])
def test_a_layer_of_neurons_alone_is_its_equation(kind: str, reset: str, start: str, tmp_path: Path) -> None:
    rng, rules = np.random.default_rng(7), Rules(dt=0.5, reset=reset, start=start)
    net = single(cell(rng, kind, (5,), rules), 5)
    sent = agree(net, rules, rng.normal(0.4, 0.5, (20, 5)).astype(np.float32), tmp_path)
    assert len(np.unique(sent)) > 1


@pytest.mark.parametrize(("comparison", "expected"), [(">=", [0, 1, 0, 1]), (">", [0, 0, 1, 0])])
def test_a_potential_that_equals_its_threshold_fires_as_the_comparison_says(
    comparison: str, expected: list[int], tmp_path: Path
) -> None:
    net = single({"type": "IF", "r": np.ones(1), "v_threshold": np.ones(1)}, 1)
    rules = Rules(dt=0.5, reset="zero", comparison=comparison)
    made = imported(net, rules, tmp_path)
    assert stepped(made, np.ones((4, 1), np.float32)).ravel().tolist() == expected


@pytest.mark.parametrize(("comparison", "expected"), [(">=", [0, 1, 1]), (">", [0, 0, 1])])
def test_a_threshold_may_be_zero(comparison: str, expected: list[int], tmp_path: Path) -> None:
    made = imported(single({"type": "Threshold", "threshold": np.zeros(1)}, 1), Rules(comparison=comparison), tmp_path)
    found = stepped(made, np.array([[-1e-30], [0], [1e-30]], np.float32))
    assert found.ravel().tolist() == expected


@pytest.mark.parametrize("form", ["unrolled", "scan"])
def test_both_window_plans_and_a_batch_hold_for_feedback_and_delays(form: str, tmp_path: Path) -> None:
    for seed in (3, 8, 21, 34):
        rng, rules = np.random.default_rng(seed), Rules()
        made = imported(dense_net(rng, rules), rules, tmp_path)
        spec = made.graph.spec(T, "sum")
        probe_batch(made.graph.model, spec)
        inputs = spikes(rng, made.graph.inputs[0].shape)
        plan = Stock(window_plan(made.graph.model, spec, cast('Literal["unrolled", "scan"]', form)))
        found = plan.run({made.graph.inputs[0].name: inputs[:, np.newaxis]})["readout"][0]
        np.testing.assert_allclose(found, stepped(made, inputs).sum(axis=0), rtol=1e-5, atol=1e-5)


def test_an_inner_graph_is_the_same_as_its_nodes_outside(tmp_path: Path) -> None:
    rng, rules = np.random.default_rng(5), Rules()
    fields = cell(rng, "LIF", (4,), rules)
    back = {"type": "Linear", "weight": rng.normal(0, 0.6, (4, 4))}
    shape = np.array([4])
    ports = {"input": {"type": "Input", "shape": shape}, "output": {"type": "Output", "shape": shape}}
    inner: Fields = {
        "type": "NIRGraph",
        "nodes": {**ports, "lif": fields, "w_rec": back},
        "edges": [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")],
    }
    nested = single(inner, 4)
    flat = Net(
        {"in": nested.nodes["in"], "lif": fields, "w_rec": back, "out": nested.nodes["out"]},
        [("in", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "out")],
        {"w_rec"},
    )
    inputs = spikes(rng, (4,))
    expected = agree(flat, rules, inputs, tmp_path)
    np.testing.assert_array_equal(stepped(imported(nested, rules, tmp_path), inputs), expected)


def test_the_order_of_edges_in_the_file_does_not_matter(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        rng, rules = np.random.default_rng(seed), Rules()
        net = dense_net(rng, rules)
        one = imported(net, rules, tmp_path).graph.model.SerializeToString()
        net.edges = [net.edges[k] for k in rng.permutation(len(net.edges))]
        assert imported(net, rules, tmp_path).graph.model.SerializeToString() == one


def looped(delay: float) -> Net:
    """An IF that hears each of its own spikes again, ``delay`` later and as loud as its threshold."""
    one = np.ones(1)
    nodes: dict[str, Fields] = {
        "in": {"type": "Input", "shape": np.array([1])},
        "fire": {"type": "IF", "r": 1 / 0.25 * one, "v_threshold": one},
        "wait": {"type": "Delay", "delay": delay * one},
        "out": {"type": "Output", "shape": np.array([1])},
    }
    return Net(nodes, [("in", "fire"), ("fire", "wait"), ("wait", "fire"), ("wait", "out")])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_cycle_with_a_delay_takes_as_long_as_the_delay(steps: int, tmp_path: Path) -> None:
    inputs = np.zeros((T, 1), np.float32)
    inputs[0] = 1
    made = imported(looped(0.25 * steps), Rules(comparison=">="), tmp_path)
    rings = [float(t > 0 and t % steps == 0) for t in range(T)]
    assert stepped(made, inputs).ravel().tolist() == rings


def test_spikes_that_are_seen_one_step_later_take_one_step_a_layer(tmp_path: Path) -> None:
    shape, fields = np.array([1]), {"type": "IF", "r": np.ones(1), "v_threshold": np.full(1, 0.5)}
    nodes: dict[str, Fields] = {"in": {"type": "Input", "shape": shape}, "out": {"type": "Output", "shape": shape}}
    net = Net(nodes | {"a": fields, "b": fields}, [("in", "a"), ("a", "b"), ("b", "out")])
    inputs = np.zeros((5, 1), np.float32)
    inputs[0] = 1
    now = stepped(imported(net, Rules(dt=1.0), tmp_path), inputs)
    late = stepped(imported(net, Rules(dt=1.0), tmp_path, emission="next"), inputs)
    assert now.ravel().tolist() == [1, 0, 0, 0, 0]
    assert late.ravel().tolist() == [0, 0, 1, 0, 0]


def test_a_reset_that_is_not_decayed_is_taken_from_the_membrane_of_the_step_after(tmp_path: Path) -> None:
    size, decay, theta = 6, 0.8, 1.0
    ones = np.ones(size)
    fields = {"type": "LIF", "tau": 5 * ones, "r": ones, "v_leak": 0 * ones, "v_threshold": theta * ones}
    inputs = np.random.default_rng(2).uniform(0, 1, (30, size)).astype(np.float32)
    made = imported(single(fields, size), Rules(dt=1.0, reset="subtract"), tmp_path, gain="one", undecayed_reset=True)
    v, spiked, expected = np.zeros(size), np.zeros(size), []
    for x in inputs:
        v = decay * v + x - spiked * theta
        spiked = (v > theta).astype(float)
        expected.append(spiked)
    found = stepped(made, inputs)
    assert 20 < found.sum() < found.size
    np.testing.assert_array_equal(found, np.array(expected))


CHAIN: dict[str, Fields] = {
    "in": {"type": "Input", "shape": np.array([2])},
    "w": {"type": "Affine", "weight": np.eye(2), "bias": np.zeros(2)},
    "lif": {"type": "LIF", "tau": np.full(2, 2.0), "r": np.ones(2), "v_leak": np.zeros(2), "v_threshold": np.ones(2)},
    "out": {"type": "Output", "shape": np.array([2])},
}
EDGES = [("in", "w"), ("w", "lif"), ("lif", "out")]
LIF = CHAIN["lif"]
BROKEN: dict[str, tuple[dict[str, Fields], list[tuple[str, str]], str]] = {
    "an unknown node": ({"lif": {"type": "Izhikevich"}}, EDGES, "Izhikevich 'lif': nir 1.0.8 has no such node"),
    "a field too many": ({"lif": {**LIF, "beta": np.ones(2)}}, EDGES, "the field 'beta' is not known"),
    "a field too few": ({"lif": {"type": "LIF", "tau": np.ones(2)}}, EDGES, "it has no field"),
    "a field of text": ({"lif": {**LIF, "tau": "slow"}}, EDGES, "its tau holds no numbers"),
    "NaN": ({"w": {**CHAIN["w"], "weight": np.full((2, 2), np.nan)}}, EDGES, "weight holds NaN or infinity"),
    "numbers beyond float32": ({"w": {**CHAIN["w"], "bias": np.full(2, 1e39)}}, EDGES, "beyond float32"),
    "a wrong weight": ({"w": {**CHAIN["w"], "weight": np.ones((2, 3))}}, EDGES, "its weight takes 3 numbers"),
    "a wrong parameter": ({"lif": {**LIF, "tau": np.ones(3)}}, EDGES, "its tau has shape [3]"),
    "a negative time constant": ({"lif": {**LIF, "tau": -np.ones(2)}}, EDGES, "its tau is not positive"),
    "a step that is too long": ({"lif": {**LIF, "tau": np.full(2, 0.1)}}, EDGES, "longer than its tau"),
    "a negative threshold": ({"lif": {**LIF, "v_threshold": -np.ones(2)}}, EDGES, "it would fire without input"),
    "a reset above": ({"lif": {**LIF, "v_reset": np.full(2, 2.0)}}, EDGES, "it would fire for ever"),
    "nothing before": ({}, EDGES[1:], "Affine 'w': nothing leads to it"),
    "nothing behind": ({"dead": LIF}, [*EDGES, ("w", "dead")], "LIF 'dead': it leads nowhere"),
    "an edge into the input": ({}, [*EDGES, ("lif", "in")], "something leads into an input"),
    "two outputs": ({"out2": CHAIN["out"]}, [*EDGES, ("lif", "out2")], "the graph has 2 outputs"),
    "no time in a cycle": (
        {"a": CHAIN["w"], "b": CHAIN["w"]},
        [("in", "a"), ("a", "b"), ("b", "a"), ("b", "lif"), ("lif", "out")],
        "cycle 'a, b': there is no neuron in it",
    ),
    "shapes that differ": (
        {"half": {"type": "Linear", "weight": np.ones((1, 2))}},
        [*EDGES, ("in", "half"), ("half", "lif")],
        "what comes in has different shapes: [1], [2]",
    ),
    "feedback of a wrong shape": (
        {"half": {"type": "Linear", "weight": np.ones((1, 2))}},
        [*EDGES, ("lif", "half"), ("half", "w")],
        "'half' leads back to it with shape [1], it takes [2]",
    ),
    "half a step": ({"lif": {"type": "Delay", "delay": np.full(2, 0.3)}}, EDGES, "must be whole steps"),
    "a delay of years": ({"lif": {"type": "Delay", "delay": np.full(2, 1e6)}}, EDGES, "at most 1024 steps"),
    "a delay of nothing in a cycle": (
        {"wait": {"type": "Delay", "delay": np.zeros(2)}},
        [*EDGES, ("lif", "wait"), ("wait", "lif")],
        "it is in a cycle and delays by less than a step",
    ),
    "a picture for a matrix": ({"in": {"type": "Input", "shape": np.array([1, 1, 2])}}, EDGES, "add a Flatten"),
    "padding of a new kind": (
        {
            "in": {"type": "Input", "shape": np.array([1, 2])},
            "w": {"type": "Conv1d", "weight": np.ones((1, 1, 1)), "bias": np.zeros(1), "stride": 1, "padding": "odd",
                  "dilation": 1, "groups": 1, "input_shape": 2},
        },
        EDGES,
        "padding 'odd'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_or_cannot_be_expressed_is_refused_by_name(what: str, tmp_path: Path) -> None:
    nodes, edges, reason = BROKEN[what]
    net = Net({**CHAIN, **nodes}, edges)
    net.nodes = {name: fields for name, fields in net.nodes.items() if any(name in edge for edge in edges)}
    if what == "nothing before":
        net.nodes = {"in": CHAIN["in"], **net.nodes}
    with pytest.raises((RefusedNodesError, ConversionError)) as refused:
        imported(net, Rules(), tmp_path)
    assert reason in str(refused.value)


def test_the_chain_that_they_break_is_whole(tmp_path: Path) -> None:
    assert imported(Net(CHAIN, EDGES), Rules(), tmp_path).graph.classes == 2


def test_everything_that_is_refused_is_named_at_once(tmp_path: Path) -> None:
    net = Net({**CHAIN, "w": {"type": "Transformer"}, "lif": {"type": "Izhikevich"}}, EDGES)
    with pytest.raises(RefusedNodesError) as refused:
        imported(net, Rules(), tmp_path)
    assert {refusal.node for refusal in refused.value.refusals} == {"w", "lif"}
