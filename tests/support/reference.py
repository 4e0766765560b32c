"""An independent simulator of canonical graphs in NumPy: it never looks at the function bodies in the file.

The neurons are written from the table of the domain, the standard ops from ONNX's specification, plainly.
Only the ops that the tests' graphs use are here; any other is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edged.bundle.graph.spec import GraphSpec

Floats = NDArray[Any]
Op = Callable[..., tuple[Floats, ...]]


class Reference:
    """Runs a step graph in ``dtype``; with ``wide`` the standard ops sum in float64 and round their results once.

    ``layers`` are ops to be used in place of the standard ones.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        spec: GraphSpec,
        dtype: type[np.floating[Any]] = np.float32,
        *,
        wide: bool = False,
        layers: Mapping[str, Op] | None = None,
    ) -> None:
        self.standard = STANDARD | dict(layers or {})
        self.spec = spec
        self.nodes = list(model.graph.node)
        self.dtype = dtype
        self.wide = wide
        self.constants = {t.name: self._cast(numpy_helper.to_array(t)) for t in model.graph.initializer}

    def zero(self, batch: int) -> dict[str, Floats]:
        """Every state at the start of a window."""
        return {s.input: np.zeros((batch, *s.shape), dtype=self.dtype) for s in self.spec.states}

    def step(self, inputs: Mapping[str, Floats], states: Mapping[str, Floats]) -> tuple[Floats, dict[str, Floats]]:
        """The output of one step and the states for the next, by their input names."""
        values = {name: self._cast(value) for name, value in {**inputs, **states}.items()} | self.constants
        for node in self.nodes:
            arguments = [values[name] for name in node.input]
            neuron = node.domain == "edged.snn"
            if self.wide and not neuron:
                arguments = [value.astype(np.float64) if value.dtype.kind == "f" else value for value in arguments]
            run = NEURONS[node.op_type] if neuron else self.standard[node.op_type]
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            results = run(*arguments, **attributes)
            values |= {name: self._cast(value) for name, value in zip(node.output, results, strict=True)}
        return values[self.spec.output], {s.input: values[s.output] for s in self.spec.states}

    def window(self, inputs: Mapping[str, Floats]) -> tuple[Floats, dict[str, Floats]]:
        """The readout of a whole window and the last states. Constants (B, …), sequences (T, B, …)."""
        sequences = {entry.name for entry in self.spec.inputs if entry.sequence}
        first = self.spec.inputs[0]
        batch = inputs[first.name].shape[1 if first.sequence else 0]
        states, outputs = self.zero(batch), []
        for t in range(self.spec.timesteps):
            y, states = self.step({name: v[t] if name in sequences else v for name, v in inputs.items()}, states)
            outputs.append(y)
        return self.readout(outputs), states

    def readout(self, outputs: Sequence[Floats]) -> Floats:
        """What the manifest's readout makes of the outputs of all steps."""
        rule = self.spec.readout
        y = np.stack(outputs[rule.start : rule.stop])
        if rule.kind == "first_spike":
            when = np.where((y > 0).any(axis=0), (y > 0).argmax(axis=0), len(y))
            return (len(y) - when).astype(self.dtype)
        return READOUTS[rule.kind](y)

    def _cast(self, value: Floats) -> Floats:
        return value.astype(self.dtype) if value.dtype.kind == "f" else value


def _if(i: Floats, v: Floats, v_th: Floats, v_sub: Floats) -> tuple[Floats, Floats]:
    u = v + i
    spike = u >= v_th
    return spike.astype(u.dtype), np.where(spike, u - v_sub, u)


def _ifz(i: Floats, v: Floats, v_th: Floats, v_reset: Floats) -> tuple[Floats, Floats]:
    u = v + i
    spike = u >= v_th
    return spike.astype(u.dtype), np.where(spike, v_reset, u)


def _lif(i: Floats, v: Floats, decay: Floats, bias: Floats, v_th: Floats, v_sub: Floats) -> tuple[Floats, Floats]:
    return _if(i + bias, v * decay, v_th, v_sub)


