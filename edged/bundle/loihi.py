"""A step graph in Loihi's integers, computed in NumPy: what a correct engine in integers answers, to the last bit.

Written from the chip's rules, for no engine: golden data made here are what Lava, and a board, are held to.

- A weight is whole, of 8 bits (even where signs are mixed), with one power of two for all synapses from one source to
  one population: ``a = (Σ w·message) · 2^exponent``, rounded down.
- A neuron has a current u and a potential v of 24 bits. Each step keeps (4096 - d)/4096 of them, rounded to zero:
  ``u = kept(u) + 64·a``, ``v = kept(v) + u + bias``; it spikes where v > threshold, and then v is 0.
- Each synapse takes a step, so a population waits as many as there are before it, and its v settles meanwhile.
- Hard resets are the chip's own. A soft reset has its membrane in u, which no spike clears; a synapse from the neuron
  to itself takes v_sub off one step later, and the bias is minus the threshold.
- Spikes are 1, inputs are numbers of 8 bits and a sign, constants are two signals, of 1 and of 128.

The scale says how many units of the current are 1. Hard resets have one threshold for all neurons, so there each neuron
has a scale of its own: that with which its threshold is the population's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.bundle.graph.cells import Cell
from edged.bundle.graph.linear import Current, Cut, Synapses
from edged.errors import BundleError

Floats = NDArray[Any]
Whole = NDArray[np.int64]

UNITY = 4096
SHIFT = 6  # from a current to a potential
LIMIT = 1 << 23  # of u and v
CURRENT_LIMIT = 1 << 15  # of what reaches a neuron in a step
WEIGHT_MAX = 254
LEAST_EXPONENT, LARGEST_EXPONENT = -8, 7
MANTISSA_MAX = 4095  # of a bias
COARSE = 128
INPUT_MAX = 255
SOFT, HARD, CUBA, STATELESS = ("IF", "LIF"), ("IFZ", "LIFZ"), ("CubaLIFZ",), ("Threshold",)


class NoIntegers(BundleError):
    """This network has no form in integers, or leaves their range."""


@dataclass(frozen=True)
class Fan:
    """Synapses from one source in whole weights."""

    synapses: Synapses
    exponent: int

    def arrive(self, message: Floats, size: int) -> Whole:
        """What reaches each of ``size`` neurons from a message, flat."""
        return _shifted(self.synapses.reach(message, size).astype(np.int64), self.exponent)


@dataclass(frozen=True)
class Neurons:
    """A population after a step. ``potential``: v before the spikes clear it."""

    u: Whole
    potential: Whole
    spikes: NDArray[np.bool_]

    @property
    def v(self) -> Whole:
        """What is left of the potential."""
        return np.where(self.spikes, 0, self.potential)


@dataclass(frozen=True)
class Population:
    """A spiking cell in integers. ``unit``: a number x of the graph is the potential x·unit, one for each neuron."""

    cell: Cell
    unit: Floats
    du: int
    dv: int
    threshold: int
    bias: Whole
    fans: tuple[Fan, ...]
    constants: tuple[tuple[int, Whole], ...]  # first step, weights · signals
    constants_exponent: int
    start: Whole  # v, when its window begins

    @property
    def size(self) -> int:
        """Neurons."""
        return int(np.prod(self.cell.shape))

    def constant(self, step: int) -> Whole:
        """The current that is there at a step without any spike."""
        total = sum((one for first, one in self.constants if first <= step), np.zeros(self.size, np.int64))
        return _shifted(total, self.constants_exponent)

    def advance(self, u: Whole, v: Whole, current: Whole) -> Neurons:
        """One step. Raises NoIntegers out of range."""
        u = kept(u, self.du) + (current << SHIFT)
        v = kept(v, self.dv) + u + self.bias
        if np.abs(current).max() >= CURRENT_LIMIT or max(np.abs(u).max(), np.abs(v).max()) >= LIMIT:
            raise NoIntegers(f"{self.cell.name}: its numbers leave the chip's range")
        return Neurons(u, v, v > self.threshold)

    def poked(self, states: Mapping[str, Floats]) -> tuple[Whole, Whole]:
        """u and v for the graph's states of one row, by the neuron's names for them."""
        none = np.zeros(self.size, np.int64)
        if self.cell.membrane is None:
            return none, none
        v = _rounded(_flat(states["v"]) * self.unit)
        if self.cell.row.op in SOFT:
            return v, self.start
        if self.cell.row.op in CUBA:
            return _rounded(_flat(states["c"]) * _parameter(self.cell, "gain") * self.unit), v
        return none, v

    def peeked(self, after: Neurons) -> dict[str, Floats]:
        """The graph's states after a step, flat, by the neuron's names for them."""
        u, v, spikes = after.u, after.v, after.spikes
        if self.cell.membrane is None:
            return {}
        if self.cell.row.op in SOFT:
            return {"v": u / self.unit - spikes * _parameter(self.cell, "v_sub")}
        found = {"v": np.where(spikes, _parameter(self.cell, "v_reset"), v / self.unit)}
        if self.cell.row.op in CUBA:
            found["c"] = (u / self.unit - _parameter(self.cell, "bias")) / _parameter(self.cell, "gain")
        return found

    def grain(self) -> dict[str, Floats]:
        """What one unit is in the graph's states, one number a neuron."""
        if self.cell.membrane is None:
            return {}
        found = {"v": 1 / self.unit}
        if self.cell.row.op in CUBA:
            found["c"] = 1 / self.unit / np.abs(_parameter(self.cell, "gain"))
        return found


