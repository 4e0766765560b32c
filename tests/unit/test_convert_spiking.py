"""The step graph: the same spikes as a layer-by-layer NumPy simulation, and closer to the ANN with every step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cloud_sync.convert import grid
from cloud_sync.convert.ann import Ann
from cloud_sync.convert.errors import ConversionError
from cloud_sync.convert.evaluate import run_spiking
from cloud_sync.convert.firing import Firing
from cloud_sync.convert.fold import fold
from cloud_sync.convert.load import network
from cloud_sync.convert.network import Conv, Dense, Floats, Network
from cloud_sync.convert.pipeline import Converted, Options, convert
from cloud_sync.convert.runtime import Runtime
from cloud_sync.convert.spiking import spiking
from cloud_sync.convert.step import SpikingNetwork
from cloud_sync.convert.thresholds import calibrate, staircase
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.plans import window_plan
from edged.bundle.graph.spec import READOUT
from tests.support import anns

T = 12


def spike_trains(made: SpikingNetwork, samples: Floats, timesteps: int) -> dict[str, Floats]:
    """Spikes (T, N, …) by the Relu that they stand for, from the step graph in stock ONNX Runtime."""
    runtime = Runtime(made.graph.model, [layer.spikes for layer in made.neurons])
    states = {s.input: np.zeros((len(samples), *s.shape), np.float32) for s in made.graph.states}
    trains: dict[str, list[Floats]] = {layer.stands_for: [] for layer in made.neurons}
    fetches = [s.output for s in made.graph.states] + [layer.spikes for layer in made.neurons]
    for _ in range(timesteps):
        values = runtime.run({made.graph.inputs[0].name: samples, **states}, fetches)
        states = dict(zip(states, values, strict=False))
        for layer, spikes in zip(made.neurons, values[len(states) :], strict=True):
            trains[layer.stands_for].append(spikes)
    return {value: np.stack(train) for value, train in trains.items()}


def _network(model: onnx.ModelProto) -> tuple[Network, dict[str, Floats], SpikingNetwork]:
    found = fold(network(model))
    theta = calibrate(found, anns.images(64), T)
    return found, theta, spiking(found, theta)


@pytest.mark.parametrize("model", [anns.plain(), anns.residual()], ids=["plain", "residual"])
def test_the_step_graph_spikes_as_a_layer_by_layer_simulation_does(model: onnx.ModelProto) -> None:
    found, theta, made = _network(model)
    samples = anns.images(6, seed=9)
    got = spike_trains(made, samples, T)
    _, expected = anns.simulate(found, theta, samples.astype(np.float64), T)
    _, other = anns.simulate(found, theta, samples.astype(np.float64), T, start=0.0)
    assert set(got) == set(expected)
    # float32 against float64: a potential within 1e-6 of θ may spike a step later, which is some in a million.
    assert _differing(got, expected) < 1e-3
    assert _differing(got, other) > 1e-2  # the control: neurons that start empty do spike otherwise
    assert 0.02 < np.mean([train.mean() for train in got.values()]) < 0.9


def _differing(got: dict[str, Floats], expected: dict[str, anns.Doubles]) -> float:
    return float(np.mean(np.concatenate([(got[value] != expected[value]).ravel() for value in got])))


def test_the_first_layer_emits_exactly_the_staircase_of_its_activation() -> None:
    found, theta, made = _network(anns.plain())
    samples = anns.images(8, seed=9)
    first = next(found.relus())
    (currents,) = Ann(found).values(samples, [first.inputs[0]])
    scale = theta[first.output].reshape(1, -1, 1, 1).astype(np.float64)
    rates = spike_trains(made, samples, T)[first.output].mean(axis=0) * scale
    expected = staircase(currents.astype(np.float64), np.broadcast_to(scale, currents.shape), T)
    off_by_one = np.abs(rates - expected) > 1e-6
    assert off_by_one.mean() < 1e-3  # activations that lie on a stair's edge, in float32
    assert np.abs(rates - expected).max() <= scale.max() / T + 1e-6


def test_the_mean_output_is_that_of_the_simulation() -> None:
    found, theta, made = _network(anns.residual())
    samples = anns.images(6, seed=9)
    expected, _ = anns.simulate(found, theta, samples.astype(np.float64), T)
    np.testing.assert_allclose(run_spiking(made, samples, T).scores, expected, atol=0.02, rtol=0)


def test_the_graph_is_canonical_and_every_plan_computes_the_same() -> None:
    _, _, made = _network(anns.residual())
    spec = made.graph.spec(T)
    model = check_step_graph(made.graph.model.SerializeToString(), spec)
    samples = anns.images(5, seed=9)
    stepped = run_spiking(made, samples, T).scores
    for form in ("unrolled", "scan"):
        plan = window_plan(model, spec, form)
        (read_out,) = Runtime(plan).run({made.graph.inputs[0].name: samples}, [plan.graph.output[0].name])
        np.testing.assert_allclose(read_out, stepped, rtol=1e-4, atol=1e-4)


def test_thresholds_disappear_into_the_weights_but_for_the_residual_branch() -> None:
    _, _, made = _network(anns.plain())
    assert not [node for node in made.graph.model.graph.node if node.op_type == "Mul"]
    assert _neuron_steps(made) == [1.0, 1.0]
    _, _, made = _network(anns.residual())
    assert len([node for node in made.graph.model.graph.node if node.op_type == "Mul"]) == 1
    steps = _neuron_steps(made)
    assert len(steps) == 4
    assert steps.count(1.0) == 3  # the neuron behind the Add counts in its own unit


def test_a_gain_that_varies_within_a_channel_is_multiplied_before_a_conv() -> None:
    """Dense → Relu → Reshape to an image → Conv: thresholds of features become thresholds of pixels."""
    ann = anns.AnnWriter(2)
    flat = ann.node("Flatten", "x")
    dense = ann.node("Relu", ann.node("MatMul", flat, ann.weight(ann.random.normal(0, 0.1, (128, 36)))))
    image = ann.node("Reshape", dense, ann.weight(np.array([0, 1, 6, 6])))
    pooled = ann.node("AveragePool", ann.node("Relu", ann.conv(image, (3, 1, 3, 3), bias=True)), kernel_shape=[2, 2])
    model = ann.model(ann.node("Relu", ann.node("Flatten", pooled)), anns.SHAPE, 27)
    found, theta, made = _network(model)
    samples = anns.images(6, seed=9)
    expected, spikes = anns.simulate(found, theta, samples.astype(np.float64), T)
    assert _differing(spike_trains(made, samples, T), spikes) < 1e-3
    np.testing.assert_allclose(run_spiking(made, samples, T).scores, expected, atol=0.02, rtol=0)
    check_step_graph(made.graph.model.SerializeToString(), made.graph.spec(T))


def _neuron_steps(made: SpikingNetwork) -> list[float]:
    """The largest v_sub of each neuron; half of it must be v_th."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.model.graph.initializer}
    calls = [node for node in made.graph.model.graph.node if node.op_type == "IF"]
    for node in calls:
        np.testing.assert_array_equal(weights[node.input[2]] * 2, weights[node.input[3]])
    return [float(weights[node.input[3]].max()) for node in calls]


