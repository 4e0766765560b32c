"""A small spiking network as window and step plans, written with onnx alone: for tests of engines without a bundle.

Input ``x`` (B, 8) constant over time; Gemm → LIF (soft reset) → Gemm → leaky integrator; the readout is its mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edged.domain import Array, Payload, Prediction
from edged.engines.life import Job
from edged.ports import TensorSpec

FEATURES, HIDDEN, CLASSES, TIMESTEPS = 8, 256, 3, 4  # weights that take more bytes than a slot
STATES = (("v1", "v1_next", HIDDEN), ("v2", "v2_next", CLASSES))


@dataclass(frozen=True)
class PlannedModel:
    """The part of ``edged.ports.Model`` that an engine looks at."""

    path: Path
    name: str = "tiny"
    version: str = "1.0.0"
    digest: str = "d" * 64
    timesteps: int = TIMESTEPS
    classes: int = CLASSES
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "float32", (FEATURES,)),)
    states: tuple[TensorSpec, ...] = tuple(TensorSpec(name, "float32", (size,)) for name, _, size in STATES)
    output: str = "y"

    def encode(self, payload: Payload) -> dict[str, Array]:
        raise NotImplementedError("engines do not encode")

    def decode(self, readout: Array) -> list[Prediction]:
        raise NotImplementedError("engines do not decode")


def make_job(folder: Path, max_batch: int = 4) -> Job:
    """Plans in ``folder/plans``, an empty cache in ``folder/cache``."""
    plans = folder / "plans"
    plans.mkdir(parents=True, exist_ok=True)
    for name, model in (("window-unrolled", _unrolled()), ("window-scan", _scan()), ("step", _step())):
        onnx.checker.check_model(model)
        onnx.save_model(model, str(plans / f"{name}.onnx"))
    return Job(PlannedModel(folder), max_batch, plans, folder / "cache")


def frames(batch: int, seed: int = 0) -> dict[str, Array]:
    """A batch of random inputs."""
    return {"x": np.random.default_rng(seed).random((batch, FEATURES), dtype=np.float32)}


def _initializers() -> list[onnx.TensorProto]:
    random = np.random.default_rng(7)
    values = {
        "w1": random.normal(0, 0.8, (FEATURES, HIDDEN)).astype(np.float32),
        "w2": random.normal(0, 0.8, (HIDDEN, CLASSES)).astype(np.float32),
        "decay": np.float32(0.9),
        "theta": np.float32(1.0),
        "steps": np.float32(TIMESTEPS),
    }
    return [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()]


def _lif(tag: str, current: str, before: str, after: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Mul", [before, "decay"], [f"leak{tag}"]),
        helper.make_node("Add", [f"leak{tag}", current], [f"u{tag}"]),
        helper.make_node("GreaterOrEqual", [f"u{tag}", "theta"], [f"fired{tag}"]),
        helper.make_node("Cast", [f"fired{tag}"], [f"s{tag}"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"s{tag}", "theta"], [f"sub{tag}"]),
        helper.make_node("Sub", [f"u{tag}", f"sub{tag}"], [after]),
    ]


def _tick(tag: str, before: tuple[str, str], after: tuple[str, str], y: str) -> list[onnx.NodeProto]:
    return [
        *_lif(tag, "i1", before[0], after[0]),
        helper.make_node("MatMul", [f"s{tag}", "w2"], [f"i2{tag}"]),
        helper.make_node("Mul", [before[1], "decay"], [f"leak2{tag}"]),
        helper.make_node("Add", [f"leak2{tag}", f"i2{tag}"], [after[1]]),
        helper.make_node("Identity", [after[1]], [y]),
    ]


def _zeros() -> list[onnx.NodeProto]:
    zero = numpy_helper.from_array(np.array([0], np.float32), "zero")
    nodes = [helper.make_node("Shape", ["x"], ["rows"], start=0, end=1)]
    for name, _, size in STATES:
        nodes += [
            helper.make_node(
                "Constant", [], [f"{name}_size"], value=numpy_helper.from_array(np.array([size], np.int64))
            ),
            helper.make_node("Concat", ["rows", f"{name}_size"], [f"{name}_shape"], axis=0),
            helper.make_node("ConstantOfShape", [f"{name}_shape"], [f"{name}_zero"], value=zero),
        ]
    return nodes


def _value(name: str, size: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", size])


def _model(
    nodes: list[onnx.NodeProto], inputs: list[tuple[str, int]], outputs: list[tuple[str, int]]
) -> onnx.ModelProto:
    ins, outs = [_value(*one) for one in inputs], [_value(*one) for one in outputs]
    graph = helper.make_graph(nodes, "tiny", ins, outs, _initializers())
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def _step() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["i1"]), *_tick("", ("v1", "v2"), ("v1_next", "v2_next"), "y")]
    inputs = [("x", FEATURES), *[(name, size) for name, _, size in STATES]]
    return _model(nodes, inputs, [("y", CLASSES), *[(name, size) for _, name, size in STATES]])


def _unrolled() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["i1"]), *_zeros()]
    before = ("v1_zero", "v2_zero")
    for t in range(TIMESTEPS):
        after = (f"v1_{t}", f"v2_{t}")
        nodes += _tick(f"_{t}", before, after, f"y_{t}")
        before = after
    nodes += [
        helper.make_node("Sum", [f"y_{t}" for t in range(TIMESTEPS)], ["total"]),
        helper.make_node("Div", ["total", "steps"], ["readout"]),
    ]
    return _model(nodes, [("x", FEATURES)], [("readout", CLASSES)])


def _scan() -> onnx.ModelProto:
    inputs = [_value("a1", HIDDEN), _value("a2", CLASSES), _value("current", HIDDEN)]
    body_nodes = _tick("_s", ("a1", "a2"), ("b1", "b2"), "y_s")
    for node in body_nodes:
        node.input[:] = ["current" if name == "i1" else name for name in node.input]
    body = helper.make_graph(
        body_nodes, "tick", inputs, [_value("b1", HIDDEN), _value("b2", CLASSES), _value("y_s", CLASSES)]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["i1"]),
        *_zeros(),
        helper.make_node("Constant", [], ["front"], value=numpy_helper.from_array(np.array([0], np.int64))),
        helper.make_node("Unsqueeze", ["i1", "front"], ["i1_once"]),
        helper.make_node(
            "Constant", [], ["times"], value=numpy_helper.from_array(np.array([TIMESTEPS, 1, 1], np.int64))
        ),
        helper.make_node("Tile", ["i1_once", "times"], ["i1_all"]),
        helper.make_node("Scan", ["v1_zero", "v2_zero", "i1_all"], ["e1", "e2", "ys"], body=body, num_scan_inputs=1),
        helper.make_node("ReduceMean", ["ys"], ["readout"], axes=[0], keepdims=0),
    ]
    return _model(nodes, [("x", FEATURES)], [("readout", CLASSES)])