def _lifz(i: Floats, v: Floats, decay: Floats, bias: Floats, v_th: Floats, v_reset: Floats) -> tuple[Floats, Floats]:
    return _ifz(i + bias, v * decay, v_th, v_reset)


def _li(i: Floats, v: Floats, decay: Floats, bias: Floats) -> tuple[Floats, Floats]:
    u = v * decay + (i + bias)
    return u, u


def _cuba(
    i: Floats, c: Floats, v: Floats, c_decay: Floats, c_gain: Floats, decay: Floats, bias: Floats, gain: Floats
) -> tuple[Floats, Floats]:
    """The new synaptic current and u."""
    synapse = c_decay * c + c_gain * i
    return synapse, v * decay + (synapse * gain + bias)


def _cuba_lif(i: Floats, c: Floats, v: Floats, *rest: Floats) -> tuple[Floats, Floats, Floats]:
    *synapse, v_th, v_sub = rest
    after, u = _cuba(i, c, v, *synapse)
    spike = u >= v_th
    return spike.astype(u.dtype), after, np.where(spike, u - v_sub, u)


def _cuba_lifz(i: Floats, c: Floats, v: Floats, *rest: Floats) -> tuple[Floats, Floats, Floats]:
    *synapse, v_th, v_reset = rest
    after, u = _cuba(i, c, v, *synapse)
    spike = u >= v_th
    return spike.astype(u.dtype), after, np.where(spike, v_reset, u)


def _cuba_li(i: Floats, c: Floats, v: Floats, *synapse: Floats) -> tuple[Floats, Floats, Floats]:
    after, u = _cuba(i, c, v, *synapse)
    return u, after, u


def _threshold(i: Floats, v_th: Floats) -> tuple[Floats]:
    return (np.where(i >= v_th, 1, 0).astype(i.dtype),)


def _signed_if(i: Floats, v: Floats, e: Floats, v_th: Floats, v_sub: Floats) -> tuple[Floats, Floats, Floats]:
    u = v + i
    y = np.where(u >= v_th, 1, np.where((u < 0) & (e > 0), -1, 0)).astype(u.dtype)
    return y, u - y * v_sub, e + y


def _multi_threshold(i: Floats, v: Floats, fire: Floats, level: Floats) -> tuple[Floats, Floats]:
    u = v + i
    total = np.zeros_like(u)
    for k in range(fire.shape[-1]):
        total = total + np.where(np.abs(u) >= fire[..., k], level[..., k], 0)
    y = np.where(u < 0, -total, total).astype(u.dtype)
    return y, u - y


def _delay(x: Floats, d: Floats, w: Floats) -> tuple[Floats, Floats]:
    history = [*np.moveaxis(d, 1, 0)[1:], x]
    chosen = np.broadcast_to(w, d.shape).argmax(axis=1)
    return np.choose(chosen, history), np.stack(history, axis=1)


def _running_sum(x: Floats, a: Floats) -> tuple[Floats, Floats]:
    return a + x, a + x


def _difference(x: Floats, p: Floats) -> tuple[Floats, Floats]:
    return x - p, x


def _clock(n: Floats) -> tuple[Floats, Floats]:
    return n + 1, n + 1


def _conv(
    x: Floats, w: Floats, b: Floats | None = None, *, pads: Sequence[int] = (0, 0, 0, 0),
    strides: Sequence[int] = (1, 1), kernel_shape: Sequence[int] = (), dilations: Sequence[int] = (1, 1),
    group: int = 1,
) -> tuple[Floats]:  # fmt: skip
    assert tuple(kernel_shape or w.shape[2:]) == w.shape[2:]
    assert tuple(dilations) == (1, 1)
    inputs, outputs = x.shape[1] // group, w.shape[0] // group
    seen = patches(x, w.shape[2:], pads, strides)
    y = np.concatenate([
        np.einsum(
            "bchwkl,ockl->bohw",
            seen[:, g * inputs : (g + 1) * inputs],
            w[g * outputs : (g + 1) * outputs],
        )
        for g in range(group)
    ], axis=1)  # fmt: skip
    return (y if b is None else y + b.reshape(1, -1, 1, 1),)


