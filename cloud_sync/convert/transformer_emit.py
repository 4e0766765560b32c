"""Operation → ONNX: the one place where a transformer's operation is spelt in nodes, for ANN and spiking graph alike.

Graphs hold every value as (B, *stored(shape)). An operation that leaves the old batch axis (axis 0, of size 1) alone is
written for that form. Any other works on (B, *whole shape): the function of one sample, applied to each row. So no node
can mix rows, wherever the exported graph had its batch axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cloud_sync.convert.network import Conv, Dense
from cloud_sync.convert.transformer_graph import (
    Arithmetic,
    Cut,
    Gelu,
    Join,
    Mean,
    Node,
    Norm,
    Operand,
    Permute,
    Product,
    Rearrange,
    Shape,
    Softmax,
    Transformer,
    Unary,
    stored,
)
from edged.bundle.graph.builder import StepBuilder, StepGraph


def ann(network: Transformer, taps: Sequence[str] = ()) -> StepGraph:
    """The ANN as a graph of our own with a symbolic batch. ``taps`` come out as ``tap/VALUE``, (B, *stored)."""
    builder = StepBuilder("ann")
    tensors = {network.input: builder.input(network.input, network.input_shape)}
    emitter = Emitter(builder, network.shapes)
    for node in network.nodes:
        tensors[node.output] = emitter.emit(node, [tensors[value] for value in node.activations])
    for value in taps:
        builder.node("Identity", tensors[value], name=f"tap/{value}")
    return builder.build(tensors[network.output], network.classes, name="ann/scores")


class Emitter:
    """Writes nodes into a builder. ``shapes`` are the whole shapes of all values."""

    def __init__(self, builder: StepBuilder, shapes: Mapping[str, Shape]) -> None:
        self._builder = builder
        self._shapes = shapes

    def emit(self, node: Node, tensors: Sequence[str]) -> str:
        """Add one operation on the tensors of its activations; returns its tensor, (B, *stored(node.shape))."""
        match node.operation:
            case Conv() as conv:
                return self._conv(conv, tensors[0])
            case Dense() as dense:
                return self._dense(dense, tensors[0], node)
            case Product():
                return self._product(node, tensors)
            case Arithmetic(op=op):
                return self._arithmetic(op, node, tensors)
            case Join(axis=axis):
                return self._join(axis, node, tensors)
            case Rearrange() | Permute() | Cut():
                return self._moved(node, tensors[0])
        return self._function(node, tensors[0])

    def _moved(self, node: Node, tensor: str) -> str:
        """The same numbers elsewhere."""
        match node.operation:
            case Permute(order=order):
                return self._permute(order, node, tensor)
            case Cut() as cut:
                return self._cut(cut, node, tensor)
        return self._reshaped(tensor, self._stored(node), stored(node.shape))

    def _function(self, node: Node, tensor: str) -> str:
        """A function of one activation."""
        match node.operation:
            case Mean(axes=axes):
                return self._mean(axes, node, tensor)
            case Norm() as norm:
                return self._norm(norm, node, tensor)
            case Softmax(axis=axis):
                whole = self._along((axis,), node, tensor)[0]
                return self._finished(self._builder.node("Softmax", whole, axis=axis), node, (axis,))
            case Gelu(tanh=tanh):
                return self._gelu(tensor, tanh=tanh)
            case Unary(op=op):
                return self._builder.node(op, tensor)
        raise AssertionError(f"{node.name}: {node.operation}")

    # Layout

    def _shape(self, node: Node) -> Shape:
        """The whole shape of the first activation."""
        return self._shapes[node.activations[0]]

    def _stored(self, node: Node) -> Shape:
        return stored(self._shape(node))

    def _reshaped(self, tensor: str, now: Shape, wanted: Shape) -> str:
        if now == wanted:
            return tensor
        return self._builder.node("Reshape", tensor, self._builder.constant(np.array([0, *wanted], np.int64)))

    def _along(self, axes: Sequence[int], node: Node, tensor: str) -> tuple[str, Shape]:
        """The first activation with its axes in place: whole where one of them is the old batch axis."""
        shape = self._shape(node)
        wanted = shape if _touches_batch(axes, shape) else stored(shape)
        return self._reshaped(tensor, stored(shape), wanted), wanted

    def _finished(self, tensor: str, node: Node, axes: Sequence[int]) -> str:
        """The result of an operation that kept its shape, as it is stored."""
        shape = self._shape(node)
        return self._reshaped(tensor, shape if _touches_batch(axes, shape) else stored(shape), stored(node.shape))

    def _operands(self, node: Node, tensors: Sequence[str]) -> tuple[list[str], bool]:
        """All operands with their axes aligned from the end, and whether that is the stored form (else the whole)."""
        rank = len(node.shape)
        shapes = [self._shapes[value] for value in node.activations]
        short = node.shape[0] == 1 < rank and all(len(shape) == rank and shape[0] == 1 for shape in shapes)
        given = iter(tensors)
        return [self._operand(operand, given.__next__, rank, short=short) for operand in node.inputs], short

    def _operand(self, operand: Operand, tensor: object, rank: int, *, short: bool) -> str:
        if not isinstance(operand, str):
            return self._builder.constant(np.asarray(operand, np.float32))
        assert callable(tensor)
        shape = self._shapes[operand]
        whole = (1,) * (rank - len(shape)) + shape
        return self._reshaped(tensor(), stored(shape), stored(shape) if short else whole)

    def _kept(self, tensor: str, node: Node, *, short: bool) -> str:
        return tensor if short else self._reshaped(tensor, node.shape, stored(node.shape))

    # Operations

    def _conv(self, conv: Conv, tensor: str) -> str:
        weight, bias = self._builder.constant(conv.weight), self._builder.constant(conv.bias)
        return self._builder.node(
            "Conv",
            tensor,
            weight,
            bias,
            strides=conv.strides,
            pads=conv.pads,
            dilations=conv.dilations,
            group=conv.groups,
        )

    def _dense(self, dense: Dense, tensor: str, node: Node) -> str:
        weight = self._builder.constant(dense.weight)
        if len(self._stored(node)) == 1:
            return self._builder.node("Gemm", tensor, weight, self._builder.constant(dense.bias))
        made = self._builder.node("MatMul", tensor, weight)
        return self._builder.node("Add", made, self._builder.constant(dense.bias)) if dense.bias.any() else made

    def _product(self, node: Node, tensors: Sequence[str]) -> str:
        operands, short = self._operands(node, tensors)
        if short and len(node.shape) < 3:  # (1, K) by (K, N) of one sample: the batch is no row of the matrix
            operands = [
                self._reshaped(tensor, stored(self._shapes[value]), self._shapes[value])
                for tensor, value in zip(operands, node.activations, strict=True)
            ]
            short = False
        return self._kept(self._builder.node("MatMul", *operands), node, short=short)

    def _arithmetic(self, op: str, node: Node, tensors: Sequence[str]) -> str:
        operands, short = self._operands(node, tensors)
        return self._kept(self._builder.node(op, *operands), node, short=short)

    def _permute(self, order: tuple[int, ...], node: Node, tensor: str) -> str:
        shape = self._shape(node)
        moved = [axis for axis in order if shape[axis] != 1]
        if moved == sorted(moved):  # axes of size 1 go where they like
            return self._reshaped(tensor, stored(shape), stored(node.shape))
        if stored(shape) != shape and order[0] == 0:
            return self._builder.node("Transpose", tensor, perm=order)
        whole = self._reshaped(tensor, stored(shape), shape)
        made = self._builder.node("Transpose", whole, perm=[0, *(axis + 1 for axis in order)])
        return self._reshaped(made, node.shape, stored(node.shape))

    def _cut(self, cut: Cut, node: Node, tensor: str) -> str:
        whole, shape = self._along((cut.axis,), node, tensor)
        numbers = [self._builder.constant(np.array([n], np.int64)) for n in (cut.start, cut.stop, cut.axis, cut.step)]
        left = list(shape)
        left[cut.axis] = len(range(cut.start, cut.stop, cut.step))
        return self._reshaped(self._builder.node("Slice", whole, *numbers), tuple(left), stored(node.shape))

    def _join(self, axis: int, node: Node, tensors: Sequence[str]) -> str:
        short = not _touches_batch((axis,), node.shape) and node.shape[0] == 1 < len(node.shape)
        shape = stored(node.shape) if short else node.shape
        parts = [
            self._reshaped(
                tensor, stored(self._shapes[value]), stored(self._shapes[value]) if short else self._shapes[value]
            )
            for tensor, value in zip(tensors, node.activations, strict=True)
        ]
        if len(parts) == len(node.inputs):
            made = self._builder.node("Concat", *parts, axis=axis)
        else:
            made = self._between_constants(axis, node, parts[0], shape)
        return self._kept(made, node, short=short)

    def _between_constants(self, axis: int, node: Node, tensor: str, shape: Shape) -> str:
        """Zeros where the constants go, and then the constants added: each row of a batch gets its own copy."""
        at = next(k for k, operand in enumerate(node.inputs) if isinstance(operand, str))
        constants = [np.asarray(operand, np.float32) for operand in node.inputs if not isinstance(operand, str)]
        before, after = constants[:at], constants[at:]
        begins, ends = np.zeros(len(shape) + 1, np.int64), np.zeros(len(shape) + 1, np.int64)
        begins[axis], ends[axis] = (sum(part.shape[axis] for part in side) for side in (before, after))
        middle = list(node.shape)
        middle[axis] -= int(begins[axis] + ends[axis])
        row = np.concatenate([*before, np.zeros(middle, np.float32), *after], axis=axis).reshape(1, *shape)
        padded = self._builder.node("Pad", tensor, self._builder.constant(np.concatenate([begins, ends])))
        return self._builder.node("Add", padded, self._builder.constant(row))

    def _mean(self, axes: tuple[int, ...], node: Node, tensor: str) -> str:
        whole, shape = self._along(axes, node, tensor)
        made = self._builder.node("ReduceMean", whole, axes=list(axes), keepdims=1)
        left = tuple(1 if axis - len(shape) in axes else size for axis, size in enumerate(shape))
        return self._reshaped(made, left, stored(node.shape))

    def _norm(self, norm: Norm, node: Node, tensor: str) -> str:
        axes = range(norm.axis, 0)
        whole = self._along(axes, node, tensor)[0]
        scale, bias = self._builder.constant(norm.scale), self._builder.constant(norm.bias)
        made = self._builder.node("LayerNormalization", whole, scale, bias, axis=norm.axis, epsilon=norm.epsilon)
        return self._finished(made, node, axes)

    def _gelu(self, x: str, *, tanh: bool) -> str:
        def number(value: float) -> str:
            return self._builder.constant(np.float32(value))

        node = self._builder.node
        if tanh:  # Hendrycks and Gimpel 2016, arXiv 1606.08415
            cubed = node("Mul", node("Mul", node("Mul", x, x), x), number(0.044715))
            gate = node("Tanh", node("Mul", node("Add", x, cubed), number(math.sqrt(2 / math.pi))))
        else:
            gate = node("Erf", node("Mul", x, number(math.sqrt(0.5))))
        return node("Mul", node("Mul", x, number(0.5)), node("Add", gate, number(1.0)))


def _touches_batch(axes: Sequence[int], shape: Shape) -> bool:
    return -len(shape) in axes
