"""What a tensor of a step graph is made of: a weighted sum of spikes, inputs and states, and a constant.

Lava knows neurons and synapses, nothing between them. So everything that a graph computes between two neurons has to be
one linear map, which is found here by following the standard ops: convolutions, products with weights, average pooling,
sums and what only moves numbers around. An op that is not linear in what it reads is refused by its node.

Knows the ops' meaning, not Lava's. Matrices are sparse, in float64; constants stay in float32, as the graph adds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper
from scipy import sparse  # type: ignore[import-untyped]  # ships no types

from edged.engines.worker.engine import ModelRefused

GATE = ""  # the source that is 1 at every step: what a constant becomes when it is delayed
MAX_SYNAPSES = 1 << 25  # one node's; 400 MiB as a sparse matrix, more than any Loihi system holds


class Unsupported(ModelRefused):
    """This network cannot run on Lava. The message names the node and the reason."""


class Source(NamedTuple):
    """Something that a tensor is summed up from: a neuron node, an input or a state, ``lag`` steps ago."""

    name: str
    lag: int = 0


@dataclass(frozen=True)
class Kernel:
    """A convolution that is the whole way from a source to a tensor; ``pads`` (top, left) hold for both sides."""

    weight: Any  # (out, in / groups, height, width)
    input_shape: tuple[int, ...]  # (channels, height, width)
    output_shape: tuple[int, ...]
    strides: tuple[int, int]
    pads: tuple[int, int]
    dilations: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class Affine:
    """One tensor, without its batch axis: ``constant`` + Σ ``terms[source]`` @ source, all flat in row-major order."""

    shape: tuple[int, ...]
    terms: dict[Source, Any]
    constant: Any  # (size,) float32
    kernels: dict[Source, Kernel] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Numbers in the tensor."""
        return int(np.prod(self.shape, dtype=np.int64))

    def delayed(self, steps: int) -> Affine:
        """The same tensor some steps ago; before the first step it was zero."""
        if steps == 0:
            return self
        terms = {Source(source.name, source.lag + steps): matrix for source, matrix in self.terms.items()}
        if self.constant.any():
            column = sparse.csr_matrix(self.constant.astype(np.float64).reshape(-1, 1))
            gate = Source(GATE, steps)
            terms[gate] = terms[gate] + column if gate in terms else column
        kernels = {Source(source.name, source.lag + steps): kernel for source, kernel in self.kernels.items()}
        return Affine(self.shape, terms, np.zeros(self.size, np.float32), kernels)

    def rows(self, index: Any, shape: tuple[int, ...]) -> Affine:
        """The tensor of ``shape`` whose number k is number ``index[k]`` of this one; -1 stands for zero."""
        index = np.asarray(index).reshape(-1)
        kept = index >= 0
        chosen = sparse.csr_matrix(
            (np.ones(int(kept.sum())), (np.flatnonzero(kept), index[kept])), (len(index), self.size)
        )
        constant = np.where(kept, self.constant[np.maximum(index, 0)], np.float32(0))
        return Affine(shape, {source: chosen @ matrix for source, matrix in self.terms.items()}, constant)

    def mapped(self, matrix: Any, shape: tuple[int, ...], bias: Any = None) -> Affine:
        """A linear map of the tensor, plus ``bias`` (of the new size)."""
        constant = (matrix @ self.constant.astype(np.float64)).astype(np.float32)
        if bias is not None:
            constant = constant + np.broadcast_to(bias, constant.shape).astype(np.float32)
        return Affine(shape, {source: matrix @ term for source, term in self.terms.items()}, constant)

    def scaled(self, factor: Any) -> Affine:
        """Each number times its factor (a scalar, or of the tensor's size)."""
        factor = np.broadcast_to(np.asarray(factor, np.float64), (self.size,))
        terms = {source: sparse.diags(factor) @ matrix for source, matrix in self.terms.items()}
        return Affine(self.shape, terms, (self.constant * factor).astype(np.float32))


def source(name: str, shape: tuple[int, ...]) -> Affine:
    """A tensor that is a source itself."""
    size = int(np.prod(shape, dtype=np.int64))
    return Affine(shape, {Source(name): sparse.identity(size, format="csr")}, np.zeros(size, np.float32))


