"""Small real bundles for tests: canonical graphs with random weights, made in a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from edged.bundle.golden import make_golden
from edged.bundle.graph.builder import StepBuilder, StepGraph
from edged.bundle.loaded import Bundle
from edged.bundle.manifest import (
    Constant,
    Converter,
    Encoding,
    EventFrames,
    Input,
    Layout,
    ManifestDraft,
    Output,
    Preprocess,
    Readout,
    Scale,
    Semantics,
    Sequence,
    State,
    Window,
    graph_spec,
)  # fmt: skip
from edged.bundle.writer import write_bundle

Kind = Literal["dense", "conv", "sequence", "events", "cuba", "rates"]
CLASSES = 4


def make_bundle(path: Path, *, kind: Kind = "dense", timesteps: int = 4, seed: int = 0) -> Bundle:
    """A bundle at ``path`` (which must not exist) with 4 classes; the same arguments give the same digest.

    - ``dense``: constant input ``x`` (6,), two IF layers.
    - ``conv``: constant input ``image`` (1, 8, 8) from grayscale 0…16 (layout HW, scale 1/16); IF, pooling, LIF, LI.
    - ``sequence``: sequence input ``frames`` (5,), a payload is (T, 5); recurrent LIFZ and LI, last step read out.
    - ``cuba``: sequence input ``current`` (5,); CubaLIF, Delay, CubaLIFZ, CubaLI, Threshold.
    - ``rates``: constant input ``x`` (6,); SignedIF, RunningSum over Clock, Difference, MultiThreshold.
    - ``events``: event recordings of a 6 x 6 sensor, two polarities, 1 ms a step; conv, IF, summed spikes.
    """
    graph = GRAPHS[kind](np.random.default_rng(seed))
    draft = draft_of(graph, kind, timesteps)
    golden = make_golden(graph.model, graph_spec(draft), seed)
    card = f"# {kind}\n\nA test model.\n"
    return write_bundle(path, manifest=draft, model=graph.model, golden=golden, report={"kind": kind}, card=card)


def draft_of(graph: StepGraph, kind: Kind, timesteps: int) -> ManifestDraft:
    """What the manifest of a test bundle says."""
    encoding: dict[Kind, Encoding] = {
        "sequence": Sequence(),
        "cuba": Sequence(),
        "events": EventFrames(width=6, height=6, polarities=2, dt_us=1000, t0="first_event", polarity_order="off,on",
                              accumulate="count", tail="drop"),
    }  # fmt: skip
    preprocess: dict[Kind, tuple[Preprocess, ...]] = {"conv": (Layout(axes="HW"), Scale(factor=1 / 16))}
    readout: dict[Kind, Literal["last", "sum"]] = {"sequence": "last", "events": "sum"}
    return ManifestDraft(
        name=f"test-{kind}",
        version="1.0.0",
        release_counter=1,
        description="A model with random weights",
        license="Apache-2.0",
        timesteps=timesteps,
        inputs=tuple(
            Input(
                name=spec.name,
                dtype="float32",
                shape=spec.shape,
                time="sequence" if spec.sequence else "constant",
                encoding=encoding.get(kind, Constant()),
                preprocess=preprocess.get(kind, ()),
            )
            for spec in graph.inputs
        ),
        states=tuple(State(input=s.input, output=s.output, shape=s.shape, neuron=s.neuron) for s in graph.states),
        output=Output(name=graph.output, classes=graph.classes),
        readout=Readout(kind=readout.get(kind, "mean"), window=Window(start=0, stop=timesteps)),
        labels=tuple(f"class-{index}" for index in range(graph.classes)),
        semantics=Semantics(reset="mixed", comparison=">=", source="random weights"),
        converter=Converter(name="tests", version="1"),
    )


def dense(rng: np.random.Generator) -> StepGraph:
    """6 → 12 IF → 4 IF."""
    b = StepBuilder("dense")
    x = b.input("x", (6,))
    hidden = b.node("Gemm", x, b.constant(rng.normal(0, 0.7, (6, 12))), b.constant(rng.normal(0, 0.2, 12)))
    spikes = b.neuron("IF", hidden, (12,), name="hidden", v_th=0.5, v_sub=1.0)
    current = b.node(
        "Gemm", spikes, b.constant(rng.normal(0, 0.5, (12, CLASSES))), b.constant(rng.normal(0.2, 0.1, CLASSES))
    )
    return b.build(b.neuron("IF", current, (CLASSES,), name="out", v_th=0.5, v_sub=1.0), CLASSES)


def conv(rng: np.random.Generator) -> StepGraph:
    """1 x 8 x 8 → conv 6, IF → average pool → LIF → LI."""
    b = StepBuilder("conv")
    image = b.input("image", (1, 8, 8))
    kernel, bias = b.constant(rng.normal(0.1, 0.4, (6, 1, 3, 3))), b.constant(rng.normal(0, 0.1, 6))
    spikes = b.neuron(
        "IF", b.node("Conv", image, kernel, bias, pads=[1, 1, 1, 1]), (6, 8, 8), name="conv1",
        v_th=rng.uniform(0.4, 0.6, 6), v_sub=1.0,
    )  # fmt: skip
    pooled = b.node("AveragePool", spikes, kernel_shape=[2, 2], strides=[2, 2])
    flat = b.node("Reshape", pooled, b.constant(np.array([0, -1])))
    current = b.node("Gemm", flat, b.constant(rng.normal(0, 0.3, (96, 10))), b.constant(rng.normal(0.1, 0.1, 10)))
    spikes = b.neuron("LIF", current, (10,), name="dense1", decay=0.9, bias=0.05, v_th=0.6, v_sub=0.6)
    read = b.node("MatMul", spikes, b.constant(rng.normal(0, 0.5, (10, CLASSES))))
    return b.build(b.neuron("LI", read, (CLASSES,), name="read", decay=0.95, bias=0.01), CLASSES)


def sequence(rng: np.random.Generator) -> StepGraph:
    """5 → 8 LIFZ with recurrence → LI."""
    b = StepBuilder("sequence")
    frames = b.input("frames", (5,), sequence=True)
    past = b.state("past", (8,))
    forward = b.node("Gemm", frames, b.constant(rng.normal(0, 0.8, (5, 8))), b.constant(rng.normal(0.1, 0.1, 8)))
    back = b.node("MatMul", past, b.constant(rng.normal(0, 0.4, (8, 8))))
    spikes = b.neuron(
        "LIFZ", b.node("Add", forward, back), (8,), name="cell", decay=0.85, bias=0.02, v_th=0.7, v_reset=0.1
    )
    b.update(past, spikes)
    read = b.node("MatMul", spikes, b.constant(rng.normal(0, 0.5, (8, CLASSES))))
    return b.build(b.neuron("LI", read, (CLASSES,), name="read", decay=0.9, bias=0.0), CLASSES)


def events(rng: np.random.Generator) -> StepGraph:
    """2 x 6 x 6 events → conv 4, IFZ → flatten → IF."""
    b = StepBuilder("events")
    frames = b.input("events", (2, 6, 6), sequence=True)
    current = b.node("Conv", frames, b.constant(rng.normal(0.2, 0.4, (4, 2, 3, 3))), pads=[1, 1, 1, 1])
    spikes = b.neuron("IFZ", current, (4, 6, 6), name="conv1", v_th=0.8, v_reset=0.0)
    dense_current = b.node("Gemm", b.node("Flatten", spikes), b.constant(rng.normal(0, 0.3, (144, CLASSES))))
    return b.build(b.neuron("IF", dense_current, (CLASSES,), name="out", v_th=0.5, v_sub=0.5), CLASSES)


def cuba(rng: np.random.Generator) -> StepGraph:
    """5 → 8 CubaLIF → delayed by 0 to 3 steps → 6 CubaLIFZ → 8 CubaLI → Threshold → sums."""
    b = StepBuilder("cuba")
    current = b.node("Gemm", b.input("current", (5,), sequence=True), b.constant(rng.normal(0.1, 0.8, (5, 8))))
    first = b.neuron(
        "CubaLIF", current, (8,), name="first", c_decay=0.6, c_gain=0.9, decay=0.8, bias=0.03, gain=0.7, v_th=0.6,
        v_sub=0.6,
    )  # fmt: skip
    late = b.neuron("Delay", first, (8,), name="late", w=np.eye(4)[:, rng.integers(0, 4, 8)])
    inner = b.node("Gemm", late, b.constant(rng.normal(0.1, 0.7, (8, 6))))
    second = b.neuron(
        "CubaLIFZ", inner, (6,), name="second", c_decay=0.5, c_gain=1.1, decay=0.9, bias=0.02, gain=0.8, v_th=0.5,
        v_reset=0.1,
    )  # fmt: skip
    sums = b.node("Gemm", second, b.constant(rng.normal(0.2, 0.5, (6, 8))), b.constant(rng.normal(0, 0.1, 8)))
    trace = b.neuron("CubaLI", sums, (8,), name="trace", c_decay=0.7, c_gain=0.8, decay=0.9, bias=0.01, gain=0.9)
    fired = b.neuron("Threshold", trace, (8,), name="fired", v_th=0.3)
    return b.build(b.node("MatMul", fired, b.constant(rng.normal(0, 0.5, (8, CLASSES)))), CLASSES)


def rates(rng: np.random.Generator) -> StepGraph:
    """6 → 12 SignedIF → rate so far, its growth → 4 MultiThreshold."""
    b = StepBuilder("rates")
    hidden = b.node(
        "Gemm", b.input("x", (6,)), b.constant(rng.normal(0, 0.7, (6, 12))), b.constant(rng.normal(0, 0.2, 12))
    )
    spikes = b.neuron("SignedIF", hidden, (12,), name="hidden", v_th=0.5, v_sub=1.0)
    total = b.neuron("RunningSum", spikes, (12,), name="total")
    clock = b.neuron("Clock", "", (1,), name="clock")
    growth = b.neuron("Difference", b.node("Mul", b.node("Div", total, clock), clock), (12,), name="growth")
    current = b.node(
        "Gemm", growth, b.constant(rng.normal(0, 0.5, (12, CLASSES))), b.constant(rng.normal(0.1, 0.1, CLASSES))
    )
    steps = [0.5, 0.25, 0.25]
    return b.build(
        b.neuron("MultiThreshold", current, (CLASSES,), name="out", fire=[0.75, 0.375, 0.1875], level=steps), CLASSES
    )


GRAPHS: dict[Kind, Callable[[np.random.Generator], StepGraph]] = {
    "dense": dense,
    "conv": conv,
    "sequence": sequence,
    "events": events,
    "cuba": cuba,
    "rates": rates,
}
