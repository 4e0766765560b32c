"""What a NIR neuron becomes: an op of ``edged.snn`` with its parameters, and the gain of what comes in.

NIR's equations are integrated as ``Semantics`` says. States of the canonical graph start at zero, so a membrane that
starts elsewhere is counted from there: threshold, reset value and leak are shifted. A source that fires above its
threshold gets the next float32 as threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud_sync.convert.nir.fields import Doubles, compact, each, unfit
from cloud_sync.convert.nir.file import Node
from cloud_sync.convert.nir.pieces import Shape
from cloud_sync.convert.nir.semantics import Reset, Semantics

MAX_DELAY = 1024  # steps; a window has no more
MAX_HISTORY = 1 << 24  # numbers that one Delay may keep: 64 MiB


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One layer of neurons: ``gain`` (of ``shape``) multiplies what comes in; ``offset`` is added to what goes out."""

    op: str
    parameters: dict[str, NDArray[Any]]
    shape: Shape
    gain: Doubles | None = None
    offset: Doubles | None = None


def integrator(node: Node, shape: Shape, semantics: Semantics) -> Cell:
    """I: dv/dt = r·i."""
    zero = np.zeros(shape)
    return Cell("LI", {"decay": compact(zero + 1), "bias": compact(zero)}, shape, _if_gain(node, shape, semantics))


def integrate_and_fire(node: Node, shape: Shape, semantics: Semantics) -> Cell:
    """IF: dv/dt = r·i."""
    start = _start(node, shape, semantics)
    reset = semantics.if_reset or semantics.reset
    op, fires = _firing(node, shape, semantics, reset, start)
    return Cell(f"IF{op}", fires, shape, _if_gain(node, shape, semantics))


def leaky(node: Node, shape: Shape, semantics: Semantics) -> Cell:
    """LI, LIF: τ dv/dt = v_leak - v + r·i."""
    decay = _decay(node, "tau", shape, semantics)
    start = _start(node, shape, semantics)
    gain = each(node, "r", shape) * (1 - decay) if semantics.gain == "nir" else None
    leaks = {"decay": compact(decay), "bias": compact((1 - decay) * (each(node, "v_leak", shape) - start))}
    if node.kind == "LI":
        return Cell("LI", leaks, shape, gain, start if start.any() else None)
    op, fires = _firing(node, shape, semantics, semantics.reset, start)
    if semantics.undecayed_reset and "v_sub" in fires:
        if not decay.all():
            unfit("its membrane is forgotten at once, but a reset lasts", "dt equals its time constant")
        fires["v_sub"] = compact(each(node, "v_threshold", shape) / decay)
    return Cell(f"LIF{op}", leaks | fires, shape, gain)


def current_based(node: Node, shape: Shape, semantics: Semantics) -> Cell:
    """CubaLI, CubaLIF: τ_syn dc/dt = -c + w_in·i; τ_mem dv/dt = v_leak - v + r·c, with the new c."""
    c_decay = _decay(node, "tau_syn", shape, semantics)
    decay = _decay(node, "tau_mem", shape, semantics)
    start = _start(node, shape, semantics)
    exact = semantics.gain == "nir"
    ones = np.ones(shape)
    parameters = {
        "c_decay": compact(c_decay),
        "c_gain": compact(each(node, "w_in", shape, 1.0) * (1 - c_decay) if exact else ones),
        "decay": compact(decay),
        "bias": compact((1 - decay) * (each(node, "v_leak", shape) - start)),
        "gain": compact(each(node, "r", shape) * (1 - decay) if exact else ones),
    }
    if node.kind == "CubaLI":
        return Cell("CubaLI", parameters, shape, None, start if start.any() else None)
    op, fires = _firing(node, shape, semantics, semantics.reset, start)
    return Cell(f"CubaLIF{op}", parameters | fires, shape)


def threshold(node: Node, shape: Shape, semantics: Semantics) -> Cell:
    """Threshold: 1 where the input reaches it."""
    return Cell("Threshold", {"v_th": compact(_compared(each(node, "threshold", shape), semantics))}, shape)


def delay(node: Node, shape: Shape, semantics: Semantics) -> Cell:
    """Delay: each element comes τ later; τ must be whole steps."""
    return _delayed(_steps(node, shape, semantics))