def kept(value: Whole, lost: int) -> Whole:
    """What a step keeps of a value: (4096 - lost)/4096, rounded to zero."""
    return np.asarray(np.sign(value) * ((np.abs(value) * (UNITY - lost)) >> 12))


@dataclass(frozen=True)
class Moment:
    """A network after one step, all flat: emissions and potentials by emission, spiking cells' states by input name."""

    emissions: dict[str, Floats]
    states: dict[str, Floats]
    potentials: dict[str, Whole]


@dataclass(frozen=True)
class Integers:
    """A network in integers, its cells in an order in which a step can be computed."""

    populations: tuple[Population, ...]
    cut: Cut
    inputs: Mapping[str, float]  # scale of the messages

    def messages(self, value: Floats, name: str) -> Floats:
        """An input as it is sent."""
        return np.clip(np.round(_flat(value) * self.inputs[name]), -INPUT_MAX, INPUT_MAX)

    def window(self, samples: Mapping[str, Floats], steps: int) -> list[dict[str, Floats]]:
        """Spikes (flat) at each step of one window: by emission. ``samples`` (steps, *shape)."""
        states = {p.cell.emission: (np.zeros(p.size, np.int64), p.start) for p in self.populations}
        sent: list[dict[str, Floats]] = []
        for t in range(steps):
            now = {name: self.messages(value[t], name) for name, value in samples.items()}
            sent.append(now)
            for one in self.populations:
                current = one.constant(t)
                for fan in one.fans:
                    if fan.synapses.lag <= t:
                        current = current + fan.arrive(sent[t - fan.synapses.lag][fan.synapses.source], one.size)
                after = one.advance(*states[one.cell.emission], current)
                states[one.cell.emission] = after.u, after.v
                now[one.cell.emission] = after.spikes.astype(np.float64)
        return sent

    def step(self, frames: Mapping[str, Floats], states: Mapping[str, Floats]) -> Moment:
        """One row of one step, from the states of the graph by input name."""
        now = {name: self.messages(value, name) for name, value in frames.items()}
        moment = Moment({}, {}, {})
        held = self._held(states)
        for one in self.populations:
            name = one.cell.emission
            current = one.constant(0) + _rounded(held[one.cell.current] * one.unit / (1 << SHIFT))
            for fan in one.fans:
                if fan.synapses.lag == 0:
                    current = current + fan.arrive(now[fan.synapses.source], one.size)
            own = {key: states[state.input] for key, state in one.cell.states.items()}
            after = one.advance(*one.poked(own), current)
            now[name] = after.spikes.astype(np.float64)
            moment.emissions[name], moment.potentials[name] = now[name], after.potential
            peeked = one.peeked(after)
            moment.states.update({state.input: peeked[key] for key, state in one.cell.states.items()})
        return moment

    def _held(self, states: Mapping[str, Floats]) -> dict[str, Floats]:
        """What plain states and delays send into the cells' currents, as the cells take it."""
        part = self.cut.part(self.cut.states, self.cut.targets)
        given = {name: np.stack([states[name], np.zeros_like(states[name])]) for name in self.cut.states}
        found = part.run({}, given)[0] if part.wanted else {}
        held = {}
        for one in self.populations:
            sent = found.get(one.cell.current)
            held[one.cell.current] = np.zeros(one.size) if sent is None else _flat(sent[0] - sent[1]) * _gain(one.cell)
        return held


