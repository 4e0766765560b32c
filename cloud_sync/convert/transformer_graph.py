"""A transformer as its conversion sees it: operations on named values, with the shapes of a batch of one.

What ONNX spells in many ways (Gemm, MatMul; Reshape, Squeeze, Flatten; Gather, Split, Slice) is spelt in one way here.
Axes are counted from the end. A value's *whole* shape is the one that it has for one sample, whatever became of the
batch axis in between; ``stored`` is its shape, without the batch axis, where samples are told apart by an axis 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from cloud_sync.convert.network import Conv, Dense, Floats

Shape: TypeAlias = tuple[int, ...]
Operand: TypeAlias = "str | NDArray[Any]"


@dataclass(frozen=True, slots=True)
class Product:
    """The matrix product of two activations."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Element by element, with broadcasting; at least one operand is an activation."""

    op: Literal["Add", "Sub", "Mul", "Div", "Pow"]


@dataclass(frozen=True, slots=True)
class Rearrange:
    """The same numbers in the same order, in the node's shape."""


@dataclass(frozen=True, slots=True)
class Permute:
    """Axes in another order, those of the whole shape."""

    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """Every ``step``-th entry from ``start`` up to ``stop`` along an axis; then rearranged to the node's shape."""

    axis: int
    start: int
    stop: int
    step: int = 1


@dataclass(frozen=True, slots=True)
class Join:
    """Operands one after the other along an axis: activations, or one activation between constants (a class token)."""

    axis: int


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean over axes; then rearranged to the node's shape."""

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """Layer normalisation over the axes from ``axis`` to the last."""

    axis: int
    scale: Floats
    bias: Floats
    epsilon: float


@dataclass(frozen=True, slots=True)
class Softmax:
    """exp(x) over its sum along an axis."""

    axis: int


@dataclass(frozen=True, slots=True)
class Gelu:
    """x · Φ(x); ``tanh``: in the usual approximation."""

    tanh: bool = False


@dataclass(frozen=True, slots=True)
class Unary:
    """A function of each element, by its name in ONNX."""

    op: str


Operation: TypeAlias = (
    Conv | Dense | Product | Arithmetic | Rearrange | Permute | Cut | Join | Mean | Norm | Softmax | Gelu | Unary
)


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation. ``inputs`` are names of activations, or constants; ``shape`` is the whole shape of ``output``."""

    name: str
    operation: Operation
    inputs: tuple[Operand, ...]
    output: str
    shape: Shape

    @property
    def activations(self) -> tuple[str, ...]:
        """The inputs that are no constants."""
        return tuple(operand for operand in self.inputs if isinstance(operand, str))

    @property
    def weighted(self) -> bool:
        """Whether constants weigh the input: what becomes synapses."""
        return isinstance(self.operation, Conv | Dense)

    @property
    def linear(self) -> bool:
        """Whether the mean of outputs is the output of the mean of inputs, constants included in both."""
        match self.operation:
            case Arithmetic(op="Mul"):
                return len(self.activations) == 1
            case Arithmetic(op="Div"):
                return len(self.activations) == 1 and isinstance(self.inputs[0], str)
            case Arithmetic(op="Pow") | Product() | Norm() | Softmax() | Gelu() | Unary():
                return False
        return True


@dataclass(frozen=True, slots=True, eq=False)
class Transformer:
    """A feed-forward network in topological order: ``input`` (whole shape (1, …)) → ``output``, (1, classes)."""

    input: str
    output: str
    nodes: tuple[Node, ...]
    shapes: Mapping[str, Shape]

    @property
    def input_shape(self) -> Shape:
        """The shape of one sample."""
        return self.shapes[self.input][1:]

    @property
    def classes(self) -> int:
        """How many scores the network puts out."""
        return self.shapes[self.output][-1]

    @property
    def parameters(self) -> int:
        """How many constants it computes with."""
        return sum(constant.size for node in self.nodes for constant in constants(node))

    def analogue(self) -> set[str]:
        """The input, and what is nothing but the input shifted, scaled and rearranged."""
        found = {self.input}
        for node in self.nodes:
            if node.linear and not node.weighted and found.issuperset(node.activations):
                found.add(node.output)
        return found

    def spiking(self) -> tuple[str, ...]:
        """The values that neurons carry: whatever enters a matrix product or a Conv, but for the analogue input."""
        analogue = self.analogue()
        entering = (
            value
            for node in self.nodes
            if node.weighted or isinstance(node.operation, Product)
            for value in node.activations
        )
        return tuple(dict.fromkeys(value for value in entering if value not in analogue))


def constants(node: Node) -> Iterator[NDArray[Any]]:
    """Weights, biases and constant operands of a node."""
    yield from (operand for operand in node.inputs if not isinstance(operand, str))
    match node.operation:
        case Conv(weight=weight, bias=bias) | Dense(weight=weight, bias=bias) | Norm(scale=weight, bias=bias):
            yield from (weight, bias)


def stored(shape: Shape) -> Shape:
    """One sample of a value as graphs hold it: a leading axis of 1 was the batch; any other shape is kept whole."""
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape
