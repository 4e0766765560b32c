"""The op table of the ONNX domain ``edged.snn``: one row a neuron, its equation and its body in standard ops.

Rules of the domain: no attributes, no optional inputs; parameters are initializers that broadcast against the state
([1,C,1,…] or the full shape); every state starts at zero; the comparison is always ``>=``. A source that compares with
``>`` gets ``v_th = nextafter(θ, ∞)``, which is the same in float32. A new neuron is a new row; nothing else changes.

Bodies are data, so that this file needs no onnx: ``functions.py`` turns them into model-local functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

DOMAIN = "edged.snn"
DOMAIN_VERSION = 1
OPSET = 17  # the newest that every engine reads: ONNX Runtime 1.23 stops at IR 11, TensorRT 8.5 at opset 17
IR_VERSION = 8  # the first with model-local functions

Floats = NDArray[Any]
Reset = Literal["soft", "hard", "none"]
BodyNode = tuple[str, tuple[str, ...], str]  # op, inputs, output; the one Cast goes to float32


@dataclass(frozen=True)
class Neuron:
    """One op: ``inputs`` are current, states, parameters in this order; ``outputs`` are the emission, then new states.

    ``states`` pairs each state input with its output. ``potential`` is u in NumPy, in the dtype of its arguments:
    what is compared with ``v_th`` (or emitted, where nothing is compared).
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    states: tuple[tuple[str, str], ...]
    parameters: tuple[str, ...]
    reset: Reset
    body: tuple[BodyNode, ...]
    potential: Callable[[Mapping[str, Floats]], Floats]
    doc: str

    @property
    def spiking(self) -> bool:
        """Whether the emission is a spike (0 or 1)."""
        return self.reset != "none"


_FIRE: tuple[BodyNode, ...] = (("GreaterOrEqual", ("u", "v_th"), "fired"), ("Cast", ("fired",), "s"))
_SOFT: tuple[BodyNode, ...] = (*_FIRE, ("Mul", ("s", "v_sub"), "drop"), ("Sub", ("u", "drop"), "v_next"))
_HARD: tuple[BodyNode, ...] = (*_FIRE, ("Where", ("fired", "v_reset", "u"), "v_next"))
_INTEGRATE: tuple[BodyNode, ...] = (("Add", ("v", "i"), "u"),)
_LEAK: tuple[BodyNode, ...] = (("Mul", ("v", "decay"), "kept"), ("Add", ("i", "bias"), "drive"))
_LEAKY: tuple[BodyNode, ...] = (*_LEAK, ("Add", ("kept", "drive"), "u"))


def _integrated(values: Mapping[str, Floats]) -> Floats:
    return np.asarray(values["v"] + values["i"])


def _leaked(values: Mapping[str, Floats]) -> Floats:
    return np.asarray(values["v"] * values["decay"] + (values["i"] + values["bias"]))


def _spiking(op: str, parameters: tuple[str, ...], reset: Reset, doc: str) -> Neuron:
    leaky = "decay" in parameters
    return Neuron(
        op=op,
        inputs=("i", "v", *parameters),
        outputs=("s", "v_next"),
        states=(("v", "v_next"),),
        parameters=parameters,
        reset=reset,
        body=(_LEAKY if leaky else _INTEGRATE) + (_SOFT if reset == "soft" else _HARD),
        potential=_leaked if leaky else _integrated,
        doc=doc,
    )


NEURONS: dict[str, Neuron] = {
    neuron.op: neuron
    for neuron in (
        _spiking("IF", ("v_th", "v_sub"), "soft", "u = v + i; s = [u >= v_th]; v' = u - s*v_sub"),
        _spiking("IFZ", ("v_th", "v_reset"), "hard", "u = v + i; s = [u >= v_th]; v' = s ? v_reset : u"),
        _spiking(
            "LIF",
            ("decay", "bias", "v_th", "v_sub"),
            "soft",
            "u = v*decay + (i + bias); s = [u >= v_th]; v' = u - s*v_sub",
        ),
        _spiking(
            "LIFZ",
            ("decay", "bias", "v_th", "v_reset"),
            "hard",
            "u = v*decay + (i + bias); s = [u >= v_th]; v' = s ? v_reset : u",
        ),
        Neuron(
            op="LI",
            inputs=("i", "v", "decay", "bias"),
            outputs=("y", "v_next"),
            states=(("v", "v_next"),),
            parameters=("decay", "bias"),
            reset="none",
            body=(*_LEAK, ("Add", ("kept", "drive"), "v_next"), ("Identity", ("v_next",), "y")),
            potential=_leaked,
            doc="v' = v*decay + (i + bias); y = v'",
        ),
    )
}
