"""Derives window plans from a canonical step graph, mechanically: a window of T steps in one run from zero state.

Time is folded T-major into the batch: (T·B, …), step 0 of all samples first. Stateless nodes run once for all steps,
what depends on constant inputs only runs once for the sample, regions run step by step: *unrolled* (T copies) or as one
*Scan* each. Sequences come in as (T, B, *shape), constants as (B, *shape); the output ``readout`` is (B, classes), or
``outputs`` (T, B, classes) for an engine that reads them out itself.

Relies on what ``checks`` guarantees: axis 0 is the batch everywhere and no node mixes samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edged.bundle.graph.analysis import Region, Shift, Stateless, parts
from edged.bundle.graph.builder import assemble
from edged.bundle.graph.spec import BATCH, READOUT, GraphSpec, ReadoutSpec, StateSpec

OUTPUTS = "outputs"  # of a raw window
Form = Literal["unrolled", "scan"]


@dataclass
class _Value:
    """One tensor of the step graph in the plan, in whichever layouts were asked for so far.

    ``constant``: no batch axis. ``static``: (B, …), the same at each step. Otherwise it varies with time: ``folded``
    (T·B, …), ``stacked`` (T, B, …), ``steps`` T names of (B, …).
    """

    shape: tuple[int, ...] = ()
    constant: str = ""
    static: str = ""
    folded: str = ""
    stacked: str = ""
    steps: list[str] = field(default_factory=list)

    @property
    def varies(self) -> bool:
        return not (self.constant or self.static)


def window_plan(model: onnx.ModelProto, spec: GraphSpec, form: Form, *, raw: bool = False) -> onnx.ModelProto:
    """One run = one window. ``form`` says how regions run through time; both compute the same. ``raw``: no readout."""
    return _Window(model, spec, form).derive(raw=raw)


class _Window:
    """The plan while it is written. Tensors of the step graph are found by their name in ``values``."""

    def __init__(self, model: onnx.ModelProto, spec: GraphSpec, form: Form) -> None:
        self.graph = model.graph
        self.spec = spec
        self.form = form
        self.nodes: list[onnx.NodeProto] = []
        self.initializers = [_renamed(tensor, f"const/{tensor.name}") for tensor in model.graph.initializer]
        self.values = {t.name: _Value(constant=f"const/{t.name}") for t in model.graph.initializer}
        self.shapes = sample_shapes(model)
        self.made = 0
        self.zeros: dict[tuple[int, ...], str] = {}
        self.batch = ""

    def derive(self, *, raw: bool) -> onnx.ModelProto:
        steps = self.spec.timesteps
        for spec in self.spec.inputs:
            name, shape = spec.name, spec.shape
            self.values[name] = _Value(shape, stacked=name) if spec.sequence else _Value(shape, static=name)
        for part in parts(self.graph, self.spec):
            if isinstance(part, Stateless):
                self.stateless(part.node)
            elif isinstance(part, Shift):
                self.shift(part.state)
            elif self.form == "unrolled":
                self.unroll(part)
            else:
                self.scan(part)
        y = self.stacked(self.values[self.spec.output])
        if raw:
            self.node("Identity", [y], OUTPUTS)
        else:
            self.read_out(y, self.spec.readout)
        inputs = [
            _info(i.name, [steps, BATCH, *i.shape] if i.sequence else [BATCH, *i.shape]) for i in self.spec.inputs
        ]
        classes = self.spec.classes
        output = _info(OUTPUTS, [steps, BATCH, classes]) if raw else _info(READOUT, [BATCH, classes])
        return assemble(helper.make_graph(self.nodes, f"window-{self.form}", inputs, [output], self.initializers))

    # Nodes

    def node(self, op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        output = output or self.fresh(op)
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, value: NDArray[Any]) -> str:
        name = self.fresh("const")
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def numbers(self, values: Sequence[int]) -> str:
        return self.constant(np.asarray(values, dtype=np.int64))

    def fresh(self, stem: str) -> str:
        self.made += 1
        return f"plan/{self.made}.{stem}"

    # Layouts

    def folded(self, value: _Value) -> str:
        if not value.folded:
            if value.static:
                repeats = self.numbers([self.spec.timesteps, *(1 for _ in value.shape)])
                value.folded = self.node("Tile", [value.static, repeats])
            elif value.steps:
                value.folded = self.node("Concat", value.steps, axis=0)
            else:
                value.folded = self.node("Reshape", [value.stacked, self.numbers([-1, *value.shape])])
        return value.folded

    def stacked(self, value: _Value) -> str:
        if not value.stacked:
            shape = self.numbers([self.spec.timesteps, -1, *value.shape])
            value.stacked = self.node("Reshape", [self.folded(value), shape])
        return value.stacked

    def steps(self, value: _Value) -> list[str]:
        if value.static:
            return [value.static] * self.spec.timesteps
        if not value.steps:
            folded = self.folded(value)
            value.steps = [self.fresh("step") for _ in range(self.spec.timesteps)]
            self.nodes.append(helper.make_node("Split", [folded], value.steps, axis=0))
        return value.steps

    def zero(self, shape: tuple[int, ...]) -> str:
        """(B, *shape) of zeros: where every state starts."""
        if not self.batch:
            first = self.spec.inputs[0]
            axis = 1 if first.sequence else 0
            self.batch = self.node("Shape", [first.name], start=axis, end=axis + 1)
        if shape not in self.zeros:
            size = self.node("Concat", [self.batch, self.numbers(shape)], axis=0) if shape else self.batch
            self.zeros[shape] = self.node("ConstantOfShape", [size])
        return self.zeros[shape]

    # Parts

    def stateless(self, node: onnx.NodeProto) -> None:
        values = [self.values[name] if name else None for name in node.input]
        varies = any(value.varies for value in values if value)
        static = any(value.static for value in values if value)
        names = [self.plain(value, varies) if value else "" for value in values]
        outputs = [self.fresh(name) for name in node.output]
        self.nodes.append(_rewired(node, names, outputs, outputs[0]))
        for name, output in zip(node.output, outputs, strict=True):
            shape = self.shapes.get(name, ())
            if varies:
                self.values[name] = _Value(shape, folded=output)
            else:
                self.values[name] = _Value(shape, static=output) if static else _Value(shape, constant=output)

    def plain(self, value: _Value, varies: bool) -> str:
        return value.constant or (self.folded(value) if varies else value.static)

    def shift(self, state: StateSpec) -> None:
        zero = self.zero(state.shape)
        before = self.steps(self.values[state.output])
        self.values[state.input] = _Value(state.shape, steps=[zero, *before[:-1]])

    def unroll(self, region: Region) -> None:
        outside, inside = self.border(region)
        now = {state.input: self.zero(state.shape) for state in region.states}
        collected: dict[str, list[str]] = {name: [] for name in inside}
        for t in range(self.spec.timesteps):
            names = dict(now)
            for name in outside:
                value = self.values[name]
                names[name] = value.constant or self.steps(value)[t]
            for node in region.nodes:
                names |= {output: self.fresh(output) for output in node.output}
                outputs = [names[output] for output in node.output]
                self.nodes.append(_rewired(node, [names[n] if n else "" for n in node.input], outputs, outputs[0]))
            for name, steps in collected.items():
                steps.append(names[name])
            now = {state.input: names[state.output] for state in region.states}
        for name, steps in collected.items():
            self.values[name] = _Value(self.shapes[name], steps=steps)

    def scan(self, region: Region) -> None:
        """One Scan: states are carried, what varies is scanned, constants and static values are read from outside."""
        outside, inside = self.border(region)
        prefix = self.fresh("scan")
        scanned = [name for name in outside if self.values[name].varies]
        local = {name: self.values[name].constant or self.values[name].static for name in outside}
        own = [name for node in region.nodes for name in node.output] + [state.input for state in region.states]
        local |= {name: f"{prefix}/{name}" for name in (*own, *scanned)}
        nodes = [
            _rewired(node, [local[n] if n else "" for n in node.input], [local[n] for n in node.output], "")
            for node in region.nodes
        ]
        emitted = [(s.output, s.shape) for s in region.states] + [(name, self.shapes[name]) for name in inside]
        results = [f"{prefix}/out{k}" for k in range(len(emitted))]
        # Identity: a body may not output one tensor twice
        nodes += [
            helper.make_node("Identity", [local[name]], [out]) for (name, _), out in zip(emitted, results, strict=True)
        ]
        carried = [_info(local[s.input], [BATCH, *s.shape]) for s in region.states]
        read = [_info(local[name], [BATCH, *self.shapes[name]]) for name in scanned]
        given = [self.stacked(self.values[name]) for name in scanned]
        if not scanned:  # a Scan takes its length from what it scans
            read, given = [_info(f"{prefix}/tick", [1])], [self.ticks()]
        outputs = [_info(out, [BATCH, *shape]) for (_, shape), out in zip(emitted, results, strict=True)]
        body = helper.make_graph(nodes, "region", carried + read, outputs)
        given = [self.zero(s.shape) for s in region.states] + given
        made = [self.fresh(name) for name, _ in emitted]
        self.nodes.append(helper.make_node("Scan", given, made, name=prefix, body=body, num_scan_inputs=len(read)))
        for name, stacked in zip(inside, made[len(region.states) :], strict=True):
            self.values[name] = _Value(self.shapes[name], stacked=stacked)

    def ticks(self) -> str:
        """(T, 1): nothing but the length of the window."""
        return self.constant(np.zeros((self.spec.timesteps, 1), dtype=np.float32))

    def border(self, region: Region) -> tuple[list[str], list[str]]:
        """What a region reads from outside, and which of its tensors others read."""
        own = {name for node in region.nodes for name in node.output} | {state.input for state in region.states}
        reads = dict.fromkeys(name for node in region.nodes for name in node.input if name and name not in own)
        others = (node for node in self.graph.node if node.output[0] not in own)
        wanted = {name for node in others for name in node.input}
        wanted |= {self.spec.output} | {s.output for s in self.spec.states if s not in region.states}
        return list(reads), sorted(own & wanted)

    # Readout

    def read_out(self, y: str, readout: ReadoutSpec) -> None:
        """(T, B, classes) → (B, classes)."""
        if readout.kind == "last":
            self.node("Gather", [y, self.constant(np.asarray(readout.stop - 1, dtype=np.int64))], READOUT, axis=0)
            return
        if (readout.start, readout.stop) != (0, self.spec.timesteps):
            y = self.node("Slice", [y, self.numbers([readout.start]), self.numbers([readout.stop]), self.numbers([0])])
        if readout.kind == "sum":
            self.node("ReduceSum", [y, self.numbers([0])], READOUT, keepdims=0)
        elif readout.kind == "first_spike":
            self.first_spike(y, readout.stop - readout.start)
        else:
            op = "ReduceMean" if readout.kind == "mean" else "ReduceMax"
            self.node(op, [y], READOUT, axes=[0], keepdims=0)

    def first_spike(self, y: str, steps: int) -> None:
        """Spiked at step t of the window: steps - t; never: 0."""
        zero = self.constant(np.zeros((), dtype=np.float32))
        spiked = self.node("Cast", [self.node("Greater", [y, zero])], to=TensorProto.FLOAT)
        countdown = self.constant(np.arange(steps, 0, -1, dtype=np.float32).reshape(-1, 1, 1))
        self.node("ReduceMax", [self.node("Mul", [spiked, countdown])], READOUT, axes=[0], keepdims=0)


def sample_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of one sample of every activation of a step graph. Raises InferenceError where shapes contradict."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    infos = [*inferred.input, *inferred.value_info, *inferred.output]
    dims = {info.name: info.type.tensor_type.shape.dim for info in infos}
    return {name: tuple(dim.dim_value for dim in shape[1:]) for name, shape in dims.items()}


def _info(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def _renamed(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _rewired(node: onnx.NodeProto, inputs: Sequence[str], outputs: Sequence[str], name: str) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = name
    del copy.input[:], copy.output[:]
    copy.input.extend(inputs)
    copy.output.extend(outputs)
    return copy
