"""The op table of the ONNX domain ``edged.snn``: one row an op, its equation and its body in standard ops.

Rules of the domain: no attributes, no optional inputs; parameters are initializers that broadcast against the sample
([1,C,1,…] or the full shape); every state starts at zero; the comparison is always ``>=``. A source that compares with
``>`` gets ``v_th = nextafter(θ, ∞)``, which is the same in float32. A new op is a new row; nothing else changes.

Bodies are data, so that this file needs no onnx: ``functions.py`` turns them into model-local functions, ``bodies.py``
computes them in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

DOMAIN = "edged.snn"
DOMAIN_VERSION = 1
OPSET = 17  # the newest that every engine reads: ONNX Runtime 1.23 stops at IR 11, TensorRT 8.5 at opset 17
IR_VERSION = 8  # the first with model-local functions

Floats = NDArray[Any]
Axis = Literal["", "history", "levels"]


@dataclass(frozen=True)
class BodyNode:
    """One standard node of a body. ``Constant`` holds ``value``: a float32 scalar, or a list of one int64 (an axis)."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: tuple[tuple[str, int], ...] = ()
    value: float | tuple[int] | None = None


@dataclass(frozen=True)
class Neuron:
    """One op: ``inputs`` are what comes in, states, parameters in this order; ``outputs`` the emission, new states.

    ``current`` names the input that is no state and no parameter (empty: there is none). ``states`` pairs each state
    input with its output. ``potential`` names the tensor of the body that is compared or emitted, and ``membrane`` the
    state that it is computed from (empty: none). ``axis`` says where shapes differ from the sample's: a ``history`` has
    one more axis in front (state and parameters), ``levels`` one more behind (parameters).
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    current: str
    states: tuple[tuple[str, str], ...]
    parameters: tuple[str, ...]
    potential: str
    membrane: str
    spiking: bool  # whether the emission steps at a threshold
    body: tuple[BodyNode, ...]
    doc: str
    axis: Axis = ""
    counters: tuple[str, ...] = field(default=())  # states that hold whole numbers: no rounding, no tolerance

    def state_shape(self, shape: tuple[int, ...], depth: int) -> tuple[int, ...]:
        """The shape of a state for samples of ``shape``; ``depth`` is the length of a history."""
        return (depth, *shape) if self.axis == "history" else shape

    def sample_shape(self, state_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one sample, given that of a state."""
        return state_shape[1:] if self.axis == "history" else state_shape


def _node(op: str, inputs: str, output: str, **attributes: int) -> BodyNode:
    return BodyNode(op, tuple(inputs.split()), output, tuple(attributes.items()))


def _constant(output: str, value: float | tuple[int]) -> BodyNode:
    return BodyNode("Constant", (), output, value=value)


_FIRE = (_node("GreaterOrEqual", "u v_th", "fired"), _node("Cast", "fired", "s"))
_SOFT = (*_FIRE, _node("Mul", "s v_sub", "drop"), _node("Sub", "u drop", "v_next"))
_HARD = (*_FIRE, _node("Where", "fired v_reset u", "v_next"))
_INTEGRATE = (_node("Add", "v i", "u"),)
_LEAK = (_node("Mul", "v decay", "kept"), _node("Add", "i bias", "drive"))
_LEAKY = (*_LEAK, _node("Add", "kept drive", "u"))
_SYNAPSE = (
    _node("Mul", "c c_decay", "c_kept"),
    _node("Mul", "i c_gain", "c_drive"),
    _node("Add", "c_kept c_drive", "c_next"),
    _node("Mul", "v decay", "kept"),
    _node("Mul", "c_next gain", "input"),
    _node("Add", "input bias", "drive"),
)
_EMIT = (_node("Identity", "v_next", "y"),)
_CUBA = ("c_decay", "c_gain", "decay", "bias", "gain")


def _spiking(op: str, parameters: tuple[str, ...], doc: str) -> Neuron:
    cuba, leaky = "c_decay" in parameters, "decay" in parameters
    states = (("c", "c_next"), ("v", "v_next")) if cuba else (("v", "v_next"),)
    integrate = (*_SYNAPSE, _node("Add", "kept drive", "u")) if cuba else _LEAKY if leaky else _INTEGRATE
    return Neuron(
        op=op,
        inputs=("i", *(state for state, _ in states), *parameters),
        outputs=("s", *(state for _, state in states)),
        current="i",
        states=states,
        parameters=parameters,
        potential="u",
        membrane="v",
        spiking=True,
        body=(*integrate, *(_SOFT if "v_sub" in parameters else _HARD)),
        doc=doc,
    )


def _memory(op: str, names: tuple[str, str, str], body: tuple[BodyNode, ...], doc: str) -> Neuron:
    """An op with one state that compares nothing and has no parameters; ``names``: current, state, emission."""
    current, state, emission = names
    return Neuron(
        op=op,
        inputs=(current, state) if current else (state,),
        outputs=(emission, f"{state}_next"),
        current=current,
        states=((state, f"{state}_next"),),
        parameters=(),
        potential=emission,
        membrane="",
        spiking=False,
        body=body,
        doc=doc,
    )