def integers(
    spiking: Sequence[Cell],
    cut: Cut,
    currents: Mapping[str, Current],
    scales: Sequence[float],
    inputs: Mapping[str, float],
) -> Integers:
    """The network in integers with given scales: units of the current for each cell, of messages for each input.

    Raises NoIntegers.
    """
    made = [
        _population(cell, currents[cell.current], scale, inputs) for cell, scale in zip(spiking, scales, strict=True)
    ]
    depths = _depths(made)
    waited = tuple(replace(one, start=_waited(one, depths[one.cell.emission])) for one in made)
    return Integers(waited, cut, dict(inputs))


def _depths(populations: Sequence[Population]) -> dict[str, int]:
    """The least number of steps that each population waits so that everything arrives in time."""
    depths = {one.cell.emission: 1 for one in populations}
    links = [(fan.synapses.source, one.cell.emission, fan.synapses.lag) for one in populations for fan in one.fans]
    for _ in range(len(populations) + 1):
        late = [link for link in links if depths[link[1]] < depths.get(link[0], 0) + 1 - link[2]]
        if not late:
            return depths
        for source, target, lag in late:
            depths[target] = max(depths[target], depths.get(source, 0) + 1 - lag)
    raise NoIntegers("it has a loop with more synapses than steps; each takes one on the chip")


def _waited(one: Population, steps: int) -> Whole:
    v = np.zeros(one.size, np.int64)
    for _ in range(steps):
        v = kept(v, one.dv) + one.bias
    return v


def _population(cell: Cell, current: Current, scale: float, inputs: Mapping[str, float]) -> Population:
    op, size = cell.row.op, int(np.prod(cell.shape))
    v_th = _parameter(cell, "v_th")
    if op in (*HARD, *CUBA):
        threshold = math.floor(scale * v_th.min())
        if threshold < 1:
            raise NoIntegers(f"{cell.name}: its thresholds lie too far below its currents for 16 bits")
        each, bias = threshold / v_th, np.zeros(size, np.int64)
    else:
        each, threshold = np.full(size, scale), 0
        exact = each * (1 << SHIFT) * v_th
        exponent = max(math.ceil(math.log2(exact.max() / MANTISSA_MAX)), 0)
        bias = -(np.maximum(np.round(exact / 2**exponent), 1).astype(np.int64) << exponent)
    du, dv = _decays(cell)
    parts = {(one.source, one.lag): _scaled(one, _gain(cell)) for one in current.synapses}
    for own in _own(cell):
        key = own.source, own.lag
        parts[key] = _joined(parts[key], own) if key in parts else own
    fans = tuple(_fan(one, each / inputs.get(one.source, 1.0)) for one in parts.values())
    constants, constants_exponent = _constants(list(_gates(cell, current.constant)), each)
    unit, start = each * (1 << SHIFT), np.zeros(size, np.int64)
    return Population(cell, unit, du, dv, threshold << SHIFT, bias, fans, constants, constants_exponent, start)


def _decays(cell: Cell) -> tuple[int, int]:
    """What u and v lose in a step, in 1/4096; the chip adds one to what u is said to lose, which is at most 4095."""
    op = cell.row.op
    if op in HARD:
        return UNITY, _lost(cell, "decay")
    if op in CUBA:
        return max(_lost(cell, "c_decay"), 1), _lost(cell, "decay")
    return (UNITY if op in STATELESS else max(_lost(cell, "decay"), 1)), UNITY - 1


def _lost(cell: Cell, name: str) -> int:
    values = _parameter(cell, name) if name in cell.parameters else np.ones(1)
    if (values != values[0]).any():
        raise NoIntegers(f"{cell.name}: its neurons have different values of {name}; on the chip a population has one")
    return min(max(round((1 - float(values[0])) * UNITY), 0), UNITY - 1)


def _own(cell: Cell) -> Iterator[Synapses]:
    """From a neuron to itself: the reset, beside the chip's own to zero."""
    size = int(np.prod(cell.shape))
    here = np.arange(size)
    decay = _parameter(cell, "decay") if "decay" in cell.parameters else np.ones(size)
    op = cell.row.op
    if op in SOFT:
        yield Synapses(cell.emission, 1, here, here, -_parameter(cell, "v_sub") * decay)
    elif op in (*HARD, *CUBA) and _parameter(cell, "v_reset").any():
        back = _parameter(cell, "v_reset") * decay
        yield Synapses(cell.emission, 1, here, here, back)
        if op in CUBA:  # what came by the synaptic current would stay there
            yield Synapses(cell.emission, 2, here, here, -back * _parameter(cell, "c_decay"))


