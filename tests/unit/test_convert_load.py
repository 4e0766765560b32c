"""Reading an ANN: the same function as in stock ONNX Runtime, and every refusal with the node's name and the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest
from onnx import TensorProto, helper

from cloud_sync.convert.ann import Ann
from cloud_sync.convert.errors import ConversionError, RefusedNodesError
from cloud_sync.convert.fold import fold
from cloud_sync.convert.load import load, network
from cloud_sync.convert.network import Affine, AveragePool, Concat, Conv, Dense, MaxPool, Relu, Scale, Sum
from tests.support import anns


def stock(model: onnx.ModelProto, samples: Any) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": samples})[0]


@pytest.mark.parametrize("seed", range(3))
def test_a_loaded_network_computes_what_onnx_runtime_computes_from_the_file(seed: int, tmp_path: Path) -> None:
    model, samples = anns.residual(seed), anns.images(9)
    path = tmp_path / "ann.onnx"
    path.write_bytes(model.SerializeToString())
    found = fold(load(path))
    np.testing.assert_allclose(Ann(found).logits(samples), stock(model, samples), rtol=1e-4, atol=1e-5)
    assert {AveragePool, Conv, Dense, Sum} <= {type(layer.operation) for layer in found.layers}
    assert not any(isinstance(layer.operation, Affine) for layer in found.layers)


@pytest.mark.parametrize("shape", [[1, -1], [0, -1], [-1, 128], [1, 128]])
def test_a_batch_of_one_in_the_file_becomes_any_batch(shape: list[int]) -> None:
    ann = anns.AnnWriter()
    flat = ann.node("Reshape", ann.node("Relu", "x"), ann.weight(np.array(shape, np.int64)))
    out = ann.node("Gemm", flat, ann.weight(ann.random.normal(size=(4, 128))), transB=1)
    model = ann.model(out, anns.SHAPE, 4, batch=1)
    samples = anns.images(5)
    one_by_one = np.concatenate([stock(model, samples[k : k + 1]) for k in range(5)])
    np.testing.assert_allclose(Ann(fold(network(model))).logits(samples), one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("size", [2, 3])
def test_auto_pad_becomes_the_same_explicit_pads(mode: str, size: int) -> None:
    ann = anns.AnnWriter()
    value = ann.node("Relu", ann.conv("x", (3, 2, size, size), auto_pad=mode, strides=[2, 2]))
    value = ann.node("AveragePool", value, kernel_shape=[2, 2], auto_pad=mode)
    out = ann.node("Flatten", ann.node("GlobalAveragePool", value))
    model, samples = ann.model(out, anns.SHAPE, 3), anns.images(4)
    np.testing.assert_allclose(Ann(fold(network(model))).logits(samples), stock(model, samples), rtol=1e-4, atol=1e-5)


def _tail(ann: anns.AnnWriter, value: str) -> onnx.ModelProto:
    return ann.model(ann.node("Flatten", ann.node("Relu", value)), anns.SHAPE, "N")


def _one(op: str, *more: Any, **attributes: Any) -> onnx.ModelProto:
    ann = anns.AnnWriter()
    return _tail(ann, ann.node(op, "x", *(ann.weight(np.asarray(array)) for array in more), name="odd", **attributes))


def _moving(op: str) -> onnx.ModelProto:
    """A binary operator on two activations of one shape."""
    ann = anns.AnnWriter()
    return _tail(ann, ann.node(op, "x", ann.node("Relu", "x"), name="odd"))


def _several(op: str, outputs: int, *more: Any, **attributes: Any) -> onnx.ModelProto:
    """An operator with several outputs, of which all are used."""
    ann = anns.AnnWriter()
    names = ["odd", *(f"odd.{k}" for k in range(1, outputs))]
    given = ["x", *(ann.weight(np.asarray(array)) for array in more)]
    ann.nodes.append(helper.make_node(op, given, names, name="odd", **attributes))
    cast = ann.node("Cast", names[-1], to=TensorProto.FLOAT)
    return ann.model(ann.node("Flatten", ann.node("Relu", cast)), anns.SHAPE, "N")


def _recurrent(op: str, gates: int) -> onnx.ModelProto:
    ann = anns.AnnWriter()
    rows = ann.node("Reshape", "x", ann.weight(np.array([1, 2, 64])))
    weights = [ann.weight(np.ones((1, gates * 4, width))) for width in (64, 4)]
    made = ann.node(op, rows, *weights, name="odd", hidden_size=4)
    flat = ann.node("Reshape", made, ann.weight(np.array([1, 8])))
    return ann.model(ann.node("Relu", flat), anns.SHAPE, 8, batch=1)


def _branch() -> onnx.ModelProto:
    ann = anns.AnnWriter()
    best = ann.node("ReduceMax", "x", keepdims=0)
    asked = ann.node("Greater", best, ann.weight(np.array(0.5)))
    out = helper.make_tensor_value_info("kept", TensorProto.FLOAT, None)
    same = helper.make_graph([helper.make_node("Identity", ["x"], ["kept"])], "same", [], [out])
    return _tail(ann, ann.node("If", asked, name="odd", then_branch=same, else_branch=same))


def _repeated(op: str) -> onnx.ModelProto:
    """A Loop that runs three times, or a Scan over rows: each adds the image to what it has."""
    ann = anns.AnnWriter()
    kind = TensorProto.FLOAT
    values = [helper.make_tensor_value_info(name, kind, None) for name in ("sum", "row", "more")]
    if op == "Scan":
        body = helper.make_graph(
            [helper.make_node("Add", ["sum", "row"], ["more"])], "body", values[:2], [values[2]]
        )  # fmt: skip
        rows = ann.node("Transpose", "x", perm=[2, 0, 1, 3])
        start = ann.weight(np.zeros((1, 2, 8)))
        out = ann.node("Scan", start, rows, name="odd", body=body, num_scan_inputs=1)
        return ann.model(ann.node("Relu", ann.node("Flatten", out)), anns.SHAPE, 16, batch=1)
    again = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "on")]
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    nodes = [helper.make_node("Add", ["sum", "x"], ["more"]), helper.make_node("Identity", ["go"], ["on"])]
    body = helper.make_graph(nodes, "body", [count, again[0], values[0]], [again[1], values[2]])
    times, yes = ann.weight(np.array(3)), ann.weight(np.array(True))
    return _tail(ann, ann.node("Loop", times, yes, "x", name="odd", body=body))


def _detector() -> onnx.ModelProto:
    """What exporters put behind a detector: boxes and scores, from which the best are picked."""
    ann = anns.AnnWriter()
    boxes = ann.node("Reshape", "x", ann.weight(np.array([1, 32, 4])))
    scores = ann.node("Reshape", ann.node("Relu", "x"), ann.weight(np.array([1, 1, 128])))
    some = ann.node("Slice", scores, *(ann.weight(np.array([k])) for k in (0, 32, 2)))
    picked = ann.node("NonMaxSuppression", boxes, some, ann.weight(np.array([5])), name="odd")
    out = ann.node("Relu", ann.node("Cast", picked, to=TensorProto.FLOAT))
    return ann.model(out, anns.SHAPE, 3, batch=1)


def _quantised() -> onnx.ModelProto:
    ann = anns.AnnWriter()
    step = ann.weight(np.array(0.01))
    return _tail(ann, ann.node("DequantizeLinear", ann.node("QuantizeLinear", "x", step, name="odd"), step))


SMOOTH, RECURRENT, DETECTION = "a straight line with a floor", "it is recurrent", "detection post-processing"
REFUSED = {
    "Sigmoid": (_one("Sigmoid"), SMOOTH),
    "Tanh": (_one("Tanh"), SMOOTH),
    "Exp": (_one("Exp"), "not supported"),
    "Clip below zero": (_one("Clip", np.float32(-1), np.float32(1)), "it clips at -1"),
    "Clip from above only": (_one("Clip", np.float32(-np.inf), np.float32(6)), "it clips at -inf"),
    "Mul": (_moving("Mul"), "multiplies two activations"),
    "Sub": (_moving("Sub"), "subtracts two activations"),
    "Div": (_moving("Div"), "divides by an activation"),
    "Div by zero": (_one("Div", np.zeros((1, 2, 1, 1))), "divides by zero"),
    "Softmax inside": (_one("Softmax", axis=1), "not over the classes at the end"),
    "slopes": (_one("PRelu", np.ones((1, 8, 8))), "its slope has shape"),
    "Concat": (_one("Concat", np.ones((1, 2, 8, 8)), axis=1), "joins activations with a constant"),
    "Concat of rows": (_one("Concat", axis=2), "along axis 2"),
    "ReduceMean": (_one("ReduceMean", axes=[1]), "does not average over all positions"),
    "indices": (_several("MaxPool", 2, kernel_shape=[8, 8]), "its second output is used"),
    "TopK": (_several("TopK", 2, np.array([2])), DETECTION),
    "LSTM": (_recurrent("LSTM", 4), RECURRENT),
    "GRU": (_recurrent("GRU", 3), RECURRENT),
    "RNN": (_recurrent("RNN", 1), RECURRENT),
    "If": (_branch(), "dynamic control flow"),
    "Loop": (_repeated("Loop"), "dynamic control flow"),
    "Scan": (_repeated("Scan"), "dynamic control flow"),
    "NonMaxSuppression": (_detector(), DETECTION),
    "Gelu": (_one("Erf"), SMOOTH),
    "quantised": (_quantised(), "quantised already"),
    "training": (_one("Dropout", np.float32(0.5), np.array(True)), "in training mode"),
    "variance": (_one("BatchNormalization", *([np.ones(2)] * 4), epsilon=-2.0), "variance is not positive"),
    "shared constant": (_one("Add", np.ones((1, 1, 8, 8))), "a constant of shape (1, 1, 8, 8)"),
    "nan": (_one("Conv", np.full((2, 2, 1, 1), np.nan)), "not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_node_that_has_no_spiking_form_is_refused_by_name_and_reason(case: str) -> None:
    model, reason = REFUSED[case]
    with pytest.raises(RefusedNodesError) as caught:
        network(model)
    refusal = next(refusal for refusal in caught.value.refusals if refusal.node == "odd")
    assert reason in refusal.reason
    assert "'odd'" in str(caught.value)


def test_a_product_of_activations_and_a_mixing_reshape_are_refused_together() -> None:
    ann = anns.AnnWriter()
    flat = ann.node("Flatten", ann.node("Relu", "x"))
    turned = ann.node("Reshape", flat, ann.weight(np.array([128, 1], np.int64)), name="turned")
    out = ann.node("MatMul", flat, turned, name="attention")
    with pytest.raises(RefusedNodesError) as caught:
        network(ann.model(out, anns.SHAPE, 1))
    assert [refusal.node for refusal in caught.value.refusals] == ["turned", "attention"]


def test_a_reshape_whose_shape_depends_on_the_image_is_refused() -> None:
    ann = anns.AnnWriter()
    value = ann.node("Relu", "x")
    asked = ann.node("Cast", ann.node("ReduceMax", value, name="peak", keepdims=0), name="asked", to=TensorProto.INT64)
    shape = ann.node("Unsqueeze", asked, ann.weight(np.array([0])), name="lifted")
    out = ann.node("Flatten", ann.node("Reshape", value, shape, name="dynamic"))
    with pytest.raises(RefusedNodesError) as caught:
        network(ann.model(out, anns.SHAPE, "N"))
    assert {"peak", "asked", "dynamic"} <= {refusal.node for refusal in caught.value.refusals}


def _exported() -> onnx.ModelProto:
    """What exporters write around a network: shapes as programs, zero biases as Expand, Dropout, casts of constants."""
    ann = anns.AnnWriter()
    size = ann.node("Slice", ann.node("Shape", weight := ann.weight(ann.random.normal(0, 0.3, (4, 2, 3, 3)))),
        ann.weight(np.array([0])), ann.weight(np.array([1])))  # fmt: skip
    zero = ann.node("CastLike", ann.node("Constant", value_float=0.0), "x")
    value = ann.node("Relu", ann.node("Conv", "x", weight, ann.node("Expand", zero, size)))
    value = ann.node("Dropout", value, ann.weight(np.array(0.5)))
    batch = ann.node("Gather", ann.node("Shape", value), ann.weight(np.array(0)))
    rows = [ann.node("Unsqueeze", batch, ann.weight(np.array([0]))), ann.weight(np.array([-1]))]
    flat = ann.node("Reshape", value, ann.node("Concat", *rows, axis=0))
    logits = ann.node("Gemm", flat, ann.weight(ann.random.normal(0, 0.1, (144, 5))), name="logits")
    return ann.model(ann.node("Identity", ann.node("Softmax", logits, axis=1)), anns.SHAPE, 5)


def test_what_exporters_write_around_a_network_vanishes() -> None:
    model, samples = _exported(), anns.images(7)
    found = network(model)
    assert [type(layer.operation).__name__ for layer in found.layers] == ["Conv", "Relu", "Reshape", "Dense"]
    scores = stock(model, samples)
    logits = Ann(fold(found)).logits(samples)
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), scores, atol=1e-5)
    assert (logits.argmax(axis=1) == scores.argmax(axis=1)).all()
    (note,) = found.notes
    assert "Softmax" in note
    assert "does not change the winner" in note
    assert network(anns.residual()).notes == ()  # the control: nothing was left out there


@pytest.mark.parametrize("seed", range(3))
def test_pooling_clipping_leaking_and_joining_compute_what_onnx_runtime_computes(seed: int) -> None:
    model, samples = anns.modern(seed), anns.images(9)
    found = fold(network(model))
    np.testing.assert_allclose(Ann(found).logits(samples), stock(model, samples), rtol=1e-4, atol=1e-5)
    kinds = {type(layer.operation) for layer in found.layers}
    assert {Concat, MaxPool, Scale} <= kinds
    assert any(layer.operation == Relu(6.0) for layer in found.layers)
    assert any(isinstance(layer.operation, Conv) and layer.operation.groups == 6 for layer in found.layers)


def test_a_cut_gives_the_value_behind_the_named_node() -> None:
    model, samples = anns.residual(), anns.images(4)
    relu = [node.output[0] for node in model.graph.node if node.op_type == "Relu"][1]
    found = fold(network(model, until=relu))
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    del tapped.graph.output[:]
    tapped.graph.output.append(helper.make_tensor_value_info(relu, TensorProto.FLOAT, None))
    np.testing.assert_allclose(Ann(found).logits(samples), stock(tapped, samples).reshape(4, -1), rtol=1e-4, atol=1e-5)
    assert relu in found.notes[0]
    with pytest.raises(ConversionError, match="no node 'nowhere'"):
        network(model, until="nowhere")


def test_the_part_that_can_be_converted_is_named_and_can_be_cut_there() -> None:
    ann = anns.AnnWriter()
    kept = ann.node("Relu", ann.conv("x", (3, 2, 3, 3)), name="kept")
    out = ann.node("Flatten", ann.node("Relu", ann.node("Tanh", kept, name="odd"), name="behind"))
    model = ann.model(out, anns.SHAPE, 108)
    with pytest.raises(RefusedNodesError, match="--until 'kept'"):
        network(model)
    assert network(model, until="kept").classes == 108


def test_of_several_outputs_one_can_be_chosen() -> None:
    ann = anns.AnnWriter()
    kept = ann.node("Relu", ann.conv("x", (3, 2, 3, 3)), name="features")
    model = ann.model(ann.node("Flatten", kept, name="scores"), anns.SHAPE, 108)
    model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["B", 3, 6, 6]))
    with pytest.raises(ConversionError) as caught:
        network(model)
    assert caught.value.hint == "a bundle has one: choose it with --until, from 'scores', 'features'"
    assert network(model, until="scores").notes == ()


def test_a_node_of_a_foreign_domain_is_refused_although_its_name_is_known() -> None:
    ann = anns.AnnWriter()
    value = ann.node("Relu", "x", name="ours", domain="com.example")
    model = ann.model(ann.node("Flatten", ann.node("Relu", value)), anns.SHAPE, 128)
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(RefusedNodesError) as caught:
        network(model)
    assert "ours" in [refusal.node for refusal in caught.value.refusals]


def _spoilt(change: Any) -> onnx.ModelProto:
    model = anns.plain()
    change(model)
    return model


def _external(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def _old(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 8


def _two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["B", 1]))


def _integers(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64


def _symbolic(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"


def _no_relu(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.op_type = "Identity" if node.op_type == "Relu" else node.op_type


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_external, "other files"),
        (_old, "opset 8"),
        (_two_inputs, "2 inputs"),
        (_integers, "valid ONNX|not float32"),
        (_symbolic, "only the batch may be symbolic"),
        (_no_relu, "no Relu"),
    ],
)
def test_a_file_that_is_no_network_of_ours_says_why(change: Any, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        network(_spoilt(change))
    network(anns.plain())  # the control: unchanged, it is taken


def test_files_that_are_missing_or_not_onnx_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="No such file"):
        load(tmp_path / "none.onnx")
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"\xff" * 40)
    with pytest.raises(ConversionError, match=r"junk\.onnx"):
        load(junk)
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    with pytest.raises(ConversionError, match=r"empty\.onnx"):
        load(empty)
