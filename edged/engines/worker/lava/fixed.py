"""A network in Loihi's integers: weights of 8 bits with one exponent a link, decays of 12 bits, potentials of 24.

A population counts its current in steps of 1/scale, its potential in steps of 1/(64·scale): Lava shifts currents up by
6 bits. The scale comes with the bundle, as part of its golden data, so that the integers here are those that were
proved; neurons with a hard reset and thresholds of their own get scales of their own, because Loihi has one threshold a
population. Inputs are numbers of 8 bits; what lies outside is cut off.

What is lost on the way: weights are rounded to even numbers where signs are mixed; u cannot be kept for ever, the least
decay is 1/4096 a step; thresholds and biases are rounded; a sum with a negative exponent is rounded down by the shift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edged.engines.worker.lava.affine import refused
from edged.engines.worker.lava.network import CUBA, HARD, SOFT, Gate, Link, Network, Population

UNITY = 4096  # decays are in 1/4096
MEMBRANE = 64  # potentials are currents shifted up by 6 bits
BIAS_MAX = 4095  # 13 bits with a sign
WEIGHT_MAX = 254  # even, with a sign
COARSE = 128  # what a message carries for the coarse part of a constant current
LEAST_EXPONENT = -8  # of a link's weights
INPUT_MAX = 255


@dataclass(frozen=True)
class Fixed:
    """A network in integers, with what it takes to come and go: a number x of the graph is x·scale here."""

    network: Network
    lifs: dict[str, dict[str, Any]]
    potentials: dict[str, Any]  # population → scale of its potential, one a neuron
    inputs: dict[str, float]  # input → scale of its messages


def quantise(network: Network, scales: Mapping[str, float], inputs: Mapping[str, float]) -> Fixed:
    """The nearest network that Loihi runs. ``scales``: units of the current for each population; ``inputs``: units of a
    message for each input. Raises Unsupported, naming the node."""
    each = {p.name: _scale(p, scales[p.name]) for p in network.populations}
    links = tuple(_link(link, each[link.target], inputs.get(link.source, 1.0)) for link in network.links)
    gates, exponents = {}, {}
    for population in network.populations:
        name = population.name
        gates[name], exponents[name] = _gates(network.gates[name], each[name])
    made = replace(network, links=links, gates=gates, gate_exponents=exponents)
    lifs = {p.name: _lif(p, each[p.name]) for p in network.populations}
    return Fixed(made, lifs, {name: MEMBRANE * scale for name, scale in each.items()}, dict(inputs))


def _scale(population: Population, scale: float) -> Any:
    """Units of the current, one number a neuron."""
    v_th = population.parameters["v_th"].astype(np.float64)
    if population.op in (*SOFT, "Threshold"):
        return np.full(population.size, scale)
    threshold = np.floor(scale * v_th.min())
    if threshold < 1:
        raise refused(population.node, "its thresholds lie too far below its currents for 16 bits")
    return threshold / v_th


def _link(link: Link, scale: Any, source: float) -> Link:
    exact = link.weights.multiply(scale[:, None] / source).tocsr()
    weights, exponent = _integers(exact)
    kernel = link.kernel if exponent == 0 else None
    if kernel is not None:
        channels = scale.reshape(kernel.output_shape[0], -1)
        if (channels == channels[:, :1]).all():
            spread = kernel.weight * (channels[:, 0] / source)[:, None, None, None]
            kernel = replace(kernel, weight=_integers_of(spread, 0))
        else:
            kernel = None
    return replace(link, weights=weights, exponent=exponent, kernel=kernel)


def _integers(exact: Any) -> tuple[Any, int]:
    """A matrix as whole weights and the exponent of two that they share."""
    exponent = _exponent(exact.data)
    made = exact.copy()
    made.data = _integers_of(exact.data, exponent)
    made = made.astype(np.int32)
    made.eliminate_zeros()
    return made, exponent


def _exponent(values: Any) -> int:
    peak = float(np.abs(values).max(initial=0.0))
    if peak == 0:
        return 0
    return max(int(np.ceil(np.log2(peak / WEIGHT_MAX))), LEAST_EXPONENT)


def _integers_of(values: Any, exponent: int) -> Any:
    """Rounded to what 8 bits hold: even numbers where signs are mixed."""
    step = 2 if (values < 0).any() and (values > 0).any() else 1
    return np.clip(np.round(values / 2.0**exponent / step) * step, -WEIGHT_MAX, WEIGHT_MAX)


def _gates(gates: Mapping[Gate, Any], scale: Any) -> tuple[dict[Gate, Any], int]:
    """Constant currents as weights for two signals each, one of them ``COARSE``: 15 bits instead of 8."""
    exact = {gate: current * scale for gate, current in gates.items()}
    exponent = _exponent(np.array(list(exact.values())) / COARSE)
    made: dict[Gate, Any] = {}
    for gate, current in exact.items():
        made[Gate(gate.first, COARSE)] = _even(current / 2.0**exponent / COARSE)
        rest = current / 2.0**exponent - made[Gate(gate.first, COARSE)] * COARSE
        made[gate] = _even(rest)
    return made, exponent


def _even(values: Any) -> Any:
    return np.clip(np.round(values / 2) * 2, -WEIGHT_MAX, WEIGHT_MAX)


def _lif(population: Population, scale: Any) -> dict[str, Any]:
    given = population.parameters
    decay = _one(population, "decay") if "decay" in given else 1.0
    if population.op in HARD:
        return {"du": UNITY - 1, "dv": _decay(decay), "vth": round(float(scale[0] * given["v_th"][0]))}
    if population.op in CUBA:
        synapse = max(_decay(_one(population, "c_decay")) - 1, 0)  # Lava adds one to du
        return {"du": synapse, "dv": _decay(decay), "vth": round(float(scale[0] * given["v_th"][0]))}
    # the membrane is u: fires where u + bias > 0, with a bias for each neuron
    threshold = MEMBRANE * scale * given["v_th"].astype(np.float64)
    exponent = max(int(np.ceil(np.log2(float(threshold.max()) / BIAS_MAX))), 0)
    mantissa = np.maximum(np.round(threshold / 2**exponent), 1).astype(np.int64)
    du = max(_decay(decay) - 1, 0) if population.op in SOFT else UNITY - 1
    return {"du": du, "dv": UNITY - 1, "vth": 0, "bias_mant": -mantissa, "bias_exp": exponent}


def _decay(kept: float) -> int:
    return min(max(round((1 - kept) * UNITY), 0), UNITY - 1)


def _one(population: Population, name: str) -> float:
    value = population.parameters[name]
    if not (value == value[0]).all():
        raise refused(population.node, f"its neurons have different values of {name}; on Loihi a population has one")
    return float(value[0])
