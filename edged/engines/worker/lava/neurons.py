"""What a population of the canonical graph becomes as Lava's LIF, in floating point, and how its states are read back.

Lava: u = u·(1-du) + a; v = v·(1-dv) + u + bias; s = [v > vth]; v = 0 where s. With that:

- hard resets (IFZ, LIFZ, CubaLIFZ) are Lava's own; a reset to another number than zero comes back as a synapse from the
  neuron to itself, which arrives with the next step's current, just where v_reset·decay belongs.
- soft resets (IF, LIF) use u as the membrane: it is never reset, dv = 1 makes v a copy of it, and the synapse from the
  neuron to itself takes v_sub·decay off one step later. Nothing above the threshold is forgotten.
- Threshold is the same with du = 1: no memory.

Lava compares strictly and in float64, the graph with >= and in float32. Both agree when vth is the last float64 number
that float32 still rounds to below v_th. No Lava in here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from edged.engines.worker.lava.network import CUBA, HARD, SOFT, Population


class Lif(NamedTuple):
    """Parameters of Lava's LIF: one number, or one for each neuron (its floating-point model takes both)."""

    du: Any
    dv: Any
    vth: Any


def lif(population: Population) -> Lif:
    """The floating-point LIF of a population."""
    given = population.parameters
    leak = 1 - given["decay"].astype(np.float64) if "decay" in given else np.zeros(population.size)
    ones = np.ones(population.size)
    if population.op in SOFT:
        du, dv = leak, ones
    elif population.op in HARD:
        du, dv = ones, leak
    elif population.op in CUBA:
        du, dv = 1 - given["c_decay"].astype(np.float64), leak
    else:
        du, dv = ones, ones
    return Lif(_one(du), _one(dv), _one(strict(given["v_th"])))


def strict(v_th: Any) -> Any:
    """The number x (float64) for which u > x is the same as float32(u) >= v_th, for every float64 u.

    The midpoint below v_th is rounded to the even neighbour: to v_th where its last bit is 0.
    """
    v_th = np.asarray(v_th, np.float32)
    below = np.nextafter(v_th, np.float32(-np.inf))
    middle = (v_th.astype(np.float64) + below) / 2
    return np.where(v_th.view(np.uint32) & 1 == 0, np.nextafter(middle, -np.inf), middle)


def before(population: Population, states: Mapping[str, Any]) -> dict[str, Any]:
    """Lava's u and v for the graph's states before a step, both flat."""
    given = population.parameters
    v = states[population.states["v"]] if "v" in population.states else np.zeros(population.size)
    if population.op in SOFT:
        return {"u": v}
    if population.op in CUBA:
        return {"u": states[population.states["c"]] * given["gain"].astype(np.float64), "v": v}
    return {"v": v}


def after(population: Population, u: Any, v: Any, spikes: Any) -> dict[str, Any]:
    """The graph's states after a step, by name and flat, from Lava's u and v and who spiked."""
    given = population.parameters
    if "v" not in population.states:
        return {}
    if population.op in SOFT:
        return {population.states["v"]: u - spikes * given["v_sub"]}
    found = {population.states["v"]: np.where(spikes, given["v_reset"], v)}
    if population.op in CUBA:
        bias = given["bias"].astype(np.float64)
        found[population.states["c"]] = (u - bias) / given["gain"]
    return found


def _one(value: Any) -> Any:
    """One number where all are equal: what Lava asks for, and what hardware has."""
    return float(value[0]) if (value == value[0]).all() else value