def added(shape: tuple[int, ...], parts: Sequence[Affine]) -> Affine:
    """The sum of tensors of one shape."""
    terms: dict[Source, Any] = {}
    kernels: dict[Source, Kernel] = {}
    for part in parts:
        for key, matrix in part.terms.items():
            kernels.pop(key, None)
            if key not in terms and key in part.kernels:
                kernels[key] = part.kernels[key]
            terms[key] = terms[key] + matrix if key in terms else matrix
    constant = parts[0].constant
    for part in parts[1:]:
        constant = constant + part.constant
    return Affine(shape, terms, constant, kernels)


class Site(NamedTuple):
    """One standard node with what it reads: tensors (``Affine``) and initializers (arrays)."""

    node: onnx.NodeProto
    inputs: Sequence[Any]
    output_shapes: Sequence[tuple[int, ...]]

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or the default."""
        found = [helper.get_attribute_value(entry) for entry in self.node.attribute if entry.name == name]
        return found[0] if found else default

    def refused(self, reason: str) -> Unsupported:
        """The refusal of this node."""
        return refused(self.node, reason)


def refused(node: onnx.NodeProto, reason: str) -> Unsupported:
    """The refusal of a node."""
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return Unsupported(f"node {node.name or node.output[0]!r} ({op}): {reason}")


def follow(site: Site) -> list[Affine]:
    """The outputs of one standard node. Raises Unsupported where it is not linear in its tensors."""
    rule = RULES.get(site.node.op_type)
    if rule is None:
        raise site.refused("Lava has synapses and neurons only, and this op is neither")
    return rule(site)


# What moves numbers


def _moved(move: Callable[[Site, Any], Any]) -> Callable[[Site], list[Affine]]:
    def rule(site: Site) -> list[Affine]:
        value = site.inputs[0]
        index = move(site, np.arange(value.size).reshape(1, *value.shape))
        parts = index if isinstance(index, list) else [index]
        return [value.rows(part, shape) for part, shape in zip(parts, site.output_shapes)]  # noqa: B905  # Python 3.8

    return rule


def _same(site: Site) -> list[Affine]:
    return [site.inputs[0]]


def _reshape(site: Site, index: Any) -> Any:
    return index.reshape(1, *site.output_shapes[0])


def _transpose(site: Site, index: Any) -> Any:
    return index.transpose(site.attribute("perm"))


def _slice(site: Site, index: Any) -> Any:
    starts, ends = site.inputs[1], site.inputs[2]
    axes = site.inputs[3] if len(site.inputs) > 3 else np.arange(len(starts))
    steps = site.inputs[4] if len(site.inputs) > 4 else np.ones(len(starts), np.int64)
    cuts = [slice(None)] * index.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps):  # noqa: B905  # Python 3.8
        cuts[int(axis)] = slice(int(start), int(end), int(step))
    return index[tuple(cuts)]


def _split(site: Site, index: Any) -> Any:
    axis = site.attribute("axis", 0)
    extents = [shape[axis % index.ndim - 1] for shape in site.output_shapes]
    return np.split(index, np.cumsum(extents)[:-1], axis=axis)


def _pad(site: Site, index: Any) -> Any:
    if site.attribute("mode", b"constant") != b"constant" or (len(site.inputs) > 2 and np.any(site.inputs[2])):
        raise site.refused("only padding with zeros is silence")
    pads = np.asarray(site.inputs[1]).reshape(2, -1).T
    if (pads < 0).any():
        raise site.refused("it cuts off instead of padding")
    return np.pad(index, [tuple(map(int, pair)) for pair in pads], constant_values=-1)


def _concat(site: Site) -> list[Affine]:
    shape, axis = site.output_shapes[0], site.attribute("axis")
    offset, places, parts = 0, [], []
    for value in site.inputs:
        if not isinstance(value, Affine):
            raise site.refused("it joins a constant to a tensor")
        places.append(np.arange(offset, offset + value.size).reshape(1, *value.shape))
        offset += value.size
    order = np.concatenate(places, axis=axis).reshape(-1)
    for value, place in zip(site.inputs, places):  # noqa: B905  # Python 3.8
        index = np.full(offset, -1)
        index[place.reshape(-1)] = np.arange(value.size)
        parts.append(value.rows(index[order], shape))
    return [added(shape, parts)]


# What adds and scales


def _sum(sign: float) -> Callable[[Site], list[Affine]]:
    def rule(site: Site) -> list[Affine]:
        shape = site.output_shapes[0]
        left, right = (_spread(value, shape) for value in site.inputs)
        return [added(shape, [left, right if sign > 0 else right.scaled(-1.0)])]

    return rule


def _mean(site: Site) -> list[Affine]:
    shape = site.output_shapes[0]
    return [added(shape, [_spread(value, shape) for value in site.inputs]).scaled(1 / len(site.inputs))]


def _spread(value: Any, shape: tuple[int, ...]) -> Affine:
    """A tensor or an initializer, broadcast to a shape."""
    if not isinstance(value, Affine):
        spread = np.broadcast_to(value, (1, *shape)).astype(np.float32)
        return Affine(shape, {}, spread.reshape(-1))
    if value.shape == shape:
        return value
    return value.rows(np.broadcast_to(np.arange(value.size).reshape(value.shape), shape), shape)


def _scale(site: Site) -> list[Affine]:
    divide = site.node.op_type == "Div"
    values = [value for value in site.inputs if isinstance(value, Affine)]
    if len(values) != 1 or (divide and not isinstance(site.inputs[0], Affine)):
        raise site.refused("a product or quotient of two tensors is not a synapse")
    factor = next(value for value in site.inputs if not isinstance(value, Affine)).astype(np.float64)
    shape = site.output_shapes[0]
    spread = np.broadcast_to(factor, (1, *shape)).reshape(-1)
    return [_spread(values[0], shape).scaled(1 / spread if divide else spread)]


def _negated(site: Site) -> list[Affine]:
    return [site.inputs[0].scaled(-1.0)]


def _reduced(site: Site) -> list[Affine]:
    value = site.inputs[0]
    axes = site.attribute("axes") or (site.inputs[1] if len(site.inputs) > 1 else [])
    index = np.arange(value.size).reshape(1, *value.shape)
    kept = np.moveaxis(index, [int(axis) for axis in axes], range(-len(axes), 0))
    groups = kept.reshape(-1, int(np.prod([index.shape[int(axis)] for axis in axes])))
    weight = 1 / groups.shape[1] if site.node.op_type == "ReduceMean" else 1.0
    return [value.mapped(_pooling(groups, np.full(groups.shape, weight), value.size), site.output_shapes[0])]


def _pooling(groups: Any, weights: Any, size: int) -> Any:
    """The matrix that sums up members of groups (groups, members), with their weights; -1 is nobody."""
    row = np.repeat(np.arange(len(groups)), groups.shape[1])
    column, value = groups.reshape(-1), weights.reshape(-1)
    real = column >= 0
    return sparse.csr_matrix((value[real], (row[real], column[real])), (len(groups), size))


# Weights


def _gemm(site: Site) -> list[Affine]:
    value, weight = site.inputs[0], np.asarray(site.inputs[1], np.float64)
    if not isinstance(site.inputs[1], np.ndarray):
        raise site.refused("its weights are not initializers")
    matrix = (weight if site.attribute("transB", 0) else weight.T) * site.attribute("alpha", 1.0)
    bias = site.inputs[2] if len(site.inputs) > 2 else None
    if bias is not None:
        bias = np.asarray(bias).reshape(-1) * np.float32(site.attribute("beta", 1.0))
    return [value.mapped(sparse.csr_matrix(matrix), site.output_shapes[0], bias)]


def _matmul(site: Site) -> list[Affine]:
    value, weight = site.inputs
    if not isinstance(weight, np.ndarray):
        raise site.refused("a product of two tensors is not a synapse")
    rows = value.size // value.shape[-1]
    matrix = sparse.kron(sparse.identity(rows), weight.T.astype(np.float64), format="csr")
    return [value.mapped(matrix, site.output_shapes[0])]


def _windows(site: Site, shape: tuple[int, ...], kernel: tuple[int, int]) -> Any:
    """Which input each place of a kernel sees: (channels, out height, out width, height, width), -1 outside."""
    channels, height, width = shape
    if site.attribute("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or site.attribute("ceil_mode", 0):
        raise site.refused("its padding is not written out")
    top, left, bottom, right = site.attribute("pads", [0, 0, 0, 0])
    strides, dilations = site.attribute("strides", [1, 1]), site.attribute("dilations", [1, 1])
    index = np.arange(channels * height * width).reshape(shape)
    index = np.pad(index, ((0, 0), (top, bottom), (left, right)), constant_values=-1)
    _, out_height, out_width = site.output_shapes[0]
    y = (np.arange(out_height) * strides[0])[:, None] + np.arange(kernel[0]) * dilations[0]
    x = (np.arange(out_width) * strides[1])[:, None] + np.arange(kernel[1]) * dilations[1]
    return index[:, y[:, None, :, None], x[None, :, None, :]]


def _conv(site: Site) -> list[Affine]:
    value, weight = site.inputs[0], site.inputs[1]
    if len(value.shape) != 3:
        raise site.refused(f"a convolution over {len(value.shape) - 1} axes; Lava has two")
    groups, out = site.attribute("group", 1), weight.shape[0]
    seen = _windows(site, value.shape, weight.shape[2:])
    places = seen.shape[1] * seen.shape[2]
    if weight.size * places > MAX_SYNAPSES:
        raise site.refused(f"{weight.size * places} synapses; at most {MAX_SYNAPSES}")
    own = seen.reshape(groups, -1, *seen.shape[1:])[np.arange(out) // (out // groups)]  # (out, in / groups, …)
    own = np.moveaxis(own, 1, 3).reshape(out * places, -1)
    spread = np.broadcast_to(weight.reshape(out, 1, -1), (out, places, weight[0].size)).reshape(out * places, -1)
    bias = np.repeat(site.inputs[2], places) if len(site.inputs) > 2 else None
    made = value.mapped(_pooling(own, spread.astype(np.float64), value.size), site.output_shapes[0], bias)
    return [_with_kernels(made, site, value, weight, groups)]


def _with_kernels(made: Affine, site: Site, value: Affine, weight: Any, groups: int) -> Affine:
    """Note the convolution where it stands alone between a source and the tensor, and Lava's own can do it."""
    top, left, bottom, right = site.attribute("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        return made
    strides, dilations = site.attribute("strides", [1, 1]), site.attribute("dilations", [1, 1])
    kernel = Kernel(weight, value.shape, made.shape, tuple(strides), (top, left), tuple(dilations), groups)
    return Affine(made.shape, made.terms, made.constant, {k: kernel for k, m in value.terms.items() if _is_identity(m)})


def _is_identity(matrix: Any) -> bool:
    rows, columns = matrix.shape
    return bool(rows == columns == matrix.nnz and (matrix - sparse.identity(rows)).nnz == 0)


def _average_pool(site: Site) -> list[Affine]:
    value = site.inputs[0]
    if len(value.shape) != 3:
        raise site.refused(f"pooling over {len(value.shape) - 1} axes; Lava has two")
    seen = _windows(site, value.shape, tuple(site.attribute("kernel_shape")))
    groups = seen.reshape(-1, seen.shape[3] * seen.shape[4])
    counted = groups.shape[1] if site.attribute("count_include_pad", 0) else (groups >= 0).sum(axis=1)[:, None]
    return [value.mapped(_pooling(groups, np.broadcast_to(1 / counted, groups.shape), value.size),
                         site.output_shapes[0])]  # fmt: skip


def _global_average_pool(site: Site) -> list[Affine]:
    value = site.inputs[0]
    groups = np.arange(value.size).reshape(value.shape[0], -1)
    return [value.mapped(_pooling(groups, np.full(groups.shape, 1 / groups.shape[1]), value.size),
                         site.output_shapes[0])]  # fmt: skip


RULES: Mapping[str, Callable[[Site], list[Affine]]] = {
    "Add": _sum(1.0),
    "AveragePool": _average_pool,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _scale,
    "Flatten": _moved(_reshape),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "Identity": _same,
    "MatMul": _matmul,
    "Mean": _mean,
    "Mul": _scale,
    "Neg": _negated,
    "Pad": _moved(_pad),
    "ReduceMean": _reduced,
    "ReduceSum": _reduced,
    "Reshape": _moved(_reshape),
    "Slice": _moved(_slice),
    "Split": _moved(_split),
    "Squeeze": _moved(_reshape),
    "Sub": _sum(-1.0),
    "Transpose": _moved(_transpose),
    "Unsqueeze": _moved(_reshape),
}
