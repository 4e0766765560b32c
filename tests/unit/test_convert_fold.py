"""Folding: the same function to 1e-5 wherever the affine stands, and a refusal where it cannot be folded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest

from cloud_sync.convert.ann import Ann
from cloud_sync.convert.errors import RefusedNodesError
from cloud_sync.convert.fold import fold
from cloud_sync.convert.load import network
from cloud_sync.convert.network import Affine, Conv, Dense
from tests.support import anns


def _behind_conv(ann: anns.AnnWriter) -> tuple[str, int]:
    value = ann.norm(ann.conv("x", (4, 2, 3, 3)), 4)
    value = ann.node("Add", value, ann.weight(ann.random.normal(size=(4, 1, 1))))
    return ann.node("GlobalAveragePool", ann.node("Relu", value)), 4


def _behind_grouped_conv(ann: anns.AnnWriter) -> tuple[str, int]:
    value = ann.norm(ann.conv("x", (6, 1, 3, 3), bias=True, group=2), 6)
    return ann.node("GlobalAveragePool", ann.node("Relu", value)), 6


def _behind_gemm(ann: anns.AnnWriter) -> tuple[str, int]:
    value = ann.node("Gemm", ann.node("Flatten", "x"), ann.weight(ann.random.normal(0, 0.1, (7, 128))), transB=1)
    return ann.node("Relu", ann.norm(value, 7)), 7


def _behind_matmul(ann: anns.AnnWriter) -> tuple[str, int]:
    value = ann.node("MatMul", ann.node("Flatten", "x"), ann.weight(ann.random.normal(0, 0.1, (128, 7))))
    return ann.node("Relu", ann.node("Add", ann.weight(ann.random.normal(size=7)), value)), 7


def _on_a_value_used_twice(ann: anns.AnnWriter) -> tuple[str, int]:
    value = ann.conv("x", (4, 2, 3, 3))
    return ann.node("GlobalAveragePool", ann.node("Relu", ann.node("Add", ann.norm(value, 4), value))), 4


def _before_the_first_layer(ann: anns.AnnWriter) -> tuple[str, int]:
    return ann.node("GlobalAveragePool", ann.node("Relu", ann.conv(ann.norm("x", 2), (4, 2, 3, 3)))), 4


PLACES = (
    _behind_conv,
    _behind_grouped_conv,
    _behind_gemm,
    _behind_matmul,
    _on_a_value_used_twice,
    _before_the_first_layer,
)


@pytest.mark.parametrize("place", PLACES)
def test_folding_is_exact_to_1e_5(place: Callable[[anns.AnnWriter], tuple[str, int]]) -> None:
    ann = anns.AnnWriter(7)
    value, width = place(ann)
    model = ann.model(ann.node("Flatten", value), anns.SHAPE, width)
    samples = anns.images(8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": samples})[0]
    before = network(model)
    after = fold(before)
    assert any(isinstance(layer.operation, Affine) for layer in before.layers)
    assert not any(isinstance(layer.operation, Affine) for layer in after.layers)
    np.testing.assert_allclose(Ann(after).logits(samples), expected, rtol=1e-5, atol=1e-5)


def test_a_norm_in_its_usual_place_costs_no_layer() -> None:
    folded = fold(network(anns.residual()))
    assert sum(isinstance(layer.operation, Conv) for layer in folded.layers) == 3
    assert sum(isinstance(layer.operation, Dense) for layer in folded.layers) == 2


def test_a_norm_on_a_vector_without_weights_of_its_own_is_refused_by_name() -> None:
    ann = anns.AnnWriter()
    value = ann.norm(ann.node("Relu", ann.node("Flatten", "x")), 128)
    with pytest.raises(RefusedNodesError, match=value) as caught:
        fold(network(ann.model(value, anns.SHAPE, 128)))
    assert "follows no Conv" in caught.value.refusals[0].reason