def _average_pool(x: Floats, *, kernel_shape: Sequence[int], strides: Sequence[int] = (1, 1)) -> tuple[Floats]:
    return (patches(x, kernel_shape, (0, 0, 0, 0), strides).mean(axis=(4, 5)),)


def _max_pool(x: Floats, *, kernel_shape: Sequence[int], strides: Sequence[int] = (1, 1)) -> tuple[Floats]:
    return (patches(x, kernel_shape, (0, 0, 0, 0), strides).max(axis=(4, 5)),)


def patches(x: Floats, kernel: Sequence[int], pads: Sequence[int], strides: Sequence[int]) -> Floats:
    """(B, C, H, W) → (B, C, rows, columns, *kernel), zeros around."""
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    windows = np.lib.stride_tricks.sliding_window_view(padded, tuple(kernel), axis=(2, 3))
    return np.asarray(windows[:, :, :: strides[0], :: strides[1]])


def _gemm(
    a: Floats,
    b: Floats,
    c: Floats | None = None,
    *,
    alpha: float = 1,
    beta: float = 1,
    transB: int = 0,  # noqa: N803 - ONNX
) -> tuple[Floats]:
    assert (alpha, beta) == (1, 1)
    y = a @ (b.T if transB else b)
    return (y if c is None else y + c,)


def _reshape(x: Floats, shape: Floats) -> tuple[Floats]:
    return (x.reshape([x.shape[k] if size == 0 else size for k, size in enumerate(shape.tolist())]),)


NEURONS: dict[str, Op] = {
    "IF": _if,
    "IFZ": _ifz,
    "LIF": _lif,
    "LIFZ": _lifz,
    "CubaLIF": _cuba_lif,
    "CubaLIFZ": _cuba_lifz,
    "LI": _li,
    "CubaLI": _cuba_li,
    "Threshold": _threshold,
    "SignedIF": _signed_if,
    "MultiThreshold": _multi_threshold,
    "Delay": _delay,
    "RunningSum": _running_sum,
    "Difference": _difference,
    "Clock": _clock,
}
READOUTS: dict[str, Callable[[Floats], Floats]] = {
    "mean": lambda y: np.asarray(y.mean(axis=0)),
    "sum": lambda y: np.asarray(y.sum(axis=0)),
    "max": lambda y: np.asarray(y.max(axis=0)),
    "last": lambda y: y[-1],
}


def _layer_norm(x: Floats, scale: Floats, bias: Floats, axis: int = -1, epsilon: float = 1e-5) -> tuple[Floats, ...]:
    axes = tuple(range(axis % x.ndim, x.ndim))
    centred = x - x.mean(axes, keepdims=True)
    return (centred / np.sqrt((centred * centred).mean(axes, keepdims=True) + x.dtype.type(epsilon)) * scale + bias,)


def _softmax(x: Floats, axis: int = -1) -> tuple[Floats, ...]:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return (powers / powers.sum(axis, keepdims=True),)


def _slice(x: Floats, starts: Floats, ends: Floats, axes: Floats, steps: Floats) -> tuple[Floats, ...]:
    cuts = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cuts[axis] = slice(start, end, step)
    return (x[tuple(cuts)],)


STANDARD: dict[str, Op] = {
    "Add": lambda a, b: (a + b,),
    "AveragePool": _average_pool,
    "Div": lambda a, b: (a / b,),
    "Erf": lambda x: (np.vectorize(math.erf, otypes=[x.dtype])(x),),
    "LayerNormalization": _layer_norm,
    "ReduceMean": lambda x, axes, keepdims=1: (x.mean(tuple(axes), keepdims=bool(keepdims)),),
    "Slice": _slice,
    "Softmax": _softmax,
    "Transpose": lambda x, perm: (x.transpose(perm),),
    "Concat": lambda *parts, axis: (np.concatenate(parts, axis=axis),),
    "Conv": _conv,
    "Flatten": lambda x, axis=1: (x.reshape(len(x), -1),),
    "Gemm": _gemm,
    "Identity": lambda x: (x,),
    "MatMul": lambda a, b: (a @ b,),
    "MaxPool": _max_pool,
    "Mul": lambda a, b: (a * b,),
    "Reshape": _reshape,
    "Sub": lambda a, b: (a - b,),
}