def _error(timesteps: int, samples: Floats, reference: Floats) -> float:
    made = convert(network(anns.residual()), anns.images(256), timesteps)
    return float(np.sqrt(np.mean((run_spiking(made.spiking, samples, timesteps).scores - reference) ** 2)))


def test_more_steps_converge_to_the_ann() -> None:
    """A neuron keeps at most about one spike to itself, so the error of a layer falls as 1/T: from 4 to 64 by sixteen.

    Uneven arrival of spikes and clipping of rare peaks take a part of that; a quarter of the factor must remain, and at
    T = 64 the scores must lie within a tenth of their own spread.
    """
    samples = anns.images(200, seed=9)
    reference = Ann(fold(network(anns.residual()))).logits(samples)
    errors = {timesteps: _error(timesteps, samples, reference) for timesteps in (4, 16, 64)}
    assert errors[4] > errors[16] > errors[64]
    assert errors[64] < errors[4] / 4
    assert errors[64] < 0.1 * reference.std()


def test_a_sequence_of_event_frames_is_simulated_and_run_step_by_step() -> None:
    """On the exact grid and with a mean over eight, so that graph, plans and simulation agree to the last bit."""
    steps = 8
    found = network(anns.plain())
    units = {relu.output: np.ones(relu.shape[0], np.float32) for relu in found.relus()}
    made = spiking(found, units, weights=grid.snapped, events=True)
    frames = anns.events(6, steps)
    weighted = iter(made.synapses)
    layers = tuple(
        replace(layer, operation=next(weighted).operation) if isinstance(layer.operation, Conv | Dense) else layer
        for layer in found.layers
    )
    expected, spikes = anns.simulate(replace(found, layers=layers), units, frames.astype(np.float64), steps)
    assert all(0.02 < train.mean() < 0.9 for train in spikes.values())
    activity = run_spiking(made, frames, steps)
    np.testing.assert_array_equal(activity.scores, expected)
    assert activity.operations.effective_macs == 0 < activity.operations.effective_acs  # events are spikes: no products
    model = check_step_graph(made.graph.model.SerializeToString(), made.graph.spec(steps))
    for form in ("unrolled", "scan"):
        plan = window_plan(model, made.graph.spec(steps), form)
        (read_out,) = Runtime(plan).run({"x": np.ascontiguousarray(frames.swapaxes(0, 1))}, [READOUT])
        np.testing.assert_array_equal(read_out, expected)
    reversed_in_time = run_spiking(made, np.ascontiguousarray(frames[:, ::-1]), steps).scores
    assert (reversed_in_time != expected).any()  # the control: the order of the frames does count


