"""Spiking transformers: each transform against a witness in NumPy, and what happens when T grows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cloud_sync.convert.errors import ConversionError
from cloud_sync.convert.network import Dense
from cloud_sync.convert.runtime import Runtime
from cloud_sync.convert.transformer import MAX_LEVELS, Converted, convert
from cloud_sync.convert.transformer_emit import ann
from cloud_sync.convert.transformer_graph import Transformer
from cloud_sync.convert.transformer_levels import carried, largest_level, parameters, spikes
from cloud_sync.convert.transformer_load import transformer
from cloud_sync.convert.transformer_report import host_operations
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.plans import Form, window_plan
from edged.bundle.graph.probe import probe_batch
from tests.support.transformers import (
    SHAPE,
    SPELLINGS,
    WIDTH,
    Doubles,
    VitWriter,
    gelu,
    images,
    layer_norm,
    softmax,
    vit,
)

Floats = NDArray[np.float32]
STEPS = 6


@cache
def network(spelling: str = "plain") -> Transformer:
    return transformer(vit(spelling))


@cache
def converted(spelling: str = "plain", timesteps: int = STEPS, levels: int = 4) -> Converted:
    return convert(network(spelling), images(64, seed=7), timesteps, levels)


def reference(read: Transformer, samples: Floats) -> Floats:
    return Runtime(ann(read).model).run({"x": samples}, ["ann/scores"])[0]


def run(made: Converted, samples: Floats, taps: list[str], steps: int) -> list[list[Floats]]:
    """The output and some tensors of each step, from zero state."""
    graph = made.spiking.graph
    runtime = Runtime(graph.model, taps)
    states = {state.input: np.zeros((len(samples), *state.shape), np.float32) for state in graph.states}
    seen = []
    for _ in range(steps):
        names = [graph.output, *taps, *(state.output for state in graph.states)]
        values = runtime.run({"x": samples, **states}, names)
        states = dict(zip(states, values[1 + len(taps) :], strict=True))
        seen.append(values[: 1 + len(taps)])
    return seen


# Neurons


@given(st.floats(-1, 1), st.integers(1, 6), st.integers(1, 40), st.floats(0.01, 100))
def test_what_a_neuron_still_holds_is_less_than_half_its_largest_level(
    share: float, levels: int, timesteps: int, largest: float
) -> None:
    """So the mean of its spikes comes as near to a current within ±λ as 1/T."""
    current = np.array([share * largest])
    error = np.abs(carried(current, largest, timesteps, levels) - current)
    held = max(0.5, 0.75 * 2.0 ** (1 - levels)) * largest
    assert error[0] <= held / timesteps * (1 + 1e-6)


@settings(max_examples=50)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.integers(1, 6), st.floats(0.1, 5))
def test_a_spike_is_the_largest_level_of_which_the_potential_holds_three_quarters(
    potentials: list[float], levels: int, largest: float
) -> None:
    sizes = [largest * 2.0**-k for k in range(levels)]
    margin = [min(abs(abs(v) - 0.75 * size) for size in sizes) for v in potentials]
    clear = np.array([v for v, gap in zip(potentials, margin, strict=True) if gap > 1e-9] or [0.0])
    wanted = [np.sign(v) * max((size for size in sizes if abs(v) >= 0.75 * size), default=0.0) for v in clear]
    np.testing.assert_allclose(spikes(clear, largest, levels), wanted, rtol=1e-12)
    fire, level = parameters(largest, levels)
    summed = np.sign(clear) * (level * (np.abs(clear)[:, np.newaxis] >= fire)).sum(axis=-1)
    near = np.abs(np.abs(clear)[:, np.newaxis] - fire.astype(np.float64)).min(axis=-1) > 1e-5
    np.testing.assert_allclose(summed[near], np.array(wanted)[near], rtol=1e-5)


def test_the_largest_level_clips_rare_peaks_when_that_carries_the_rest_better() -> None:
    values = np.random.default_rng(0).laplace(0, 1, 5000).astype(np.float32)
    peak = float(np.abs(values).max())
    best = largest_level(values, 2, 3)
    error, without = (((carried(np.abs(values), one, 2, 3) - np.abs(values)) ** 2).mean() for one in (best, peak))
    assert best < peak
    assert error < without
    even = np.linspace(-1, 1, 1001, dtype=np.float32)
    assert 0.25 <= largest_level(even, 8, 4) <= 1
    assert largest_level(np.zeros(10, np.float32), 4, 4) > 0


# Temporal differences


FUNCTIONS: dict[str, tuple[Callable[[VitWriter, str], str], Callable[[Doubles], Doubles]]] = {
    "layer norm": (
        lambda writer, x: writer.node(
            "LayerNormalization",
            x,
            writer.weight(np.linspace(0.5, 1.5, WIDTH)),
            writer.weight(np.full(WIDTH, 0.2)),
            epsilon=1e-5,
        ),
        lambda x: layer_norm(x, np.linspace(0.5, 1.5, WIDTH), 0.2),
    ),
    "softmax": (lambda writer, x: writer.node("Softmax", x, axis=-1), softmax),
    "gelu": (lambda writer, x: writer.gelu(x), gelu),
    "silu": (lambda writer, x: writer.node("Mul", x, writer.node("Sigmoid", x)), lambda x: x / (1 + np.exp(-x))),
    "root of a square": (
        lambda writer, x: writer.node("Sqrt", writer.node("Pow", x, writer.number(2.0))),
        lambda x: np.abs(x),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_after_any_number_of_steps_the_mean_of_outputs_is_the_function_of_the_mean_of_inputs(name: str) -> None:
    write, function = FUNCTIONS[name]
    writer = VitWriter(3)
    hidden = writer.dense(writer.shape("x", 0, 64), 64, WIDTH)
    varying = writer.dense(hidden, WIDTH, WIDTH)
    made = convert(transformer(writer.model(write(writer, varying), SHAPE, WIDTH)), images(32, 7), STEPS, 3)
    synapse = made.spiking.synapses[-1]
    assert isinstance(synapse.node.operation, Dense)
    weight = synapse.node.operation.weight.astype(np.float64)
    bias = next(node for node in made.ann.nodes if synapse.node.output in node.activations).inputs[1]
    assert not isinstance(bias, str)
    total_in, total_out, differences = np.zeros((5, WIDTH)), np.zeros((5, WIDTH)), 0.0
    for step, (output, spiked) in enumerate(run(made, images(5), [synapse.source], STEPS), start=1):
        total_in += spiked.astype(np.float64) @ weight + bias
        before = total_out / max(step - 1, 1)
        total_out += output
        differences += float(np.abs(total_out / step - before).max())
        np.testing.assert_allclose(total_out / step, function(total_in / step), atol=2e-5)
    assert differences > 0.05  # the control: the running mean did move


def test_a_product_of_two_activations_is_the_product_of_the_means_of_their_spikes() -> None:
    writer = VitWriter(4)
    tokens = writer.embedding()
    left, right = (writer.dense(tokens, WIDTH, WIDTH) for _ in range(2))
    product = writer.node("MatMul", left, writer.node("Transpose", right, perm=[0, 2, 1]))
    made = convert(transformer(writer.model(writer.shape(product, 0, 16), SHAPE, 16)), images(32, 7), STEPS, 3)
    first, second = made.spiking.neurons[-2:]  # the tokens have neurons too
    sums: list[Doubles] = [np.zeros((5, *first.shape)), np.zeros((5, *second.shape))]
    total = np.zeros((5, 16))
    for step, (output, *spiked) in enumerate(run(made, images(5), [first.spikes, second.spikes], STEPS), start=1):
        sums = [one + new for one, new in zip(sums, spiked, strict=True)]
        total += output
        np.testing.assert_allclose(total / step, (sums[0] / step @ (sums[1] / step)).reshape(5, 16), atol=2e-5)


# The whole network


def test_the_scores_come_nearer_to_the_anns_as_t_grows() -> None:
    samples = images(40)
    wanted = reference(network(), samples)
    errors = []
    for timesteps in (2, 8, 32):
        outputs = run(converted(timesteps=timesteps), samples, [], timesteps)
        errors.append(float(np.abs(np.mean([one for (one,) in outputs], axis=0) - wanted).mean()))
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[1]
    assert errors[2] < 0.05 * float(wanted.std())


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_graph_is_canonical_and_no_row_of_a_batch_sees_another(spelling: str) -> None:
    graph = converted(spelling).spiking.graph
    spec = graph.spec(STEPS)
    probe_batch(check_step_graph(graph.model, spec), spec)


@pytest.mark.parametrize("form", ["unrolled", "scan"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_window_plan_gives_what_steps_give(spelling: str, form: Form) -> None:
    made, samples = converted(spelling), images(10)
    graph = made.spiking.graph
    plan = window_plan(graph.model, graph.spec(STEPS), form)
    (scores,) = Runtime(plan).run({"x": samples}, ["readout"])
    stepped = np.mean([output for (output,) in run(made, samples, [], STEPS)], axis=0)
    flipped = np.abs(scores - stepped).max(axis=1) > 1e-4  # another order of sums may flip a spike, but rarely does
    assert flipped.sum() <= 1


def test_rows_of_different_age_share_a_batch() -> None:
    """Every row has its own clock: one that joins late runs as if it were alone."""
    made, (one, other) = converted(), images(2)
    graph = made.spiking.graph
    runtime = Runtime(graph.model)
    names = [graph.output, *(state.output for state in graph.states)]
    alone = [[output for (output,) in run(made, image[np.newaxis], [], STEPS)] for image in (one, other)]
    states = {state.input: np.zeros((2, *state.shape), np.float32) for state in graph.states}
    late = 2
    for step in range(STEPS + late):
        if step == late:
            for value in states.values():
                value[1] = 0  # the second source begins
        output, *after = runtime.run({"x": np.stack([one, other]), **states}, names)
        states = {name: value.copy() for name, value in zip(states, after, strict=True)}
        if step < STEPS:
            np.testing.assert_allclose(output[0], alone[0][step][0], atol=1e-4)
        if step >= late:
            np.testing.assert_allclose(output[1], alone[1][step - late][0], atol=1e-4)
    assert np.abs(np.array(alone[0][late]) - alone[0][0]).max() > 1e-3  # the control: steps of other ages differ


def test_what_depends_on_the_input_alone_keeps_no_state() -> None:
    """The embedding and its LayerNorm are the same at each step; so is a network's first layer of currents."""
    made = converted()
    norms = [node for node in made.spiking.host if type(node.operation).__name__ == "Norm"]
    sums = [state for state in made.spiking.graph.states if state.neuron == "RunningSum"]
    means = 2 + 2 + 2 + 1  # both sides of two products, the other two norms, GELU
    assert len(norms) == 3
    assert len(sums) == means


