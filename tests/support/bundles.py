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

Kind = Literal["dense", "conv", "sequence", "events"]
CLASSES = 4


def make_bundle(path: Path, *, kind: Kind = "dense", timesteps: int = 4, seed: int = 0) -> Bundle:
    """A bundle at ``path`` (which must not exist) with 4 classes; the same arguments give the same digest.

    - ``dense``: constant input ``x`` (6,), two IF layers.
    - ``conv``: constant input ``image`` (1, 8, 8) from grayscale 0…16 (layout HW, scale 1/16); IF, pooling, LIF, LI.
    - ``sequence``: sequence input ``frames`` (5,), a payload is (T, 5); recurrent LIFZ and LI, last step read out.
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


GRAPHS: dict[Kind, Callable[[np.random.Generator], StepGraph]] = {
    "dense": dense,
    "conv": conv,
    "sequence": sequence,
    "events": events,
}
