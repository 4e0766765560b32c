"""What a neuron of ``edged.snn`` becomes in NIR: the equations of ``cells``, solved for NIR's quantities.

One step of length dt multiplies a membrane by 1 - dt/τ, so τ = dt/(1 - decay), and r is chosen so that the input's gain
is one. Everything stays in float64: read again, each parameter is the same float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from cloud_sync.convert.nir.fields import Doubles, unfit
from cloud_sync.convert.nir.file import Value
from cloud_sync.convert.nir.pieces import Shape
from cloud_sync.convert.nir.semantics import Comparison, Reset, Start


@dataclass(frozen=True, slots=True)
class Choice:
    """What this neuron needs its reader to know."""

    reset: Reset
    start: Start


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """One NIR node: its type and fields."""

    kind: str
    fields: Mapping[str, Value] = field(default_factory=dict)
    choice: Choice | None = None


Values = Mapping[str, Doubles]  # each parameter for each element


def integrate_and_fire(values: Values, shape: Shape, dt: float, comparison: Comparison) -> Written:
    """IF, IFZ: v' = v + i is dv/dt = r·i with r = 1/dt."""
    fires, choice, _ = _firing(values, shape, comparison)
    return Written("IF", {"r": np.full(shape, 1 / dt), **fires}, choice)


def leaky_fire(values: Values, shape: Shape, dt: float, comparison: Comparison) -> Written:
    """LIF, LIFZ; without a leak they are IF."""
    fires, choice, start = _firing(values, shape, comparison)
    if (values["decay"] == 1).all() and not values["bias"].any():
        return Written("IF", {"r": np.full(shape, 1 / dt), **fires}, choice)
    return Written("LIF", {**_leak(values, dt, start), **fires}, choice)


def leaky(values: Values, shape: Shape, dt: float, _: Comparison) -> Written:
    """LI; without a leak it is I."""
    if (values["decay"] == 1).all() and not values["bias"].any():
        return running_sum(values, shape, dt, _)
    return Written("LI", _leak(values, dt, np.zeros(shape)))


def running_sum(_: Values, shape: Shape, dt: float, __: Comparison) -> Written:
    """RunningSum is I."""
    return Written("I", {"r": np.full(shape, 1 / dt)})


def current_fire(values: Values, shape: Shape, dt: float, comparison: Comparison) -> Written:
    """CubaLIF, CubaLIFZ."""
    fires, choice, start = _firing(values, shape, comparison)
    return Written("CubaLIF", {**_synapse(values, dt, start), **fires}, choice)


def current(values: Values, shape: Shape, dt: float, _: Comparison) -> Written:
    """CubaLI."""
    return Written("CubaLI", _synapse(values, dt, np.zeros(shape)))


def threshold(values: Values, _: Shape, __: float, comparison: Comparison) -> Written:
    """Threshold."""
    return Written("Threshold", {"threshold": _source(values["v_th"], comparison)})


def delay(values: Values, _: Shape, dt: float, __: Comparison) -> Written:
    """Delay: the place of the one in its history says how many steps."""
    history = values["w"]
    return Written("Delay", {"delay": (len(history) - 1 - history.argmax(axis=0)) * dt})


def _firing(values: Values, shape: Shape, comparison: Comparison) -> tuple[dict[str, Value], Choice, Doubles]:
    """The fields of threshold and reset, and where the membrane starts."""
    theta, nothing = _source(values["v_th"], comparison), np.zeros(shape)
    if "v_reset" in values:
        return {"v_threshold": theta, "v_reset": values["v_reset"]}, Choice("value", "zero"), nothing
    taken = values["v_sub"]
    fields: dict[str, Value] = {"v_threshold": taken, "v_reset": nothing}
    if _same(taken, theta):
        return fields, Choice("subtract", "zero"), nothing
    if not _same(taken / 2, theta):
        unfit(
            f"a spike at {theta.flat[0]:g} takes {taken.flat[0]:g} from its membrane",
            "NIR knows one number for both; half of it at the start is understood too",
        )
    return fields, Choice("subtract", "half"), taken / 2


def _source(v_th: Doubles, comparison: Comparison) -> Doubles:
    """The threshold that a source with this comparison had."""
    if comparison == ">=":
        return v_th
    return np.nextafter(v_th.astype(np.float32), np.float32(-np.inf)).astype(np.float64)


def _same(one: Doubles, other: Doubles) -> bool:
    return bool((one.astype(np.float32) == other.astype(np.float32)).all())


def _leak(values: Values, dt: float, start: Doubles) -> dict[str, Value]:
    lost = _lost(values["decay"])
    return {"tau": dt / lost, "r": 1 / lost, "v_leak": values["bias"] / lost + start}


def _synapse(values: Values, dt: float, start: Doubles) -> dict[str, Value]:
    lost, faded = _lost(values["decay"]), _lost(values["c_decay"])
    return {
        "tau_syn": dt / faded,
        "w_in": values["c_gain"] / faded,
        "tau_mem": dt / lost,
        "r": values["gain"] / lost,
        "v_leak": values["bias"] / lost + start,
    }


def _lost(decay: Doubles) -> Doubles:
    if (decay == 1).any():
        unfit("it forgets nothing", "NIR gives it a finite time constant")
    return 1 - decay


WRITTEN: dict[str, Callable[[Values, Shape, float, Comparison], Written]] = {
    "CubaLI": current,
    "CubaLIF": current_fire,
    "CubaLIFZ": current_fire,
    "Delay": delay,
    "IF": integrate_and_fire,
    "IFZ": integrate_and_fire,
    "LI": leaky,
    "LIF": leaky_fire,
    "LIFZ": leaky_fire,
    "RunningSum": running_sum,
    "Threshold": threshold,
}