def delay_in_cycle(node: Node, shape: Shape, semantics: Semantics) -> Cell:
    """The same, short of the one step after which everybody sees what comes out."""
    steps = _steps(node, shape, semantics)
    if (steps < 1).any():
        unfit("it is in a cycle and delays by less than a step", "remove it")
    return _delayed(steps - 1)


def _steps(node: Node, shape: Shape, semantics: Semantics) -> NDArray[np.int64]:
    steps = each(node, "delay", shape) / _dt(semantics)
    rounded = np.round(steps)
    if (np.abs(steps - rounded) > 1e-3).any() or (rounded < 0).any():
        unfit(f"a delay of {steps.max():.4g} steps", "delays must be whole steps of dt, at least 0")
    longest = int(rounded.max())
    if longest > MAX_DELAY or (longest + 1) * rounded.size > MAX_HISTORY:
        unfit(
            f"a delay of {longest} steps for {rounded.size} elements",
            f"at most {MAX_DELAY} steps, {MAX_HISTORY} numbers",
        )
    return rounded.astype(np.int64)


def _delayed(steps: NDArray[np.int64]) -> Cell:
    longest = int(steps.max())
    newest_last = np.arange(longest + 1).reshape(-1, *(1,) * steps.ndim)
    return Cell("Delay", {"w": (newest_last == longest - steps).astype(np.float32)}, steps.shape)


def _firing(
    node: Node, shape: Shape, semantics: Semantics, reset: Reset, start: Doubles
) -> tuple[str, dict[str, NDArray[Any]]]:
    """The ending of the op's name, and the parameters of threshold and reset."""
    theta = each(node, "v_threshold", shape)
    v_reset = np.zeros(shape) if reset == "zero" else each(node, "v_reset", shape, 0.0)
    v_th = _compared(theta - start, semantics)
    if (v_th <= 0).any():
        unfit("its threshold is not above where its membrane starts", "it would fire without input")
    if reset != "subtract":
        if ((v_reset - start).astype(np.float32) >= v_th).any():
            unfit("its v_reset is not below its threshold", "it would fire for ever")
        return "Z", {"v_th": compact(v_th), "v_reset": compact(v_reset - start)}
    if v_reset.any():
        unfit(
            f"it resets to {v_reset.flat[np.abs(v_reset).argmax()]:g}",
            "with reset by subtraction that has no meaning: use --reset value",
        )
    return "", {"v_th": compact(v_th), "v_sub": compact(theta)}


def _compared(theta: Doubles, semantics: Semantics) -> Doubles:
    """The threshold for >=: the next float32 where the source fires above it only; never a subnormal number."""
    single = theta.astype(np.float32)
    if semantics.comparison == ">":
        single = np.where(single == 0, np.finfo(np.float32).tiny, np.nextafter(single, np.float32(np.inf)))
    return single.astype(np.float64)


def _decay(node: Node, name: str, shape: Shape, semantics: Semantics) -> Doubles:
    tau, dt = each(node, name, shape), _dt(semantics)
    if (tau <= 0).any():
        unfit(f"its {name} is not positive")
    if semantics.decay == "exponential":
        return np.asarray(np.exp(-dt / tau))
    if (dt > tau).any():
        unfit(f"a step of {dt:g} is longer than its {name} of {tau.min():g}", "choose a smaller dt, in the file's unit")
    return np.asarray(1 - dt / tau)


def _if_gain(node: Node, shape: Shape, semantics: Semantics) -> Doubles:
    r = each(node, "r", shape)
    return r * _dt(semantics) if semantics.if_gain == "nir" else r


def _start(node: Node, shape: Shape, semantics: Semantics) -> Doubles:
    name = {"zero": "", "half": "v_threshold", "reset": "v_reset", "leak": "v_leak"}[semantics.start]
    start = each(node, name, shape, 0.0) if name in node.fields else np.zeros(shape)
    return start / 2 if semantics.start == "half" else start


def _dt(semantics: Semantics) -> float:
    if semantics.dt is None or not 0 < semantics.dt < float("inf"):
        unfit("how long a step is was not said", "give dt in the unit of the file's time constants")
    return semantics.dt


CELLS: dict[str, Callable[[Node, Shape, Semantics], Cell]] = {
    "CubaLI": current_based,
    "CubaLIF": current_based,
    "Delay": delay,
    "I": integrator,
    "IF": integrate_and_fire,
    "LI": leaky,
    "LIF": leaky,
    "Threshold": threshold,
}
