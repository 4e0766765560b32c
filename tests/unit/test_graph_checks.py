"""Every way in which a graph can break the canonical form is refused, with the node and the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edged.bundle.graph import checks
from edged.bundle.graph.builder import StepBuilder, StepGraph
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.functions import function, function_bytes
from edged.bundle.graph.neuron_checks import Constants
from edged.bundle.graph.neurons import NEURONS
from edged.bundle.graph.probe import probe_batch
from edged.bundle.graph.spec import GraphSpec, InputSpec, ReadoutSpec, StateSpec
from edged.errors import BundleError
from tests.support.bundles import GRAPHS

Change = Callable[[onnx.ModelProto], object]


def good() -> StepGraph:
    return GRAPHS["conv"](np.random.default_rng(0))


def node(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(entry for entry in model.graph.node if entry.op_type == op)
    return found


def constant(model: onnx.ModelProto, name: str, value: object) -> None:
    tensor = next(entry for entry in model.graph.initializer if entry.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))


def like(model: onnx.ModelProto, name: str, value: float) -> None:
    tensor = next(entry for entry in model.graph.initializer if entry.name == name)
    constant(model, name, np.full_like(numpy_helper.to_array(tensor), value))


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    tensor.ClearField("raw_data")


def huge(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1 << 40, 1 << 20])


def subgraph(model: onnx.ModelProto) -> None:
    node(model, "AveragePool").attribute.append(helper.make_attribute("body", model.graph))


def loop(model: onnx.ModelProto) -> None:
    node(model, "AveragePool").op_type = "Loop"


def second_function(model: onnx.ModelProto) -> None:
    model.functions.append(function("IF"))


def foreign_function(model: onnx.ModelProto) -> None:
    model.functions.add(name="IF", domain="elsewhere")


def other_body(model: onnx.ModelProto) -> None:
    for entry in model.functions[0].node:
        if entry.op_type == "GreaterOrEqual":
            entry.op_type = "Greater"


def cycle(model: onnx.ModelProto) -> None:
    node(model, "Conv").input[0] = "AveragePool_9"


BAD: dict[str, tuple[Change, str]] = {
    "external data": (external, "keeps its data outside the file"),
    "a huge declared size": (huge, "does not hold what its shape says"),
    "NaN in a weight": (lambda m: like(m, "dense1.bias", np.nan), "'dense1.bias' holds NaN or infinity"),
    "infinity in a weight": (lambda m: like(m, "dense1.bias", np.inf), "NaN or infinity"),
    "a weight in float64": (lambda m: constant(m, "dense1.bias", np.zeros((1, 1))), "'dense1.bias' has type 11"),
    "a name used twice": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "no name of its own"),
    "another IR version": (lambda m: setattr(m, "ir_version", 10), "IR version 10"),
    "another opset": (lambda m: setattr(m.opset_import[0], "version", 18), "imports opsets"),
    "another domain": (lambda m: m.opset_import.add(domain="com.microsoft", version=1), "imports opsets"),
    "another body": (other_body, "body of edged.snn.IF differs"),
    "a function twice": (second_function, "defines the function edged.snn.IF"),
    "a function of another domain": (foreign_function, "defines the function elsewhere.IF"),
    "a missing function": (lambda m: m.functions.__delitem__(0), "'conv1' cannot be inferred"),
    "control flow": (loop, "the op Loop is not allowed"),
    "a subgraph": (subgraph, "attribute 'body' is not a plain number"),
    "a custom op": (lambda m: setattr(node(m, "IF"), "domain", "com.evil"), "the op com.evil.IF is not allowed"),
    "an unknown neuron": (lambda m: setattr(node(m, "IF"), "op_type", "Izhikevich"), "Izhikevich is not allowed"),
    "a random op": (lambda m: setattr(node(m, "Conv"), "op_type", "RandomNormalLike"), "RandomNormalLike is not"),
    "a neuron with an attribute": (
        lambda m: node(m, "IF").attribute.append(helper.make_attribute("alpha", 1.0)), "has no attributes"),
    "a neuron without a parameter": (lambda m: node(m, "IF").input.pop(), "must have inputs i, v, v_th, v_sub"),
    "a negative threshold": (lambda m: like(m, "conv1.v_th", -1), "'conv1' .IF.: its v_th must be positive"),
    "a reset of nothing": (lambda m: like(m, "conv1.v_sub", 0), "its v_sub must be positive"),
    "a decay above 1": (lambda m: like(m, "dense1.decay", 1.5), "its decay must lie between"),
    "a parameter that does not fit": (
        lambda m: constant(m, "conv1.v_th", np.ones((1, 5, 1, 1), dtype=np.float32)), "does not broadcast"),
    "a parameter with a batch": (
        lambda m: constant(m, "conv1.v_th", np.ones((6, 1, 1), dtype=np.float32)), "does not broadcast"),
    "a parameter that is computed": (
        lambda m: node(m, "IF").input.__setitem__(2, "Conv_3"), "its v_th must be a float32 initializer"),
    "a state that goes elsewhere": (
        lambda m: node(m, "IF").output.__setitem__(1, "lost"), "its v and v_next are not one state"),
    "a missing output": (lambda m: m.graph.output.pop(), "outputs are not the manifest's"),
    "another input": (lambda m: m.graph.input.append(m.graph.input[0]), "inputs are not the manifest's"),
    "a fixed batch": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1), "'image' has shape"),
    "another input shape": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 9), "'image' has shape"),
    "another input type": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.DOUBLE), "must be float32"),
    "weights that do not fit": (
        lambda m: constant(m, node(m, "Gemm").input[1], np.ones((7, 10), dtype=np.float32)), "ONNX's own checks"),
    "an optional output": (lambda m: node(m, "Conv").output.__setitem__(0, ""), "no output, or one without a name"),
    "a cycle": (cycle, "ONNX's own checks"),
    "a tensor that nobody made": (lambda m: node(m, "Conv").input.__setitem__(0, "nowhere"), "ONNX's own checks"),
    "no nodes at all": (lambda m: m.graph.ClearField("node"), "belongs to 0 neurons"),
    "sparse weights": (lambda m: m.graph.sparse_initializer.add(), "sparse"),
}  # fmt: skip


def test_the_control_passes() -> None:
    graph = good()
    assert check_step_graph(graph.model.SerializeToString(), graph.spec(4)).graph.name == "conv"


@pytest.mark.parametrize("name", BAD)
def test_a_graph_out_of_form_is_refused(name: str) -> None:
    change, message = BAD[name]
    graph = good()
    change(graph.model)
    with pytest.raises(BundleError, match=message):
        check_step_graph(graph.model.SerializeToString(), graph.spec(4))


def test_bytes_that_are_no_graph_are_refused() -> None:
    spec = good().spec(4)
    for data in (b"", b"\xff" * 64, b"hello, this is not ONNX", good().model.SerializeToString()[:500]):
        with pytest.raises(BundleError, match="the model is not an ONNX file"):
            check_step_graph(data, spec)


def test_too_many_nodes_and_steps_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = good()
    monkeypatch.setattr(checks, "MAX_UNROLLED", 30)
    check_step_graph(graph.model, graph.spec(3))
    with pytest.raises(BundleError, match="nodes for 4 steps"):
        check_step_graph(graph.model, graph.spec(4))
    monkeypatch.setattr(checks, "MAX_NODES", 7)
    with pytest.raises(BundleError, match="9 nodes"):
        check_step_graph(graph.model, graph.spec(3))


MIXING: dict[str, tuple[Callable[[StepBuilder, str], str], str]] = {
    "Reshape to [1, -1]": (lambda b, x: b.node("Reshape", x, b.constant(np.array([1, -1]))), "begin with 0"),
    "Reshape to [-1, 2]": (lambda b, x: b.node("Reshape", x, b.constant(np.array([-1, 2, 3]))), "begin with 0"),
    "Flatten from axis 0": (lambda b, x: b.node("Flatten", x, axis=0), "axis must be 1"),
    "Transpose of all axes": (lambda b, x: b.node("Transpose", x), "perm must begin with 0"),
    "Transpose 1, 0, 2": (lambda b, x: b.node("Transpose", x, perm=[1, 0, 2]), "perm must begin with 0"),
    "Softmax over the batch": (lambda b, x: b.node("Softmax", x, axis=0), "leave out 0"),
    "Softmax over the batch, from behind": (lambda b, x: b.node("Softmax", x, axis=-3), "leave out 0"),
    "ReduceMean over everything": (lambda b, x: b.node("ReduceMean", x), "written out"),
    "ReduceMean over the batch": (lambda b, x: b.node("ReduceMean", x, axes=[0, 1]), "leave out 0"),
    "ReduceSum over the batch": (lambda b, x: b.node("ReduceSum", x, b.constant(np.array([-3]))), "leave out 0"),
    "Concat of batches": (lambda b, x: b.node("Concat", x, x, axis=0), "leave out 0"),
    "Slice of the batch": (
        lambda b, x: b.node("Slice", x, *(b.constant(np.array([v])) for v in (0, 1, 0))), "leave out 0"),
    "Slice of unnamed axes": (
        lambda b, x: b.node("Slice", x, *(b.constant(np.array([v])) for v in (0, 1))), "written out"),
    "Pad of the batch": (lambda b, x: b.node("Pad", x, b.constant(np.array([1, 0, 0, 0, 0, 0]))), "pads the batch"),
    "Gemm of the transposed": (
        lambda b, x: b.node("Gemm", b.node("Flatten", x), b.constant(np.ones((6, 6))), transA=1), "transA"),
    "a bias for each sample": (lambda b, x: b.node("Add", x, b.constant(np.ones((2, 1, 1)))), "over the batch axis"),
    "a bias of higher rank": (lambda b, x: b.node("Add", x, b.constant(np.ones((1, 1, 1, 1)))), "over the batch axis"),
    "activations of different rank": (lambda b, x: b.node("Add", x, b.node("Flatten", x)), "same rank"),
    "weights as a batch": (lambda b, x: b.node("MatMul", x, b.constant(np.ones((2, 3, 3)))), "rank 2"),
    "the batch times itself": (
        lambda b, x: b.node("MatMul", b.node("Flatten", x), b.node("Flatten", x)), "at least 3"),
    "Unsqueeze before the batch": (lambda b, x: b.node("Unsqueeze", x, b.constant(np.array([0]))), "leave out 0"),
    "weights alone": (lambda b, x: b.node("Neg", b.constant(np.ones((1, 2, 3)))), "initializers only"),
}  # fmt: skip


def mixing(name: str) -> tuple[StepGraph, GraphSpec]:
    b = StepBuilder()
    mixed = MIXING[name][0](b, b.input("x", (2, 3)))
    return b.build(mixed, 3), GraphSpec((InputSpec("x", (2, 3)),), (), "y", 3, 2, ReadoutSpec("mean", 0, 2))


@pytest.mark.parametrize("name", MIXING)
def test_a_node_that_mixes_samples_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shape inference would stop many of these; the rules must do it alone."""
    graph, spec = mixing(name)
    with pytest.raises(BundleError):
        check_step_graph(graph.model, spec)
    monkeypatch.setattr(checks, "_activations", lambda model, constants: _lenient(model, constants))
    monkeypatch.setattr(checks, "_check_output", lambda shapes, spec: None)
    with pytest.raises(BundleError, match=MIXING[name][1]):
        check_step_graph(graph.model, spec)