def _gates(cell: Cell, constant: Floats) -> Iterator[tuple[int, Floats]]:
    """Constant currents by the first step at which they act."""
    size = constant.shape[1]
    given = [np.zeros(size), *constant]
    changes = [after - before for before, after in zip(given, constant, strict=False)]
    bias = _parameter(cell, "bias") if "bias" in cell.parameters else np.zeros(size)
    cuba = cell.row.op in CUBA
    noise = 1e-12 * np.abs(constant).max()
    for first, change in enumerate(changes):
        value = np.where(np.abs(change) > noise, change, 0.0) * _gain(cell)
        if first == 0:  # added in float32 once, as the graph does
            start = constant[0].astype(np.float32)
            value = start * _gain(cell) + bias if cuba else (start + bias.astype(np.float32)).astype(np.float64)
        elif first == 1 and cuba:
            value = value - bias * _parameter(cell, "c_decay")  # the bias is to stay as it is, not to pile up
        if value.any():
            yield first, value


def _constants(gates: Sequence[tuple[int, Floats]], scale: Floats) -> tuple[tuple[tuple[int, Whole], ...], int]:
    exact = [(first, value * scale) for first, value in gates]
    exponent = _exponent(max((float(np.abs(value).max()) for _, value in exact), default=0.0) / COARSE)
    made = []
    for first, value in exact:
        coarse = _even(value / 2.0**exponent / COARSE)
        fine = _even(value / 2.0**exponent - coarse * COARSE)
        made.append((first, (coarse * COARSE + fine).astype(np.int64)))
    return tuple(made), exponent


def _even(values: Floats) -> Floats:
    return np.clip(np.round(values / 2) * 2, -WEIGHT_MAX, WEIGHT_MAX)


def _fan(one: Synapses, scale: Floats) -> Fan:
    exact = one.weights * scale[one.rows]
    exponent = _exponent(float(np.abs(exact).max(initial=0.0)))
    step = 2 if (exact < 0).any() and (exact > 0).any() else 1
    whole = np.clip(np.round(exact / 2.0**exponent / step) * step, -WEIGHT_MAX, WEIGHT_MAX)
    return Fan(Synapses(one.source, one.lag, one.rows, one.columns, whole), exponent)


def _exponent(peak: float) -> int:
    exponent = max(math.ceil(math.log2(peak / WEIGHT_MAX)), LEAST_EXPONENT) if peak else 0
    if exponent > LARGEST_EXPONENT:
        raise NoIntegers("a weight is too large for its population's scale")
    return exponent


def _joined(one: Synapses, other: Synapses) -> Synapses:
    """The sum of two with the same source and lag."""
    width = int(max(one.columns.max(initial=0), other.columns.max(initial=0))) + 1
    places = np.concatenate([one.rows * width + one.columns, other.rows * width + other.columns])
    place, where = np.unique(places, return_inverse=True)
    weights = np.bincount(where, np.concatenate([one.weights, other.weights]))
    return Synapses(one.source, one.lag, place // width, place % width, weights)


def _scaled(one: Synapses, gain: Floats) -> Synapses:
    return Synapses(one.source, one.lag, one.rows, one.columns, one.weights * gain[one.rows])


def _gain(cell: Cell) -> Floats:
    """What a population makes of its current before it counts it."""
    if cell.row.op not in CUBA:
        return np.ones(int(np.prod(cell.shape)))
    return _parameter(cell, "c_gain") * _parameter(cell, "gain")


def _parameter(cell: Cell, name: str) -> Floats:
    """One number for each neuron, in float64."""
    return np.broadcast_to(cell.parameters[name], (1, *cell.shape)).reshape(-1).astype(np.float64)


def _shifted(values: Whole, exponent: int) -> Whole:
    return values << exponent if exponent > 0 else values >> -exponent


def _rounded(values: Floats) -> Whole:
    return np.round(values).astype(np.int64)


def _flat(value: Floats) -> Floats:
    return value.reshape(-1).astype(np.float64)
