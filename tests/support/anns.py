"""Small random ANNs written by hand in ONNX, and a slow NumPy evaluation of them: the converter's independent witness.

The evaluation shares nothing with the converter but the list of layers: convolution and pooling are loops over kernel
offsets in float64, neurons are the textbook equations with θ neither folded nor normalised.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cloud_sync.convert.network import (
    AveragePool,
    Concat,
    Conv,
    Dense,
    GlobalAveragePool,
    Layer,
    MaxPool,
    Network,
    Relu,
    Reshape,
    Scale,
    Sum,
)

Doubles = NDArray[np.float64]


@dataclass
class AnnWriter:
    """Collects ONNX nodes; weights are drawn so that activations keep their size from layer to layer."""

    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def weight(self, array: NDArray[Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = array if array.dtype in (np.int64, np.bool_) else array.astype(np.float32)
        return name

    def node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def conv(self, value: str, shape: tuple[int, ...], *, bias: bool = False, **attributes: Any) -> str:
        spread = np.sqrt(2 / np.prod(shape[1:]))
        inputs = [value, self.weight(self.random.normal(0, spread, shape))]
        inputs += [self.weight(self.random.normal(0, 0.1, shape[0]))] if bias else []
        return self.node("Conv", *inputs, **attributes)

    def norm(self, value: str, channels: int) -> str:
        draw = self.random.uniform
        moments = (
            draw(0.5, 1.5, channels),
            draw(-0.2, 0.3, channels),
            draw(-0.3, 0.3, channels),
            draw(0.5, 1.5, channels),
        )
        return self.node("BatchNormalization", value, *(self.weight(moment) for moment in moments), epsilon=1e-3)

    def model(self, output: str, shape: tuple[int, ...], classes: int | str, batch: str | int = "B") -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "ann",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, classes])],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


SHAPE = (2, 8, 8)
CLASSES = 5


def residual(seed: int = 0) -> onnx.ModelProto:
    """Everything that the converter takes: a residual Add, average pools, strides, groups, MatMul + Add, Identity."""
    ann = AnnWriter(seed)
    first = ann.node("Relu", ann.norm(ann.conv("x", (6, 2, 3, 3), pads=[1, 1, 1, 1]), 6))
    branch = ann.norm(ann.conv(first, (6, 6, 3, 3), bias=True, auto_pad="SAME_UPPER"), 6)
    joined = ann.node("Relu", ann.node("Add", branch, first))
    pooled = ann.node("AveragePool", joined, kernel_shape=[2, 2], strides=[2, 2])
    strided = ann.node("Relu", ann.conv(pooled, (8, 3, 3, 3), bias=True, group=2, strides=[2, 2], pads=[1, 1, 1, 1]))
    flat = ann.node("Flatten", ann.node("Identity", strided))
    hidden = ann.node("Relu", ann.node("Gemm", flat, _dense(ann, 32, 16), ann.weight(np.full(16, 0.1)), alpha=0.5))
    product = ann.node("MatMul", hidden, _dense(ann, 16, CLASSES))
    out = ann.node("Add", product, ann.weight(ann.random.normal(0, 0.1, CLASSES)), name="logits")
    return ann.model(out, SHAPE, CLASSES)


def modern(seed: int = 0) -> onnx.ModelProto:
    """Max pools (padded too), ReLU6, LeakyRelu, PRelu, depthwise and strided convolutions, Concat, constants."""
    ann = AnnWriter(seed)
    scaled = ann.node("Div", ann.node("Sub", "x", ann.weight(np.array([[[0.4]], [[0.5]]]))), ann.weight(np.array(0.3)))
    first = ann.node("Clip", ann.conv(scaled, (6, 2, 3, 3), bias=True, pads=[1, 1, 1, 1]),
        ann.weight(np.array(0.0)), ann.weight(np.array(6.0)))  # fmt: skip
    pooled = ann.node("MaxPool", first, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    deep = ann.norm(ann.conv(pooled, (6, 1, 3, 3), group=6, pads=[1, 1, 1, 1]), 6)
    leaky = ann.node("LeakyRelu", ann.conv(deep, (8, 6, 1, 1), bias=True), alpha=0.2)
    beside = ann.node("Relu", ann.conv(pooled, (4, 6, 3, 3), bias=True, pads=[1, 1, 1, 1]))
    joined = ann.node("Concat", leaky, beside, axis=1)
    bent = ann.node("PRelu", ann.conv(joined, (5, 12, 3, 3), bias=True, strides=[2, 2], pads=[1, 1, 1, 1]),
        ann.weight(np.array([0.0, 0.1, 0.25, 0.5, 1.0]).reshape(5, 1, 1)))  # fmt: skip
    best = ann.node("MaxPool", bent, kernel_shape=[2, 2])
    mean = ann.node("ReduceMean", best, axes=[2, 3], keepdims=0)
    out = ann.node("Mul", ann.node("Gemm", mean, _dense(ann, 5, CLASSES)), ann.weight(np.array(1.5)), name="logits")
    return ann.model(out, SHAPE, CLASSES)


def plain(seed: int = 0) -> onnx.ModelProto:
    """Conv → Relu → Conv → Relu → Flatten → Gemm: what the exact grid takes."""
    ann = AnnWriter(seed)
    first = ann.node("Relu", ann.conv("x", (4, 2, 3, 3), bias=True, pads=[1, 1, 1, 1]))
    second = ann.node("Relu", ann.conv(first, (6, 4, 3, 3), bias=True, strides=[2, 2]))
    out = ann.node("Gemm", ann.node("Flatten", second), _dense(ann, 54, CLASSES), name="logits")
    return ann.model(out, SHAPE, CLASSES)


def images(count: int, seed: int = 1) -> NDArray[np.float32]:
    """Random inputs of 0 to 1 for the networks above, (N, *SHAPE)."""
    return np.random.default_rng(seed).random((count, *SHAPE), dtype=np.float32)


def events(count: int, timesteps: int, seed: int = 1) -> NDArray[np.float32]:
    """Random event frames of 0 and 1 for the networks above, busier in the middle of the window, (N, T, *SHAPE)."""
    rate = np.hanning(timesteps + 2)[1:-1].reshape(-1, 1, 1, 1)
    drawn = np.random.default_rng(seed).random((count, timesteps, *SHAPE))
    return (drawn < rate).astype(np.float32)


def _dense(ann: AnnWriter, inputs: int, outputs: int) -> str:
    return ann.weight(ann.random.normal(0, np.sqrt(2 / inputs), (inputs, outputs)))


def linear(layer: Layer, values: list[Doubles]) -> Doubles:
    """One layer without neurons on a batch (N, *shape), in float64."""
    x = values[0]
    match layer.operation:
        case Conv() as conv:
            return _conv(conv, x, layer.shape)
        case Dense() as dense:
            return np.asarray(x @ dense.weight.astype(np.float64) + dense.bias)
        case AveragePool() as pool:
            return _pool(pool, x, layer.shape)
        case GlobalAveragePool():
            return np.asarray(x.mean(axis=tuple(range(2, x.ndim)), keepdims=True))
        case Reshape():
            return x.reshape(-1, *layer.shape)
        case Sum():
            return values[0] + values[1]
        case Concat():
            return np.concatenate(values, axis=1)
        case Scale() as scale:
            return x * scale.factor.astype(np.float64).reshape(-1, *(1,) * (x.ndim - 2))
        case MaxPool() as most:
            return _largest(most, x, layer.shape)
    raise AssertionError(layer)


def simulate(
    network: Network, thresholds: Mapping[str, Any], samples: Doubles, timesteps: int, *, start: float = 0.5
) -> tuple[Doubles, dict[str, Doubles]]:
    """Layer by layer: each neuron gets its T currents and fires; returns mean output and spikes (T, N, …) by Relu.

    ``samples`` (N, *shape) are shown at every step, of a sequence (N, T, *shape) each step its own.
    """
    sequence = samples.ndim == len(network.input_shape) + 2
    shown = [samples[:, t] if sequence else samples for t in range(timesteps)]
    trains = {network.input: [frame.astype(np.float64) for frame in shown]}
    spikes: dict[str, Doubles] = {}
    for layer in network.layers:
        inputs = [trains[value] for value in layer.inputs]
        if isinstance(layer.operation, MaxPool):
            received = np.cumsum(inputs[0], axis=0)
            largest = np.stack([linear(layer, [total]) for total in received])
            trains[layer.output] = list(np.diff(largest, axis=0, prepend=0 * largest[:1]))
            continue
        if not isinstance(layer.operation, Relu):
            trains[layer.output] = [linear(layer, [train[t] for train in inputs]) for t in range(timesteps)]
            continue
        theta = np.asarray(thresholds[layer.output], np.float64).reshape(-1, *(1,) * (len(layer.shape) - 1))
        potential = np.zeros((len(samples), *layer.shape)) + start * theta
        fired = []
        for current in inputs[0]:
            potential = potential + current
            fired.append((potential >= theta).astype(np.float64))
            potential = potential - theta * fired[-1]
        spikes[layer.output] = np.stack(fired)
        trains[layer.output] = [theta * spike for spike in fired]
    return np.mean(trains[network.output], axis=0), spikes


def quantised(network: Network, thresholds: Mapping[str, Any], samples: Doubles, levels: int) -> Doubles:
    """The ANN with each activation rounded to one of 0, θ/levels, …, θ: what T = levels spikes can say."""
    values = {network.input: samples}
    for layer in network.layers:
        inputs = [values[value] for value in layer.inputs]
        if isinstance(layer.operation, Relu):
            theta = np.asarray(thresholds[layer.output], np.float64).reshape(-1, *(1,) * (len(layer.shape) - 1))
            values[layer.output] = np.clip(np.floor(inputs[0] * levels / theta + 0.5), 0, levels) * theta / levels
        else:
            values[layer.output] = linear(layer, inputs)
    return values[network.output]


def _largest(pool: MaxPool, x: Doubles, shape: tuple[int, ...]) -> Doubles:
    axes = len(pool.kernel)
    room = [(pool.pads[axis], pool.pads[axis + axes] + pool.kernel[axis]) for axis in range(axes)]  # ceil may overhang
    padded = np.pad(x, [(0, 0), (0, 0), *room], constant_values=-np.inf)
    windows = _windows(pool.kernel, pool.dilations, pool.strides, shape[1:])
    return np.asarray(np.max([padded[(slice(None), slice(None), *window)] for _, window in windows], axis=0))


def _windows(kernel: tuple[int, ...], gaps: tuple[int, ...], steps: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """Each kernel offset with the slices of the padded input that it meets."""
    for offset in itertools.product(*map(range, kernel)):
        spans = zip(offset, gaps, steps, shape, strict=True)
        yield offset, tuple(slice(at * gap, at * gap + (size - 1) * step + 1, step) for at, gap, step, size in spans)


def _padded(x: Doubles, pads: tuple[int, ...]) -> Doubles:
    axes = len(pads) // 2
    return np.pad(x, [(0, 0), (0, 0), *((pads[axis], pads[axis + axes]) for axis in range(axes))])


def _conv(conv: Conv, x: Doubles, shape: tuple[int, ...]) -> Doubles:
    padded = _padded(x, conv.pads)
    out = np.zeros((len(x), *shape)) + conv.bias.reshape(-1, *(1,) * (len(shape) - 1))
    fan_in, fan_out = conv.weight.shape[1], len(conv.weight) // conv.groups
    for offset, window in _windows(conv.weight.shape[2:], conv.dilations, conv.strides, shape[1:]):
        for group in range(conv.groups):
            into = slice(group * fan_out, (group + 1) * fan_out)
            seen = padded[(slice(None), slice(group * fan_in, (group + 1) * fan_in), *window)]
            kernel = conv.weight[(into, slice(None), *offset)].astype(np.float64)
            out[:, into] += np.einsum("oi,ni...->no...", kernel, seen)
    return out


def _pool(pool: AveragePool, x: Doubles, shape: tuple[int, ...]) -> Doubles:
    padded, counted = _padded(x, pool.pads), _padded(np.ones_like(x), pool.pads)
    if pool.count_padding:
        counted = np.ones_like(counted)
    total, count = np.zeros((len(x), *shape)), np.zeros((len(x), *shape))
    for _, window in _windows(pool.kernel, (1,) * len(pool.kernel), pool.strides, shape[1:]):
        total += padded[(slice(None), slice(None), *window)]
        count += counted[(slice(None), slice(None), *window)]
    return np.asarray(total / count)