def _lenient(model: onnx.ModelProto, constants: Constants) -> dict[str, tuple[int, ...]]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        info.name: tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
        for info in (*inferred.value_info, *inferred.output, *inferred.input)
    }
    made = {name: shapes.get(name, (0, 2, 3)) for entry in model.graph.node for name in entry.output}
    return {name: shape for name, shape in (shapes | made).items() if name not in constants}


def test_the_probe_sees_samples_that_are_mixed() -> None:
    """The control of the rules: what they refuse really does mix samples, and the probe notices."""
    b = StepBuilder()
    x = b.input("x", (3,))
    graph = b.build(b.node("Softmax", x, axis=0), 3)
    with pytest.raises(BundleError, match="depends on the other samples"):
        probe_batch(graph.model, graph.spec(1))
    b = StepBuilder()
    x = b.input("x", (3,))
    graph = b.build(b.node("Softmax", x, axis=-1), 3)
    probe_batch(graph.model, graph.spec(1))


def test_a_state_of_another_neuron_is_refused() -> None:
    graph = good()
    spec = graph.spec(4)
    wrong = tuple(StateSpec(s.input, s.output, s.shape, "LIF" if s.neuron == "IF" else s.neuron) for s in spec.states)
    with pytest.raises(BundleError, match="not one state of IF"):
        check_step_graph(graph.model, GraphSpec(spec.inputs, wrong, "y", 4, 4, spec.readout))


def test_the_bodies_of_the_domain_never_change_silently() -> None:
    """Engines recognise neurons by name, and published bundles hold these bytes: a change needs a new domain."""
    recorded = Path(__file__).with_name("neuron_bodies.txt").read_text()
    found = "".join(f"{op} {function_bytes(op).hex()}\n" for op in sorted(NEURONS))
    assert found == recorded


def test_the_builder_refuses_what_it_cannot_mean() -> None:
    b = StepBuilder()
    x = b.input("x", (3,))
    with pytest.raises(BundleError, match="no neuron 'Izhikevich'"):
        b.neuron("Izhikevich", x, (3,))
    with pytest.raises(BundleError, match="needs exactly v_th, v_sub"):
        b.neuron("IF", x, (3,), v_th=1.0)
    with pytest.raises(BundleError, match="parameter of shape"):
        b.neuron("IF", x, (3,), v_th=np.ones((2, 2)), v_sub=1.0)
    with pytest.raises(BundleError, match="used twice"):
        b.input("x", (3,))
    b.state("past", (3,))
    with pytest.raises(BundleError, match="never updated"):
        b.build(x, 3)
    with pytest.raises(BundleError, match="not a state"):
        b.update("x", x)