_ROWS = (
    _spiking("IF", ("v_th", "v_sub"), "u = v + i; s = [u >= v_th]; v' = u - s*v_sub"),
    _spiking("IFZ", ("v_th", "v_reset"), "u = v + i; s = [u >= v_th]; v' = s ? v_reset : u"),
    _spiking("LIF", ("decay", "bias", "v_th", "v_sub"), "u = v*decay + (i + bias); s = [u >= v_th]; v' = u - s*v_sub"),
    _spiking(
        "LIFZ", ("decay", "bias", "v_th", "v_reset"), "u = v*decay + (i + bias); s = [u >= v_th]; v' = s ? v_reset : u"
    ),
    _spiking(
        "CubaLIF",
        (*_CUBA, "v_th", "v_sub"),
        "c' = c*c_decay + i*c_gain; u = v*decay + (c'*gain + bias); s = [u >= v_th]; v' = u - s*v_sub",
    ),
    _spiking(
        "CubaLIFZ",
        (*_CUBA, "v_th", "v_reset"),
        "c' = c*c_decay + i*c_gain; u = v*decay + (c'*gain + bias); s = [u >= v_th]; v' = s ? v_reset : u",
    ),
    Neuron(
        op="LI",
        inputs=("i", "v", "decay", "bias"),
        outputs=("y", "v_next"),
        current="i",
        states=(("v", "v_next"),),
        parameters=("decay", "bias"),
        potential="v_next",
        membrane="v",
        spiking=False,
        body=(*_LEAK, _node("Add", "kept drive", "v_next"), *_EMIT),
        doc="v' = v*decay + (i + bias); y = v'",
    ),
    Neuron(
        op="CubaLI",
        inputs=("i", "c", "v", *_CUBA),
        outputs=("y", "c_next", "v_next"),
        current="i",
        states=(("c", "c_next"), ("v", "v_next")),
        parameters=_CUBA,
        potential="v_next",
        membrane="v",
        spiking=False,
        body=(*_SYNAPSE, _node("Add", "kept drive", "v_next"), *_EMIT),
        doc="c' = c*c_decay + i*c_gain; v' = v*decay + (c'*gain + bias); y = v'",
    ),
    Neuron(
        op="Threshold",
        inputs=("i", "v_th"),
        outputs=("s",),
        current="i",
        states=(),
        parameters=("v_th",),
        potential="i",
        membrane="",
        spiking=True,
        body=(_node("GreaterOrEqual", "i v_th", "fired"), _node("Cast", "fired", "s")),
        doc="s = [i >= v_th]",
    ),
    Neuron(
        op="SignedIF",
        inputs=("i", "v", "e", "v_th", "v_sub"),
        outputs=("y", "v_next", "e_next"),
        current="i",
        states=(("v", "v_next"), ("e", "e_next")),
        parameters=("v_th", "v_sub"),
        potential="u",
        membrane="v",
        spiking=True,
        body=(
            *_INTEGRATE,
            *_FIRE,
            _constant("zero", 0.0),
            _node("Less", "u zero", "below"),
            _node("Greater", "e zero", "owed"),
            _node("And", "below owed", "back"),
            _node("Cast", "back", "r"),
            _node("Sub", "s r", "y"),
            _node("Mul", "y v_sub", "drop"),
            _node("Sub", "u drop", "v_next"),
            _node("Add", "e y", "e_next"),
        ),
        doc="u = v + i; y = [u >= v_th] - [u < 0 and e > 0]; v' = u - y*v_sub; e' = e + y",
        counters=("e",),
    ),
    Neuron(
        op="MultiThreshold",
        inputs=("i", "v", "fire", "level"),
        outputs=("y", "v_next"),
        current="i",
        states=(("v", "v_next"),),
        parameters=("fire", "level"),
        potential="u",
        membrane="v",
        spiking=True,
        body=(
            *_INTEGRATE,
            _node("Abs", "u", "size"),
            _constant("last", (-1,)),
            _node("Unsqueeze", "size last", "sizes"),
            _node("GreaterOrEqual", "sizes fire", "fired"),
            _node("Cast", "fired", "s"),
            _node("Mul", "s level", "parts"),
            _node("ReduceSum", "parts last", "sum", keepdims=0),
            _node("Sign", "u", "sign"),
            _node("Mul", "sign sum", "y"),
            _node("Sub", "u y", "v_next"),
        ),
        doc="u = v + i; y = sign(u) * sum_k level_k*[|u| >= fire_k]; v' = u - y; k is the last axis",
        axis="levels",
    ),
    Neuron(
        op="Delay",
        inputs=("x", "d", "w"),
        outputs=("y", "d_next"),
        current="x",
        states=(("d", "d_next"),),
        parameters=("w",),
        potential="y",
        membrane="",
        spiking=False,
        body=(
            _constant("one", (1,)),
            _constant("end", (2**31 - 1,)),
            _node("Unsqueeze", "x one", "newest"),
            _node("Concat", "d newest", "longer", axis=1),
            _node("Slice", "longer one end one", "d_next"),
            _node("Mul", "d_next w", "picked"),
            _node("ReduceSum", "picked one", "y", keepdims=0),
        ),
        doc="d' = [d[1:], x] along axis 1; y = sum_k d'_k*w_k with one w_k of 1, the others 0",
        axis="history",
    ),
    _memory(
        "RunningSum",
        ("x", "a", "y"),
        (_node("Add", "a x", "a_next"), _node("Identity", "a_next", "y")),
        "a' = a + x; y = a'",
    ),
    _memory(
        "Difference",
        ("x", "p", "y"),
        (_node("Sub", "x p", "y"), _node("Identity", "x", "p_next")),
        "y = x - p; p' = x",
    ),
    _memory(
        "Clock",
        ("", "n", "t"),
        (_constant("one", 1.0), _node("Add", "n one", "n_next"), _node("Identity", "n_next", "t")),
        "n' = n + 1; t = n'; one number a row, so that rows of different age share a batch",
    ),
)
NEURONS: dict[str, Neuron] = {row.op: row for row in _ROWS}
