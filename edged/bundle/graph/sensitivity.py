"""How rounding errors pass through functions: the rules by which the graph of magnitudes bounds what is no sum.

For a sum, Σ|w|·|x| + |b| bounds the error of any order of summation in units of eps. A function f passes an error on by
its slope and adds one of its own, so its magnitude is ``|f'(x)|·M(x) + |f(x)|`` with the magnitude M(x) of its input
and the *value* x. First order only: errors are some eps, values are not. Writes nodes; runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

VALUE = "value/"  # what a tensor is, beside its magnitude


class Rules:
    """Collects the nodes of a graph of magnitudes. A tensor's magnitude has its own name, its value ``VALUE`` + name.

    ``constants`` are the names of initializers, whose value keeps its name with ``VALUE`` too.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._made = 0

    def add(self, node: onnx.NodeProto) -> bool:
        """Write the magnitude of a function's output; False where the node needs no rule of its own."""
        rule = _RULES.get(node.op_type)
        if rule is None:
            return False
        magnitude = rule(self, node, node.input[0], VALUE + node.input[0], VALUE + node.output[0])
        self.nodes.append(helper.make_node("Identity", [magnitude], [node.output[0]]))
        return True

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """One node with one output."""
        self._made += 1
        output = f"rule/{self._made}.{op}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def number(self, value: float) -> str:
        """A scalar."""
        return self._constant(np.asarray(value, np.float32))

    def axes(self, numbers: Sequence[int]) -> str:
        """A list of axes."""
        return self._constant(np.asarray(numbers, np.int64))

    def _constant(self, value: NDArray[Any]) -> str:
        self._made += 1
        name = f"rule/{self._made}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def value_node(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node itself, on values."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = ""
    del copy.input[:], copy.output[:]
    copy.input.extend(VALUE + name if name else "" for name in node.input)
    copy.output.extend(VALUE + name for name in node.output)
    return copy


def has_rule(op: str) -> bool:
    """Whether an op is a function with a rule here."""
    return op in _RULES


def _slope(of: Callable[[Rules, str, str], str]) -> Callable[[Rules, onnx.NodeProto, str, str, str], str]:
    """A function of each element: its slope, from x and y, times the magnitude; and 1 or |y|, whichever is more."""

    def rule(rules: Rules, _: onnx.NodeProto, size: str, x: str, y: str) -> str:
        own = rules.node("Max", rules.node("Abs", y), rules.number(1.0))
        return rules.node("Add", rules.node("Mul", rules.node("Abs", of(rules, x, y)), size), own)

    return rule


def _erf(rules: Rules, x: str, _: str) -> str:
    power = rules.node("Exp", rules.node("Neg", rules.node("Mul", x, x)))
    return rules.node("Mul", power, rules.number(2 / math.sqrt(math.pi)))


def _sqrt(rules: Rules, _: str, y: str) -> str:
    return rules.node("Div", rules.number(0.5), rules.node("Max", y, rules.number(float(np.finfo(np.float32).tiny))))


def _softmax(rules: Rules, node: onnx.NodeProto, size: str, _: str, y: str) -> str:
    """y·(M + Σ y·M) + y."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    mean = rules.node("ReduceSum", rules.node("Mul", y, size), rules.axes([axis]), keepdims=1)
    both = rules.node("Add", rules.node("Add", size, mean), rules.number(1.0))
    return rules.node("Mul", y, both)


def _layer_norm(rules: Rules, node: onnx.NodeProto, size: str, x: str, y: str) -> str:
    """|scale|/s·(m + |z|·mean(|z|·m)) + |y| + |bias|, with z = (x - mean(x))/s, deviation s and m = M + mean(M)."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    again, mean, inverse = (f"rule/{node.output[0]}.{part}" for part in ("again", "mean", "inverse"))
    given = [VALUE + name for name in node.input]
    rules.nodes.append(helper.make_node("LayerNormalization", given, [again, mean, inverse], **attributes))
    axes = list(range(int(attributes.get("axis", -1)), 0))
    spread = rules.node("Add", size, rules.node("ReduceMean", size, axes=axes, keepdims=1))
    z = rules.node("Abs", rules.node("Mul", rules.node("Sub", x, mean), inverse))
    shared = rules.node("ReduceMean", rules.node("Mul", z, spread), axes=axes, keepdims=1)
    slope = rules.node("Mul", rules.node("Add", spread, rules.node("Mul", z, shared)), inverse)
    passed = rules.node("Add", rules.node("Mul", slope, node.input[1]), rules.node("Abs", y))
    return rules.node("Add", passed, node.input[2]) if len(node.input) > 2 else passed


def _quotient(rules: Rules, node: onnx.NodeProto, size: str, _: str, y: str) -> str:
    """(M(a) + |y|·M(b)) / |b|."""
    passed = rules.node("Mul", rules.node("Abs", y), node.input[1])
    return rules.node("Div", rules.node("Add", size, passed), rules.node("Abs", VALUE + node.input[1]))


_RULES: dict[str, Callable[[Rules, onnx.NodeProto, str, str, str], str]] = {
    "Div": _quotient,
    "Erf": _slope(_erf),
    "Exp": _slope(lambda _, __, y: y),
    "LayerNormalization": _layer_norm,
    "Reciprocal": _slope(lambda rules, _, y: rules.node("Mul", y, y)),
    "Sigmoid": _slope(lambda rules, _, __: rules.number(0.25)),
    "Softmax": _softmax,
    "Sqrt": _slope(_sqrt),
    "Tanh": _slope(lambda rules, _, __: rules.number(1.0)),
}
