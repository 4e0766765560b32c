"""How rounding errors pass through functions: the bound holds for every input that is off by its own error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edged.bundle.graph.builder import StepBuilder, assemble
from edged.bundle.graph.cells import magnitudes
from edged.bundle.graph.sensitivity import VALUE
from edged.bundle.graph.stock import Stock
from tests.support.reference import STANDARD

WIDTH = 8
EPS = 1e-7  # stands for the rounding of float32 where everything is computed in float64

Build = Callable[[StepBuilder, str], str]


def plain(op: str, **attributes: Any) -> Build:
    return lambda builder, x: builder.node(op, x, **attributes)


def norm(builder: StepBuilder, x: str) -> str:
    scale, bias = (builder.constant(np.linspace(low, 1.5, WIDTH)) for low in (-1.5, 0.2))
    return builder.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5)


def attention(builder: StepBuilder, x: str) -> str:
    return builder.node("Softmax", norm(builder, x), axis=-1)


FUNCTIONS: dict[str, tuple[Build, Callable[[NDArray[np.float64]], NDArray[np.float64]]]] = {
    "erf": (plain("Erf"), lambda x: STANDARD["Erf"](x)[0]),
    "exp": (plain("Exp"), np.exp),
    "sigmoid": (plain("Sigmoid"), lambda x: 1 / (1 + np.exp(-x))),
    "tanh": (plain("Tanh"), np.tanh),
    "reciprocal": (plain("Reciprocal"), lambda x: 1 / x),
    "softmax": (plain("Softmax", axis=-1), lambda x: STANDARD["Softmax"](x)[0]),
    "layer norm": (norm, lambda x: normal(x)),
    "softmax of a layer norm": (attention, lambda x: STANDARD["Softmax"](normal(x))[0]),
    "quotient": (lambda b, x: b.node("Div", x, b.node("Exp", x)), lambda x: x / np.exp(x)),
    "root": (lambda b, x: b.node("Sqrt", b.node("Exp", x)), lambda x: np.exp(x / 2)),
}


def normal(x: NDArray[np.float64]) -> NDArray[np.float64]:
    scale, bias = (np.linspace(low, 1.5, WIDTH) for low in (-1.5, 0.2))
    return np.asarray(STANDARD["LayerNormalization"](x, scale, bias)[0])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_input_that_is_off_by_its_error_moves_the_output_by_more_than_its_bound(name: str) -> None:
    build, function = FUNCTIONS[name]
    builder = StepBuilder()
    graph = builder.build(build(builder, builder.input("x", (WIDTH,))), WIDTH)
    rng = np.random.default_rng(5)
    x = rng.choice([-1, 1], (50, WIDTH)) * rng.uniform(0.2, 3, (50, WIDTH))
    size = np.abs(x) * rng.uniform(1, 20, (50, WIDTH))  # sums of both signs round worse than their result says
    feeds = {"x": size.astype(np.float32), f"{VALUE}x": x.astype(np.float32)}
    bound = Stock(magnitudes(graph.model, graph.spec(1), [])).run(feeds)["magnitude/y"].astype(np.float64)
    worst = np.zeros_like(bound)
    for _ in range(200):
        moved = x + EPS * size * rng.choice([-1, 1], x.shape)
        worst = np.maximum(worst, np.abs(function(moved) - function(x)) / (EPS * bound))
    assert worst.max() <= 1.01
    assert worst.max() > 0.05  # the control: the bound is not just large


def test_a_graph_of_sums_alone_asks_for_no_values() -> None:
    builder = StepBuilder()
    weights = builder.constant(np.ones((WIDTH, 3), np.float32))
    graph = builder.build(builder.node("MatMul", builder.input("x", (WIDTH,)), weights), 3)
    made: onnx.ModelProto = magnitudes(graph.model, graph.spec(1), [])
    assert [entry.name for entry in made.graph.input] == ["x"]
    assert assemble(made.graph).graph == made.graph
