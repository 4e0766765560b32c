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
from cloud_sync.convert.network import Affine, AveragePool, Conv, Dense, Sum
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
    return ann.model(ann.node("Flatten", ann.node("Relu", value)), anns.SHAPE, 128)


def _one(op: str, *more: Any, **attributes: Any) -> onnx.ModelProto:
    ann = anns.AnnWriter()
    return _tail(ann, ann.node(op, "x", *(ann.weight(np.asarray(array)) for array in more), name="odd", **attributes))


REFUSED = {
    "Sigmoid": (_one("Sigmoid"), "not supported"),
    "Clip": (_one("Clip", np.float32(0), np.float32(6)), "not supported"),
    "Mul": (_one("Mul", np.ones((1, 2, 1, 1))), "not supported"),
    "variance": (_one("BatchNormalization", *([np.ones(2)] * 4), epsilon=-2.0), "variance is not positive"),
    "shared constant": (_one("Add", np.ones((1, 1, 8, 8))), "a constant of shape (1, 1, 8, 8)"),
    "nan": (_one("Conv", np.full((2, 2, 1, 1), np.nan)), "not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_node_that_has_no_spiking_form_is_refused_by_name_and_reason(case: str) -> None:
    model, reason = REFUSED[case]
    with pytest.raises(RefusedNodesError) as caught:
        network(model)
    (refusal,) = caught.value.refusals
    assert refusal.node == "odd"
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


def test_a_reshape_whose_shape_is_computed_is_refused() -> None:
    ann = anns.AnnWriter()
    value = ann.node("Relu", "x")
    out = ann.node("Reshape", value, ann.node("Shape", value, name="asked"), name="dynamic")
    out = ann.node("Flatten", out)
    with pytest.raises(RefusedNodesError) as caught:
        network(ann.model(out, anns.SHAPE, 128))
    assert [refusal.node for refusal in caught.value.refusals] == ["asked", "dynamic"]


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
