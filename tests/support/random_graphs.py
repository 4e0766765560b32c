"""Random canonical graphs for property tests, with numbers on a binary grid so that correct results are bit-equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from edged.bundle.graph.builder import StepBuilder, StepGraph
from edged.bundle.graph.neurons import NEURONS
from edged.bundle.graph.spec import GraphSpec, ReadoutKind

GRID = 64  # weights are multiples of 1/64, inputs of 1/16: sums stay exact in float32
DECAYS = (0.5, 0.75, 1.0)
SPIKING = tuple(op for op, row in NEURONS.items() if row.spiking)  # what they emit stays on the grid
ANY = ("IF", "LI", "CubaLI")


@dataclass(frozen=True)
class Scenario:
    """A graph, how it is run, and a batch of inputs in the layout of a window plan."""

    graph: StepGraph
    spec: GraphSpec
    inputs: dict[str, np.ndarray]


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Dense or convolutional, with pooling, recurrence, skips, delays, clocks, several inputs, and all neurons."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    builder = StepBuilder("random")
    shape = draw(st.sampled_from([(5,), (2, 6, 6), (1, 4, 4)]))
    x = builder.input("x", shape, sequence=draw(st.booleans()))
    images = len(shape) == 3
    if images:
        for _ in range(draw(st.integers(0, 2))):
            x, shape = _image_layer(draw, builder, rng, x, shape)
        x, shape = builder.node("Flatten", x), (int(np.prod(shape)),)
    if draw(st.booleans()):  # a second input, which may have the other kind of time
        extra = builder.input("extra", (3,), sequence=draw(st.booleans()))
        x, shape = builder.node("Concat", x, extra, axis=1), (shape[0] + 3,)
    for _ in range(draw(st.integers(1, 3))):
        x, shape = _dense_layer(draw, builder, rng, x, shape[0])
    classes = draw(st.integers(1, 4))
    y = builder.node("Gemm", x, _weights(builder, rng, (shape[0], classes)), _weights(builder, rng, (classes,)))
    if draw(st.booleans()):
        y = _neuron(draw, builder, rng, y, (classes,), ANY)
    graph = builder.build(y, classes)
    steps = draw(st.integers(1, 6))
    start = draw(st.integers(0, steps - 1))
    kinds: list[ReadoutKind] = ["mean", "sum", "last", "max", "first_spike"]
    spec = graph.spec(steps, draw(st.sampled_from(kinds)), (start, draw(st.integers(start + 1, steps))))
    batch = draw(st.integers(1, 3))
    inputs = {
        entry.name: rng.integers(0, 17, ((steps,) if entry.sequence else ()) + (batch, *entry.shape)) / np.float32(16)
        for entry in graph.inputs
    }
    return Scenario(graph, spec, {name: value.astype(np.float32) for name, value in inputs.items()})


def _image_layer(
    draw: st.DrawFn, builder: StepBuilder, rng: np.random.Generator, x: str, shape: tuple[int, ...]
) -> tuple[str, tuple[int, ...]]:
    channels = draw(st.integers(1, 3))
    current = builder.node("Conv", x, _weights(builder, rng, (channels, shape[0], 3, 3)),
                           _weights(builder, rng, (channels,)), pads=[1, 1, 1, 1])  # fmt: skip
    shape = (channels, *shape[1:])
    x = _remembered(draw, builder, rng, _neuron(draw, builder, rng, current, shape, SPIKING), shape)
    if draw(st.booleans()):
        op = draw(st.sampled_from(["AveragePool", "MaxPool"]))
        x = builder.node(op, x, kernel_shape=[2, 2], strides=[2, 2])
        shape = (channels, shape[1] // 2, shape[2] // 2)
    return x, shape


def _dense_layer(
    draw: st.DrawFn, builder: StepBuilder, rng: np.random.Generator, x: str, width: int
) -> tuple[str, tuple[int, ...]]:
    size = draw(st.integers(1, 6))
    current = builder.node("Gemm", x, _weights(builder, rng, (width, size)), _weights(builder, rng, (size,)))
    past = builder.state(f"past{width}{current}", (size,)) if draw(st.booleans()) else ""
    recurrent = bool(past) and draw(st.booleans())
    if recurrent:
        current = builder.node("Add", current, builder.node("MatMul", past, _weights(builder, rng, (size, size))))
    spikes = _neuron(draw, builder, rng, current, (size,), SPIKING)  # LI would leave the grid
    spikes = _remembered(draw, builder, rng, spikes, (size,))
    if past:
        builder.update(past, spikes)
        if draw(st.booleans()):  # the delayed spikes are read by a later node, too
            spikes = builder.node("Add", spikes, builder.node("Mul", past, builder.constant(np.float32(0.5))))
    return spikes, (size,)


def _neuron(
    draw: st.DrawFn, builder: StepBuilder, rng: np.random.Generator, current: str, shape: tuple[int, ...],
    ops: tuple[str, ...],
) -> str:  # fmt: skip
    op = draw(st.sampled_from(ops))
    wide = (shape[0], *(1 for _ in shape[1:])) if draw(st.booleans()) else ()
    return builder.neuron(op, current, shape, **_parameters(op, rng, wide))


def _parameters(op: str, rng: np.random.Generator, wide: tuple[int, ...]) -> dict[str, Any]:
    made = {
        "v_th": rng.integers(GRID // 2, 2 * GRID, wide) / np.float32(GRID),
        "v_sub": rng.integers(1, 2 * GRID, wide) / np.float32(GRID),
        "v_reset": rng.integers(-GRID, GRID // 2, wide) / np.float32(GRID),
        "decay": rng.choice(DECAYS, wide),
        "bias": rng.integers(-8, 8, wide) / np.float32(GRID),
        "c_decay": rng.choice(DECAYS, wide),
        "c_gain": rng.choice((0.5, 1.0, 2.0), wide),
        "gain": rng.choice((0.5, 1.0), wide),
        "fire": np.array([1.5, 0.75, 0.375]) * rng.choice((0.5, 1.0, 2.0), (*wide, 1)),
        "level": np.array([1.0, 0.5, 0.5]) * rng.choice((0.5, 1.0), (*wide, 1)),
        "w": np.eye(4)[rng.integers(0, 4)],
    }
    if not wide:
        made |= {"fire": made["fire"].reshape(-1), "level": made["level"].reshape(-1)}
    return {name: made[name] for name in NEURONS[op].parameters}


def _remembered(draw: st.DrawFn, builder: StepBuilder, rng: np.random.Generator, x: str, shape: tuple[int, ...]) -> str:
    """Perhaps one of the ops that only remember, alone or as they are used together."""
    kind = draw(st.sampled_from(["", "", "Delay", "RunningSum", "Difference", "rates", "clock"]))
    if kind == "rates":  # a rate so far, and by how much it grew
        x = builder.node("Mul", builder.neuron("RunningSum", x, shape), builder.constant(np.float32(0.5)))
        return builder.neuron("Difference", x, shape)
    if kind == "clock":
        return builder.node("Mul", x, builder.neuron("Clock", "", (1,) * len(shape)))
    return builder.neuron(kind, x, shape, **_parameters(kind, rng, ())) if kind else x


def _weights(builder: StepBuilder, rng: np.random.Generator, shape: tuple[int, ...]) -> str:
    return builder.constant(rng.integers(-GRID, GRID + 1, shape) / np.float32(GRID))
