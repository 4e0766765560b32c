"""Correct engines in NumPy, in the test's own process: with an order of summation, and a precision, of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edged.bundle.graph.spec import GraphSpec
from edged.domain import Array
from edged.ports import Inference
from tests.support.reference import STANDARD, Reference, patches

Floats = NDArray[Any]


class NumpyEngine:
    """Implements ``edged.ports.Engine`` on the tests' own simulator."""

    def __init__(self, reference: Reference, name: str = "numpy", max_batch: int = 3) -> None:
        self.name = name
        self.max_batch = max_batch
        self.reference = reference

    async def infer(self, inputs: Mapping[str, Array]) -> Inference:
        return Inference(self.reference.window(inputs)[0], 1)

    async def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        y, new = self.reference.step(inputs, states)
        return {self.reference.spec.output: y}, new


def narrow(model: onnx.ModelProto, spec: GraphSpec, *, numbers: int = 11, sums: int = 11) -> Reference:
    """Layers whose weights and inputs have so many bits, and whose sums, made one after the other, have so many.

    float16 has 11, bfloat16 has 8.
    """

    def added(x: Floats, weight: Floats) -> Floats:
        """(…, K) and (K, N) → (…, N)."""
        x, weight = rounded(x, numbers), rounded(weight, numbers)
        total = np.zeros((*x.shape[:-1], weight.shape[1]))
        for k in range(x.shape[-1]):
            total = rounded(total + rounded(x[..., k, np.newaxis] * weight[k], sums), sums)
        return total

    def gemm(a: Floats, b: Floats, c: Floats | None = None, *, transB: int = 0) -> tuple[Floats]:  # noqa: N803  # ONNX's
        y = added(a, b.T if transB else b)
        return (y if c is None else y + c,)

    def matmul(a: Floats, b: Floats) -> tuple[Floats, ...]:
        return (added(a, b),) if b.ndim == 2 else STANDARD["MatMul"](a, b)  # more axes: no weights

    def conv(x: Floats, w: Floats, b: Floats | None = None, **how: Any) -> tuple[Floats]:
        pads, strides, group = (how.get(k, d) for k, d in (("pads", (0,) * 4), ("strides", (1, 1)), ("group", 1)))
        assert group == 1
        seen = patches(x, w.shape[2:], pads, strides).transpose(0, 2, 3, 1, 4, 5)
        y = added(seen.reshape(*seen.shape[:3], -1), w.reshape(len(w), -1).T).transpose(0, 3, 1, 2)
        return (y if b is None else y + b.reshape(1, -1, 1, 1),)

    return Reference(model, spec, layers={"Gemm": gemm, "MatMul": matmul, "Conv": conv})


def rounded(values: Floats, bits: int) -> Floats:
    """The nearest numbers with so many bits."""
    fraction, exponent = np.frexp(values.astype(np.float64))
    return np.asarray(np.ldexp(np.rint(np.ldexp(fraction, bits)), exponent - bits))