def test_no_operation_is_called_a_neurons_that_is_none() -> None:
    made = converted()
    found = {one.operation: one for one in host_operations(made.spiking.host, made.ann.shapes)}
    assert {name: one.nodes for name, one in found.items()} == {
        "Erf": 1, "Mul": 1, "Norm": 3, "Product": 2, "Softmax": 1
    }  # fmt: skip
    assert found["Product"].macs == 2 * (2 * 4 * 4 * 6)  # heads x tokens x tokens x width of a head, twice
    weighted = [node for node in made.ann.nodes if node.weighted]
    assert len(made.spiking.synapses) == len(weighted) == 8


def test_the_same_arguments_give_the_same_graph() -> None:
    again = convert(network(), images(64, seed=7), STEPS, 4)
    assert again.spiking.graph.model.SerializeToString() == converted().spiking.graph.model.SerializeToString()


@pytest.mark.parametrize(
    ("samples", "timesteps", "levels", "reason"),
    [
        (images(2), 0, 4, "0 timesteps"),
        (images(2), 4, 0, "0 levels"),
        (images(2), 4, MAX_LEVELS + 1, "levels"),
        (images(0), 4, 4, "calibration data"),
        (images(2)[:, :, 1:], 4, 4, "calibration data"),
    ],
)
def test_impossible_orders_are_refused(samples: Floats, timesteps: int, levels: int, reason: str) -> None:
    with pytest.raises(ConversionError, match=reason):
        convert(network(), samples, timesteps, levels)