def test_the_same_inputs_give_the_same_graph() -> None:
    def graph() -> bytes:
        made: Converted = convert(network(anns.residual()), anns.images(64), 8)
        return bytes(made.spiking.graph.model.SerializeToString(deterministic=True))

    assert graph() == graph()


def _modern(firing: Firing, timesteps: int) -> tuple[Network, dict[str, Floats], SpikingNetwork]:
    found = fold(network(anns.modern()))
    theta = calibrate(found, anns.images(64), timesteps)
    return found, theta, spiking(found, theta, timesteps, firing=firing)


def test_max_pools_and_leaky_neurons_spike_as_the_simulation_does() -> None:
    found, theta, made = _modern(Firing.BINARY, T)
    samples = anns.images(6, seed=9)
    expected, spikes = anns.simulate(found, theta, samples.astype(np.float64), T)
    assert _differing(spike_trains(made, samples, T), spikes) < 1e-3
    np.testing.assert_allclose(run_spiking(made, samples, T).scores, expected, atol=0.02, rtol=0)


def test_a_max_pool_of_spikes_sends_spikes_and_their_mean_is_the_largest_mean() -> None:
    ann = anns.AnnWriter()
    relu = ann.node("Relu", ann.conv("x", (4, 2, 3, 3), bias=True, pads=[1, 1, 1, 1]))
    out = ann.node("Flatten", ann.node("MaxPool", relu, kernel_shape=[2, 2], strides=[2, 2]))
    found = fold(network(ann.model(out, anns.SHAPE, 64)))
    made = spiking(found, calibrate(found, anns.images(64), T), T)
    pooled = next(node.output[0] for node in made.graph.model.graph.node if node.op_type == "Difference")
    runtime, samples = Runtime(made.graph.model, [made.neurons[0].spikes, pooled]), anns.images(6, seed=9)
    states = {s.input: np.zeros((6, *s.shape), np.float32) for s in made.graph.states}
    fetches = [s.output for s in made.graph.states] + [made.neurons[0].spikes, pooled]
    trains: list[list[Floats]] = [[], []]
    for _ in range(T):
        *after, spikes, sent = runtime.run({"x": samples, **states}, fetches)
        states = dict(zip(states, after, strict=True))
        trains[0].append(spikes)
        trains[1].append(sent)
    received, sent = (np.mean(train, axis=0) for train in trains)
    assert set(np.unique(trains[1])) == {0.0, 1.0}
    np.testing.assert_allclose(sent, received.reshape(6, 4, 4, 2, 4, 2).max(axis=(3, 5)), atol=1e-6)
    largest_each_step = np.mean(np.stack(trains[0]).reshape(T, 6, 4, 4, 2, 4, 2).max(axis=(4, 6)), axis=0)
    assert np.abs(largest_each_step - sent).max() > 0.1  # the control: a maximum taken step by step is another value


@pytest.mark.parametrize("model", [anns.plain(), anns.residual(), anns.modern()], ids=["plain", "residual", "modern"])
@pytest.mark.parametrize("timesteps", [1, 4, 7])
def test_accumulating_neurons_equal_the_ann_rounded_to_t_levels(model: onnx.ModelProto, timesteps: int) -> None:
    found, samples = fold(network(model)), anns.images(12, seed=9)
    theta = calibrate(found, anns.images(64), timesteps)
    made = spiking(found, theta, timesteps, firing=Firing.ACCUMULATE)
    expected = anns.quantised(found, theta, samples.astype(np.float64), timesteps)
    close = np.isclose(run_spiking(made, samples, made.steps).scores, expected, atol=1e-4, rtol=0).all(axis=1)
    assert close.mean() > 0.9  # float32 against float64: a sum at the edge of a stair may fall to the other side
    binary = spiking(found, theta, timesteps)
    if timesteps > 1:  # the control: neurons that fire at once send spikes that come too early
        assert not np.isclose(run_spiking(binary, samples, timesteps).scores, expected, atol=1e-4).all(axis=1).any()
    depth = made.values[found.output].depth  # layers of neurons in a row
    assert depth in (2, 3, 4)
    assert made.steps == 1 + depth * (timesteps - 1)


