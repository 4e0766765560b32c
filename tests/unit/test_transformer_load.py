"""Reading transformers: every spelling of attention is the same function of one sample, and what is not is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest
from onnx import TensorProto, helper

from cloud_sync.convert.errors import ConversionError, RefusedNodesError
from cloud_sync.convert.runtime import Runtime
from cloud_sync.convert.transformer_emit import ann
from cloud_sync.convert.transformer_load import load, transformer
from tests.support.transformers import CLASSES, SHAPE, SPELLINGS, TOKENS, WIDTH, VitWriter, images, vit


def original(model: onnx.ModelProto, samples: np.ndarray) -> np.ndarray:
    """One sample after the other through the exported graph itself."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": sample[np.newaxis]})[0] for sample in samples])


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_batch_through_the_read_network_is_each_sample_through_the_exported_one(spelling: str) -> None:
    model, samples = vit(spelling), images(5)
    (scores,) = Runtime(ann(transformer(model)).model).run({"x": samples}, ["ann/scores"])
    np.testing.assert_allclose(scores, original(model, samples), rtol=1e-4, atol=1e-5)
    assert np.ptp(scores, axis=0).min() > 1e-3  # the control: samples do differ


@pytest.mark.parametrize("spelling", ["plain", "merged"])
def test_a_graph_exported_for_one_sample_only_reads_the_same(spelling: str) -> None:
    samples = images(3)
    fixed, symbolic = (
        Runtime(ann(transformer(vit(spelling, batch=batch))).model).run({"x": samples}, ["ann/scores"])[0]
        for batch in (1, "B")
    )
    np.testing.assert_array_equal(fixed, symbolic)


def test_a_patch_embedding_by_reshape_and_matrix_is_analogue_like_one_by_convolution() -> None:
    writer = VitWriter()
    cut = writer.node("Transpose", writer.shape("x", 0, 2, 4, 2, 4), perm=[0, 1, 3, 2, 4])
    tokens = writer.dense(writer.shape(cut, 0, TOKENS, 16), 16, WIDTH)
    out = writer.node("ReduceMean", writer.dense(writer.gelu(tokens), WIDTH, CLASSES), axes=[1], keepdims=0)
    read = transformer(writer.model(out, SHAPE, CLASSES))
    assert len(read.spiking()) == 1  # what GELU gives; the patches themselves are the input, moved


def refusal(build: Callable[[VitWriter, str], str]) -> str:
    """What is said about a network whose tokens (B, 4, 12) go through ``build``."""
    writer = VitWriter()
    tokens = build(writer, writer.dense(writer.embedding(), WIDTH, WIDTH))
    out = writer.node("ReduceMean", tokens, axes=[1], keepdims=0)
    with pytest.raises(RefusedNodesError) as caught:
        transformer(writer.model(out, SHAPE, WIDTH))
    (found,) = caught.value.refusals
    return str(found)


def masked(writer: VitWriter, tokens: str) -> str:
    scores = writer.node("MatMul", tokens, writer.node("Transpose", tokens, perm=[0, 2, 1]))
    mask = writer.weight(np.triu(np.full((TOKENS, TOKENS), -np.inf), 1))
    weights = writer.node("Softmax", writer.node("Add", scores, mask, name="mask"), axis=-1)
    return writer.node("MatMul", weights, tokens)


def chosen(writer: VitWriter, tokens: str) -> str:
    positive = writer.node("Greater", tokens, writer.number(0.0))
    return writer.node("Where", positive, tokens, writer.number(0.0), name="choice")


def test_a_causal_mask_is_refused_by_the_name_of_its_node() -> None:
    said = refusal(masked)
    assert "'mask'" in said
    assert "masked attention" in said


def test_products_written_as_einsum_are_refused_with_what_to_do() -> None:
    said = refusal(lambda writer, x: writer.node("Einsum", x, x, x, equation="bnd,bmd,bmk->bnk", name="attention"))
    assert "Einsum 'attention'" in said
    assert "MatMul" in said


def test_a_gather_of_entries_that_are_not_neighbours_is_refused() -> None:
    said = refusal(lambda writer, x: writer.node("Gather", x, writer.weight(np.array([2, 0], np.int64)), axis=1))
    assert "not neighbours" in said


def test_every_node_in_the_way_is_named_at_once() -> None:
    writer = VitWriter()
    tokens = chosen(writer, writer.embedding())
    out = writer.node("ReduceMean", writer.node("Softplus", tokens, name="odd"), axes=[1], keepdims=0)
    with pytest.raises(RefusedNodesError) as caught:
        transformer(writer.model(out, SHAPE, WIDTH))
    assert [(one.op, one.node) for one in caught.value.refusals[1:]] == [("Where", "choice"), ("Softplus", "odd")]
    assert caught.value.refusals[0].op == "Greater"


def test_attention_in_one_node_is_refused_with_the_opset_that_writes_it_out() -> None:
    """The vendor's fused node and ONNX's own have the same cure."""
    inputs = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 4, 8])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 4, 8])
    fused = helper.make_node(
        "MultiHeadAttention", ["x", "x", "x"], ["y"], name="mha", domain="com.microsoft", num_heads=2
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([fused], "g", [inputs], [output]), opset_imports=opsets, ir_version=8)
    with pytest.raises(RefusedNodesError, match=r"MultiHeadAttention 'mha'.*opset 18"):
        transformer(model)


def test_a_softmax_of_an_opset_that_meant_something_else_is_refused() -> None:
    model = vit()
    model.opset_import[0].version = 12
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.append(helper.make_node("Flatten", ["x"], ["logits"]))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 64
    with pytest.raises(ConversionError, match="opset 12"):
        transformer(model)


def test_a_network_without_a_matrix_product_behind_the_first_has_nothing_to_spike() -> None:
    writer = VitWriter()
    out = writer.node("ReduceMean", writer.embedding(), axes=[1], keepdims=0)
    with pytest.raises(ConversionError, match="nothing would spike"):
        transformer(writer.model(out, SHAPE, WIDTH))


def test_a_sequence_of_scores_is_no_classifier() -> None:
    writer = VitWriter()
    out = writer.layer_norm(writer.dense(writer.layer_norm(writer.embedding()), WIDTH, WIDTH))
    model = writer.model(out, SHAPE, WIDTH)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for size in (1, TOKENS, WIDTH):
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = size
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(ConversionError, match="must be \\(batch, classes\\)"):
        transformer(model)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe not a model"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ann.onnx"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=r"ann\.onnx"):
        load(path)
