"""Golden data for engines that compute in Loihi's integers: the arrays ``loihi.*`` beside those of floating point.

What such an engine answers differs from the graph, but there is nothing uncertain about it: from the same integers
every correct one computes the same spikes. So these data say which integers (the scales), and what has to come out:
``loihi.step.*`` for recorded steps of the floating-point data, ``loihi.free.*`` for its windows, and ``loihi.tie.*``,
where chosen neurons meet their threshold and exceed it by one. A potential may be off by less than half a unit, which
is what float32 leaves of it; a spike not at all.

The answers come from ``loihi``, the chip's arithmetic in NumPy, never from an engine. A network that no chip holds gets
no such data, and the log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edged.bundle.graph.cells import Cell, cells, tapped
from edged.bundle.graph.linear import Current, Cut, NotLinear, currents
from edged.bundle.graph.readout import scores
from edged.bundle.graph.spec import GraphSpec
from edged.bundle.graph.stock import Stock
from edged.bundle.loihi import (
    CUBA,
    HARD,
    INPUT_MAX,
    LIMIT,
    MANTISSA_MAX,
    SHIFT,
    SOFT,
    STATELESS,
    UNITY,
    Integers,
    NoIntegers,
    Population,
    integers,
    kept,
)  # fmt: skip

log = logging.getLogger(__name__)

Floats = NDArray[Any]

FORMAT = 1
ROWS = 4  # recorded steps: the last ones, which are driven to spike
ROW_BUDGET = 96 << 10  # bytes for them: the golden data of a small model stays below 1 MB
TIES = 64  # neurons of a population
EPS, TINY = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny)
CURRENT_ROOM = 1 << 14  # half of 16 bits with a sign: windows beyond the golden ones have room; also of one weight
POTENTIAL_ROOM = 1 << 16  # half of 24 bits with a sign, in units of the current
BIAS_EXPONENT = 7  # the largest


@dataclass(frozen=True)
class Scales:
    """What 1 is in integers: units of the current for each spiking cell, units of a message for the input."""

    cells: tuple[float, ...]
    input: float


def loihi_golden(model: onnx.ModelProto, spec: GraphSpec, golden: Mapping[str, Floats]) -> dict[str, Floats]:
    """The arrays ``loihi.*`` for a step graph with its golden data; none, with a line in the log, where it has no form
    in integers."""
    try:
        return _Maker(model, spec, golden).make()
    except (NotLinear, NoIntegers) as error:
        log.info("no golden data in integers", extra={"reason": str(error)})
        return {}


def in_integers(model: onnx.ModelProto, spec: GraphSpec, windows: Floats) -> tuple[Integers, Scales]:
    """A network in integers that suit some windows (N, *shape) or (N, T, *shape). Raises NotLinear, NoIntegers."""
    spiking = [cell for cell in cells(model, spec) if cell.row.spiking]
    for cell in spiking:
        if cell.row.op not in (*SOFT, *HARD, *CUBA, *STATELESS) or not (cell.parameters["v_th"] > 0).all():
            raise NoIntegers(f"{cell.name} ({cell.row.op}): the chip has no such neuron")
    if not spiking:
        raise NoIntegers("it has no spiking neuron")
    cut = Cut(model, spec, spiking)
    found = currents(cut, spec.timesteps)
    scales = _scales(model, spec, spiking, found, windows)
    made = integers(spiking, cut, found, scales.cells, {spec.inputs[0].name: scales.input})
    return made, scales


def _scales(
    model: onnx.ModelProto, spec: GraphSpec, spiking: list[Cell], found: Mapping[str, Current], windows: Floats
) -> Scales:
    peak = float(np.abs(windows).max())
    name = spec.inputs[0].name
    message = INPUT_MAX / 2.0 ** float(np.ceil(np.log2(peak))) if peak > 0 else 1.0
    made = []
    for cell, (current, potential) in zip(spiking, _reach(model, spec, spiking, windows), strict=True):
        gain = np.abs(cell.parameters["c_gain"] * cell.parameters["gain"]).max() if cell.row.op in CUBA else 1.0
        v_th = float(cell.parameters["v_th"].max())
        heaviest = [np.abs(one.weights).max(initial=0.0) / (message if one.source == name else 1.0) * gain
                    for one in found[cell.current].synapses]  # fmt: skip
        heaviest.append(np.abs(found[cell.current].constant).max() * gain)
        scale = min(CURRENT_ROOM / max(current, v_th, *map(float, heaviest)), POTENTIAL_ROOM / max(potential, v_th))
        if cell.row.op in (*SOFT, *STATELESS):
            scale = min(scale, MANTISSA_MAX * 2**BIAS_EXPONENT / (1 << SHIFT) / v_th)
        made.append(float(scale))
    return Scales(tuple(made), message)


def _reach(model: onnx.ModelProto, spec: GraphSpec, spiking: list[Cell], windows: Floats) -> list[tuple[float, float]]:
    """The largest current and potential of each cell in windows, in floating point."""
    session, entry = Stock(tapped(model, spiking)), spec.inputs[0]
    states = {s.input: np.zeros((len(windows), *s.shape), np.float32) for s in spec.states}
    peaks = [(0.0, 0.0)] * len(spiking)
    for t in range(spec.timesteps):
        shown = np.ascontiguousarray(windows[:, t] if entry.sequence else windows).astype(np.float32)
        tensors = {entry.name: shown, **states}
        tensors |= session.run(tensors)
        for k, cell in enumerate(spiking):
            peaks[k] = tuple(np.maximum(peaks[k], _largest(cell, tensors)).tolist())
        states = {s.input: tensors[s.output] for s in spec.states}
    return peaks


def _largest(cell: Cell, tensors: Mapping[str, Floats]) -> tuple[float, float]:
    found = cell.values(tensors)
    given = cell.parameters
    gain = given["c_gain"] * given["gain"] if cell.row.op in CUBA else np.ones(1)
    resets = [float(np.abs(given[name]).max()) for name in ("v_sub", "v_reset") if name in given]
    potential = [found[cell.row.potential]]
    if cell.row.op in CUBA:
        potential.append(found[dict(cell.row.states)["c"]] * given["gain"])
    current = float(np.abs(tensors[cell.current] * gain).max())
    return max([current, *resets]), max(float(np.abs(value).max()) for value in potential)


class Chip:
    """A network in integers with the readout behind its last spikes, which is computed in float64."""

    def __init__(self, made: Integers, spec: GraphSpec) -> None:
        self.made = made
        self.spec = spec
        self.entry = spec.inputs[0]
        self._tail = made.cut.part(made.cut.sources, [spec.output])

    def windows(self, windows: Floats) -> Floats:
        """The outputs (T, N, classes) of windows (N, *shape) or (N, T, *shape). Raises NoIntegers."""
        steps, name = self.spec.timesteps, self.entry.name
        shown = windows if self.entry.sequence else np.repeat(windows[:, np.newaxis], steps, axis=1)
        runs = [self.made.window({name: one}, steps) for one in shown]
        states, outputs = self._tail.zero(len(runs)), []
        for t in range(steps):
            given = {emission: np.stack([run[t][emission] for run in runs]).reshape(len(runs), *shape)
                     for emission, shape in self.made.cut.sources.items() if emission != name}  # fmt: skip
            found, states = self._tail.run({**given, name: shown[:, t]}, states)
            outputs.append(found[self.spec.output])
        return np.stack(outputs)

    def step(self, frame: Floats, states: Mapping[str, Floats]) -> dict[str, Floats]:
        """The output and every state after one step of one row, each of one sample's shape. Raises NoIntegers."""
        moment = self.made.step({self.entry.name: frame}, states)
        shapes = self.made.cut.sources
        given = {name: value.reshape(1, *shapes[name]) for name, value in moment.emissions.items()}
        held = {name: states[name][np.newaxis] for name in self._tail.states}
        found, others = self._tail.run({**given, self.entry.name: frame[np.newaxis]}, held)
        known = {self.spec.output: found[self.spec.output][0]}
        known |= {name: value[0] for name, value in others.items()}
        known |= {
            s.input: moment.states[s.input].reshape(s.shape) for s in self.spec.states if s.input in moment.states
        }
        return known


