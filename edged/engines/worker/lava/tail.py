"""What the worker computes itself: the linear readout behind the last spikes and leaky integrators.

Sums are made in float64 and rounded to float32 once, states and outputs are float32 as in the graph. No Lava in here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edged.engines.worker.lava.affine import GATE, Affine
from edged.engines.worker.lava.network import Integrator, Network


def window_outputs(network: Network, values: dict[str, Any], steps: int) -> Any:
    """The output (steps, classes) from ``values``: spikes of populations and inputs, each (steps, size)."""
    for cell in network.integrators:
        current = over_time(network.currents[cell.name], values, steps)
        states = dict.fromkeys(cell.states.values(), np.zeros(current.shape[1], np.float32))
        rows = []
        for row in current:
            states = integrate(cell, row, states)
            rows.append(states[cell.states["v"]])
        values[cell.name] = np.stack(rows)
    return over_time(network.readout, values, steps)


def over_time(value: Affine, values: Mapping[str, Any], steps: int) -> Any:
    """A tensor at every step (steps, size), float32."""
    total = np.tile(value.constant.astype(np.float64), (steps, 1))
    for key, matrix in value.terms.items():
        if key.lag >= steps:
            continue
        if key.name == GATE:
            total[key.lag :] += np.asarray(matrix.todense()).reshape(1, -1)
        else:
            total[key.lag :] += (matrix @ values[key.name][: steps - key.lag].T).T
    return total.astype(np.float32)


def step_outputs(network: Network, values: dict[str, Any], states: Mapping[str, Any]) -> dict[str, Any]:
    """Every output of one step by name, flat, from the spikes, inputs and states of this step; and integrators' states.

    ``values`` holds vectors by source; states are added to it under their names.
    """
    values.update(states)
    found: dict[str, Any] = {}
    for cell in network.integrators:
        own = {name: states[name].astype(np.float32) for name in cell.states.values()}
        new = integrate(cell, now(cell.current, values), own)
        values[cell.name] = new[cell.states["v"]]
        found.update(new)
    found.update({name: now(value, values) for name, value in network.outputs.items()})
    return found


def now(value: Affine, values: Mapping[str, Any]) -> Any:
    """A tensor at one step, float32; sources have no lag there."""
    total = value.constant.astype(np.float64)
    for key, matrix in value.terms.items():
        total = total + matrix @ values[key.name]
    return total.astype(np.float32)


def integrate(cell: Integrator, current: Any, states: Mapping[str, Any]) -> dict[str, Any]:
    """The states of a leaky integrator after one step, in float32 and in the graph's order of operations."""
    given = cell.parameters
    found = {}
    if cell.op == "CubaLI":
        synapse = states[cell.states["c"]] * given["c_decay"] + current * given["c_gain"]
        found[cell.states["c"]] = synapse
        current = synapse * given["gain"]
    found[cell.states["v"]] = states[cell.states["v"]] * given["decay"] + (current + given["bias"])
    return found