@pytest.mark.parametrize("firing", [Firing.SIGNED, Firing.ACCUMULATE])
def test_every_kind_of_neuron_is_canonical_and_every_plan_computes_the_same(firing: Firing) -> None:
    _, _, made = _modern(firing, 5)
    spec = made.graph.spec(made.steps)
    model = check_step_graph(made.graph.model.SerializeToString(), spec)
    samples = anns.images(5, seed=9)
    stepped = run_spiking(made, samples, made.steps).scores
    for form in ("unrolled", "scan"):
        plan = window_plan(model, spec, form)
        (read_out,) = Runtime(plan).run({"x": samples}, [plan.graph.output[0].name])
        np.testing.assert_allclose(read_out, stepped, rtol=1e-4, atol=1e-4)


def test_signed_neurons_take_spikes_back_and_come_closer_to_the_ann_in_few_steps() -> None:
    samples = anns.images(300, seed=9)
    found = fold(network(anns.residual()))
    reference = Ann(found).logits(samples)
    errors, alphabets = {}, {}
    for firing in (Firing.BINARY, Firing.SIGNED):
        made = convert(network(anns.residual()), anns.images(256), 8, Options(firing=firing)).spiking
        errors[firing] = float(np.sqrt(np.mean((run_spiking(made, samples, 8).scores - reference) ** 2)))
        alphabets[firing] = {float(v) for train in spike_trains(made, samples, 8).values() for v in np.unique(train)}
    assert alphabets == {Firing.BINARY: {0.0, 1.0}, Firing.SIGNED: {-1.0, 0.0, 1.0}}
    assert errors[Firing.SIGNED] < errors[Firing.BINARY]


def test_relu6_never_stands_for_more_than_six() -> None:
    ann = anns.AnnWriter()
    bright = ann.conv("x", (4, 2, 3, 3), bias=True)
    scaled = ann.node("Mul", bright, ann.weight(np.array(20.0)))
    out = ann.node("Flatten", ann.node("Clip", scaled, ann.weight(np.array(0.0)), ann.weight(np.array(6.0))))
    model = ann.model(out, anns.SHAPE, 144)
    samples = anns.images(64)
    for timesteps in (4, 64):
        made = convert(network(model), samples, timesteps)
        scores = run_spiking(made.spiking, samples, timesteps).scores
        assert scores.max() <= 6 + 1e-5
    reference = Ann(made.ann).logits(samples)
    assert reference.max() == 6.0
    np.testing.assert_allclose(scores, reference, atol=6 / 64)
    unbounded = Ann(fold(network(_unclipped(model)))).logits(samples)
    assert unbounded.max() > 7  # the control: without the bound it would


def _unclipped(model: onnx.ModelProto) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    clip = next(node for node in other.graph.node if node.op_type == "Clip")
    clip.op_type = "Relu"
    del clip.input[1:]
    return other


@pytest.mark.parametrize("firing", list(Firing))
def test_corrected_biases_give_each_layer_the_mean_of_the_ann(firing: Firing) -> None:
    calibration = anns.images(256)

    def worst(options: Options) -> float:
        made = convert(network(anns.residual()), calibration, 4, options)
        scores = run_spiking(made.spiking, calibration, made.spiking.steps).scores
        return float(np.abs((scores - Ann(made.ann).logits(calibration)).mean(axis=0)).max())

    assert worst(Options(firing=firing, correct_biases=True)) < 0.02 < worst(Options(firing=firing))


def test_int8_weights_lie_on_255_levels_of_each_output() -> None:
    made = convert(network(anns.residual()), anns.images(64), 8, Options(weights="int8"))
    for synapses in made.spiking.synapses:
        weight = np.moveaxis(synapses.operation.weight, 1 if isinstance(synapses.operation, Dense) else 0, 0)
        rows = weight.reshape(len(weight), -1).astype(np.float64)
        levels = rows / (np.abs(rows).max(axis=1, keepdims=True) / 127)
        np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    with pytest.raises(ConversionError, match="grid of its own"):
        convert(network(anns.plain()), anns.images(64), 8, Options(weights="int8", exact=True))