class _Maker:
    def __init__(self, model: onnx.ModelProto, spec: GraphSpec, golden: Mapping[str, Floats]) -> None:
        self.spec = spec
        self.golden = golden
        self.input = spec.inputs[0]
        self.windows = golden["free.input"].astype(np.float32)
        self.made, self.scales = in_integers(model, spec, self.windows)
        self.chip = Chip(self.made, spec)

    def make(self) -> dict[str, Floats]:
        made = {
            "loihi.format": np.asarray(FORMAT),
            "loihi.scale": np.asarray(self.scales.cells),
            "loihi.input": np.asarray(self.scales.input),
        }
        return made | self.free() | self.steps() | self.ties()

    def free(self) -> dict[str, Floats]:
        outputs = self.chip.windows(self.windows)
        readout = scores(outputs, self.spec.readout).astype(np.float32)
        terms = self.spec.timesteps if self.spec.readout.kind == "sum" else 1
        return {"loihi.free.readout": readout, "loihi.free.bound": _rounding(outputs * terms, len(outputs))}

    def steps(self) -> dict[str, Floats]:
        """The last recorded steps that stay in range."""
        most = max(2, min(ROWS, ROW_BUDGET // (4 * sum(int(np.prod(s.shape)) for s in self.spec.states) + 1)))
        kept_rows: list[int] = []
        outcomes: list[dict[str, Floats]] = []
        for row in reversed(range(len(self.golden["step.input"]))):
            if len(kept_rows) < most:
                states = {s.input: self._state(k, row) for k, s in enumerate(self.spec.states)}
                try:
                    outcomes.append(self.chip.step(self.golden["step.input"][row].astype(np.float32), states))
                    kept_rows.append(row)
                except NoIntegers:
                    continue
        if not kept_rows:
            raise NoIntegers("no recorded step stays in the range of integers")
        made: dict[str, Floats] = {"loihi.step.rows": np.asarray(kept_rows, np.int32)}
        output = np.stack([one[self.spec.output] for one in outcomes]).astype(np.float32)
        made |= {"loihi.step.output": output, "loihi.step.output_bound": _rounding(output)}
        grains = {state: grain / 2 for state, grain in self._grains().items()}
        for k, state in enumerate(self.spec.states):
            after = np.stack([one[state.input] for one in outcomes]).astype(np.float32)
            made[f"loihi.step.next.{k}"] = after
            bound = grains.get(state.input, _rounding(after))
            made[f"loihi.bound.{k}"] = np.asarray(bound, np.float32)
        return made

    def _state(self, k: int, row: int) -> Floats:
        return np.asarray(self.golden[f"step.state.{k}"][row].astype(np.float32))

    def _grains(self) -> dict[str, float]:
        """The least step of each spiking cell's state."""
        return {
            one.cell.states[name].input: float(grain.min())
            for one in self.made.populations
            for name, grain in one.grain().items()
        }

    # Ties

    def ties(self) -> dict[str, Floats]:
        """For each population with a state: some neurons at their threshold and one above, and in the other row the
        other way round; everything else is zero."""
        made: dict[str, Floats] = {}
        order = {state.input: k for k, state in enumerate(self.spec.states)}
        zero = {s.input: np.zeros(s.shape, np.float32) for s in self.spec.states}
        frame = np.zeros(self.input.shape, np.float32)
        potentials = self.made.step({self.input.name: frame}, zero).potentials
        random = np.random.default_rng(int(self.golden["seed"]))
        for one in self.made.populations:
            if one.cell.membrane is None:
                continue
            name, k = one.cell.membrane.input, order[one.cell.membrane.input]
            rest = potentials[one.cell.emission]
            above = random.integers(0, 2, one.size)
            states = [_aimed(one, rest, above), _aimed(one, rest, 1 - above)]
            fine = np.flatnonzero(np.isfinite(states[0]) & np.isfinite(states[1]))
            if not len(fine):
                continue
            place = np.sort(random.choice(fine, min(TIES, len(fine)), replace=False))
            after = []
            for state in states:
                given = zero[name].copy()
                given.reshape(-1)[place] = state[place]
                after.append(self.chip.step(frame, {**zero, name: given})[name].reshape(-1)[place])
            made |= {
                f"loihi.tie.{k}.place": place.astype(np.int32),
                f"loihi.tie.{k}.state": np.stack([state[place] for state in states]).astype(np.float32),
                f"loihi.tie.{k}.next": np.stack(after).astype(np.float32),
            }
        return made


def _aimed(one: Population, rest: NDArray[np.int64], above: NDArray[np.int64]) -> Floats:
    """The membrane state with which each potential is the threshold plus ``above``; NaN where there is none.

    ``rest``: the potential of a membrane that is zero.
    """
    lost = one.du if one.cell.row.op in SOFT else one.dv
    wanted = one.threshold + above - rest
    start = np.sign(wanted) * -(-np.abs(wanted) * UNITY // (UNITY - lost))
    state = (start / one.unit).astype(np.float32)
    again = np.round(state.astype(np.float64) * one.unit).astype(np.int64)
    fits = (kept(start, lost) == wanted) & (again == start) & (np.abs(start) < LIMIT)
    return np.where(fits, state, np.float32(np.nan))


def _rounding(values: Floats, steps: int = 1) -> Floats:
    """What float32 may leave open of sums of so many steps: far less than one spike makes."""
    return np.asarray((64 + steps) * EPS * max(float(np.abs(values).max()), TINY), np.float32)
