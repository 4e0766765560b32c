"""Runs NIR networks for tests: a file is imported and its step graph run on stock ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from cloud_sync.convert.network import Floats
from cloud_sync.convert.nir import hdf5
from cloud_sync.convert.nir.file import graph
from cloud_sync.convert.nir.importer import lower
from cloud_sync.convert.nir.semantics import Semantics
from cloud_sync.convert.step import SpikingNetwork
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.stock import Stock
from tests.support.nir_files import Fields, Net, Rules

T = 12


def semantics(rules: Rules, **more: Any) -> Semantics:
    decay: Literal["euler", "exponential"] = "exponential" if rules.exponential else "euler"
    given: Any = {"dt": rules.dt, "reset": rules.reset, "comparison": rules.comparison, "start": rules.start, **more}
    return Semantics(decay=decay, **given)


def imported(net: Net, rules: Rules, path: Path, **more: Any) -> SpikingNetwork:
    tree: Any = hdf5.read(net.write(path / "net.nir").read_bytes())  # in this process: our own files are harmless
    made = lower(graph(tree["node"]), semantics(rules, **more))
    check_step_graph(made.graph.model, made.graph.spec(T))
    return made


def stepped(made: SpikingNetwork, inputs: Floats) -> Floats:
    """What the step graph sends at each step, on stock ONNX Runtime: (T, classes) for (T, *shape)."""
    session = Stock(made.graph.model)
    states = {s.input: np.zeros((1, *s.shape), np.float32) for s in made.graph.states}
    sent = []
    for frame in inputs.astype(np.float32):
        values = session.run({made.graph.inputs[0].name: frame[np.newaxis], **states})
        states = {s.input: values[s.output] for s in made.graph.states}
        sent.append(values[made.graph.output][0])
    return np.array(sent)


def spikes(rng: np.random.Generator, shape: tuple[int, ...], steps: int = T) -> Floats:
    return (rng.random((steps, *shape)) < 0.5).astype(np.float32)


def single(fields: Fields, size: int) -> Net:
    shape = np.array([size])
    nodes = {"in": {"type": "Input", "shape": shape}, "n": fields, "out": {"type": "Output", "shape": shape}}
    return Net(nodes, [("in", "n"), ("n", "out")])
