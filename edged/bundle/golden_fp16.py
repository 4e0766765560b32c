"""Golden data for engines whose sums are in float16: the arrays ``fp16.*`` beside those of float32.

*Steps*: single steps from states of their own, in which each neuron spikes once at most. So few spikes meet in a sum
that its bound is small, and yet most weights are used; in one step there are hardly any, and what a weight is shows to
its last bit. Potentials lie on either side of their thresholds, half of them as near as the bound allows. One more step
is at rest, without input or spike: there nothing but biases is added, which is exact.
What must come out, and how far an honest engine may be from it, is computed by ``fp16`` from the definition, never by
an engine. Where a model has thresholds without a state, more steps bring their currents near to them from either side.
Of the new states some places are looked at.

*Free runs*: the windows of the float32 data. A spike that rounding flips changes all that follows, so no bound is
proved here. Instead the same windows run with sums that are moved at random by as much as sums in float16 may be (three
to ten times what they are). The readouts of three quarters of the windows may be twice as far from ours as the farthest
of these. A label changes when two scores move by half of their margin: where one and a half times the farthest is less,
it must agree.

*Ties* are those of float32: all sums are zero there, and nothing else is in float16.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edged.bundle.arrays import compact
from edged.bundle.fp16 import Float16Graph, Shake, Tensors, body_doubts, certain
from edged.bundle.fp16_ops import NoFloat16
from edged.bundle.graph.cells import Cell
from edged.bundle.graph.readout import quantum, scores
from edged.bundle.graph.spec import GraphSpec, StateSpec

log = logging.getLogger(__name__)

Floats = NDArray[Any]

FORMAT = 1
MOST_ROWS, LEAST_ROWS = 16, 3  # steps, without the one at rest
ROW_BUDGET = 48 << 10  # bytes for their inputs and states: the golden data of a small model stays below 1 MB
PLACES = 128  # of a state that are looked at, in every step
STEPS = 127  # of a state on either side of zero: it is kept in 8 bits
MOST = 16.0  # thresholds; the largest state
NEAR = 2.0  # bounds from a threshold at least
BRINK_POOL, BRINK_ROWS = 128, 12  # steps among which those nearest to stateless thresholds are looked for
THINNED = (1, 2, 4, 8)  # of the neurons one in so many has its turn
SHARP = 0.05  # of its threshold, by which half of a layer's potentials may be in doubt
SHAKEN = 8  # runs with moved sums
ROUNDING = 64 * float(np.finfo(np.float32).eps)  # of readouts, as in float32


def fp16_golden(model: onnx.ModelProto, spec: GraphSpec, golden: Mapping[str, Floats]) -> dict[str, Floats]:
    """The arrays ``fp16.*`` for a step graph with its golden data; none, with a line in the log, where no bound can be
    given or the inputs are several."""
    try:
        return _Maker(model, spec, golden).make()
    except NoFloat16 as error:
        log.info("no golden data in float16", extra={"reason": str(error)})
        return {}


class _Maker:
    def __init__(self, model: onnx.ModelProto, spec: GraphSpec, golden: Mapping[str, Floats]) -> None:
        self.spec = spec
        self.graph = Float16Graph(model, spec)
        self.rng = np.random.default_rng(int(golden["seed"]))
        self.input = spec.inputs[0]
        self.windows = golden["free.input"].astype(np.float32)
        size = sum(int(np.prod(s.shape)) for s in spec.states) + self.windows.itemsize * int(np.prod(self.input.shape))
        self.rows = int(np.clip(ROW_BUDGET // max(1, size), LEAST_ROWS, MOST_ROWS))
        self.aimed = {c.membrane.input: c for c in self.graph.cells if c.row.spiking and c.membrane is not None}
        self.units: dict[str, float] = {}

    def make(self) -> dict[str, Floats]:
        return {"fp16.format": np.asarray(FORMAT)} | self.steps() | self.free()

    # Steps

    def steps(self) -> dict[str, Floats]:
        given = self.turns()
        for name, value in self.brinks().items():
            given[name] = np.concatenate([given[name], value])
        tensors, doubts = self.graph.doubts(given)
        shown = given[self.input.name]
        made = {
            "fp16.step.input": compact(shown),
            "fp16.step.unit": np.asarray([self.units[state.input] for state in self.spec.states], np.float32),
            "fp16.step.output": tensors[self.spec.output].astype(np.float32),
            "fp16.step.output_bound": _bound(tensors[self.spec.output], doubts[self.spec.output]),
        }
        for k, state in enumerate(self.spec.states):
            unit = self.units[state.input]
            after, doubt = (found[state.output].reshape(len(shown), -1) for found in (tensors, doubts))
            if after.shape[1] > PLACES:
                place = np.sort(self.rng.choice(after.shape[1], PLACES, replace=False))
                after, doubt = after[:, place], doubt[:, place]
                made[f"fp16.step.place.{k}"] = place.astype(np.int32)
            made |= {
                f"fp16.step.state.{k}": np.round(given[state.input] / unit).astype(np.int8),
                f"fp16.step.next.{k}": after.astype(np.float32),
                f"fp16.step.next_bound.{k}": _bound(after, doubt),
            }
        return made

    def turns(self) -> Tensors:
        """Steps with as many spikes as leave the potentials known well enough."""
        for thin in THINNED:
            given = self.thinned(thin)
            if self.is_sharp(self.graph.doubts(given)[1]):
                break
        return given

    def is_sharp(self, doubts: Tensors) -> bool:
        """Whether no spike is in doubt, and the potentials of each layer are known well enough."""
        spiking = [cell for cell in self.graph.cells if cell.row.spiking]
        known = [np.median(doubts[c.membrane.output] / _height(c)) for c in spiking if c.membrane is not None]
        return max(known, default=0.0) <= SHARP and not any(doubts[cell.emission].any() for cell in spiking)

    def thinned(self, thin: int) -> Tensors:
        """Steps in which one in ``thin`` of all neurons, and of the input's numbers, has its turn; and one at rest."""
        rows, shape = self.rows, self.input.shape
        self.units = {s.input: self.unit(s) for s in self.spec.states if s.input not in self.aimed}
        turn = {name: self.turn(size, thin) for name, size in self.shapes().items()}
        for cell in self.graph.cells:  # a counter owes a spike when its neuron has its turn
            turn |= {cell.states[name].input: turn[cell.states[cell.row.membrane].input] for name in cell.row.counters}
        shown = np.ones((rows, *shape), np.float32) if self.input.sequence else self.windows[self.picked(rows)]
        given: Tensors = {self.input.name: np.concatenate([shown * turn[self.input.name], np.zeros((1, *shape))])}
        for state in self.spec.states:
            if state.input not in self.aimed:
                given[state.input] = self.plain(state, np.concatenate([turn[state.input], np.zeros((1, *state.shape))]))
        return self.placed(given, turn)

    def placed(self, given: Tensors, turn: Mapping[str, NDArray[np.bool_]]) -> Tensors:
        """The same with the membranes of spiking cells, aimed to spike in their ``turn``."""

        def aim(cell: Cell, tensors: Tensors, doubt: Floats) -> Floats:
            assert cell.membrane is not None
            name = cell.membrane.input
            rows = len(given[self.input.name])
            wants = np.zeros((rows, *cell.shape), dtype=bool)
            wants[: len(turn.get(name, ()))] = turn.get(name, False)
            given[name] = self.aim(cell, tensors, doubt, wants)
            return given[name]

        self.graph.doubts(given, aim)
        return {name: value.astype(np.float32) for name, value in given.items()}

    def aim(self, cell: Cell, tensors: Tensors, doubt: Floats, wants: NDArray[np.bool_]) -> Floats:
        """Membranes, whole multiples of the unit, from which a neuron spikes where it is wanted and nowhere else."""
        assert cell.membrane is not None
        name, decay = cell.membrane.input, np.maximum(cell.decay, 0.05)
        still = {**tensors, name: np.zeros(wants.shape)}
        drive = np.broadcast_to(cell.values(still, np.float64)[cell.row.potential], wants.shape)
        reach = (np.abs(drive).max() + 2 * _highest(cell)) / decay.min()
        far = {**still, name: np.full(wants.shape, reach)}
        room = NEAR * body_doubts(cell, far, doubt)[cell.row.potential]
        if name not in self.units:
            self.units[name] = _unit(min(reach + 2 * room.max(), MOST * _highest(cell)))
        unit = self.units[name]
        threshold, outward = self.thresholds(cell, wants)
        near = self.rng.random(wants.shape) < 0.5
        distance = np.where(near, 0.0, self.rng.uniform(0.1, 0.5, wants.shape)) * _height(cell) + room
        target = threshold + outward * distance
        if cell.row.axis == "levels":
            target, outward = _beyond(cell, target, outward, room, unit)
        state = (target - drive) / decay / unit
        return np.asarray(unit * np.clip(np.where(outward > 0, np.ceil(state), np.floor(state)), -STEPS, STEPS))

    def thresholds(self, cell: Cell, wants: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Which threshold a potential is to be next to, and on which side: 1 above, -1 below."""
        side = np.where(wants, 1.0, -1.0)
        if cell.row.axis == "levels":  # either sign; whoever is not to spike stays within the smallest
            fire = np.broadcast_to(
                np.sort(cell.parameters["fire"], axis=-1), (*wants.shape, cell.parameters["fire"].shape[-1])
            )
            level = np.where(wants, self.rng.integers(0, fire.shape[-1], wants.shape), 0)
            sign = np.where(self.rng.random(wants.shape) < 0.5, -1.0, 1.0)
            return sign * np.take_along_axis(fire, level[..., np.newaxis], axis=-1)[..., 0], sign * side
        threshold = np.broadcast_to(cell.parameters["v_th"].astype(np.float64), wants.shape)
        if cell.row.op == "SignedIF":  # half of those that answer take a spike back, where they owe one
            back = wants & (self.rng.random(wants.shape) < 0.5)
            return np.where(back, 0.0, threshold), np.where(back, -1.0, side)
        return threshold, side

    def plain(self, state: StateSpec, turn: Floats) -> Floats:
        """States that are not aimed: spikes in their turn, counters, potentials of what does not spike."""
        if state.neuron == "Clock":
            ages = np.arange(len(turn)) % self.spec.timesteps
            return ages.reshape(-1, *(1,) * len(state.shape)) + np.zeros(turn.shape)
        if self.units[state.input] == 1:
            return turn.astype(np.float64)
        whole = self.rng.integers(-STEPS, STEPS + 1, turn.shape)
        return np.asarray(whole * self.units[state.input])

    def unit(self, state: StateSpec) -> float:
        """The least step of a state that is not aimed: 1 where it counts or remembers."""
        for cell in self.graph.cells:
            for name, held in cell.states.items():
                if held.input == state.input and cell.row.membrane and name not in cell.row.counters:
                    return _unit(1.0)
        return 1.0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {self.input.name: self.input.shape} | {state.input: state.shape for state in self.spec.states}

    def turn(self, shape: tuple[int, ...], thin: int) -> NDArray[np.bool_]:
        """(rows, *shape): each place is true in one row, or in none; the last row is far emptier than the others."""
        full = self.rows - 1
        when = self.rng.integers(0, full * thin, shape)
        turn = np.asarray(when == np.arange(self.rows).reshape(-1, *(1,) * len(shape)))
        turn[full] = self.rng.random(shape) < 1 / (full * thin * THINNED[-1])
        return turn

    def picked(self, rows: int) -> NDArray[np.int64]:
        return self.rng.integers(0, len(self.windows), rows)

    # Thresholds without a state

    def brinks(self) -> Tensors:
        """Steps that bring the currents of stateless thresholds near to them, from either side, and leave no doubt."""
        found = [cell for cell in self.graph.cells if cell.row.spiking and cell.membrane is None]
        if not found:
            return {}
        rows, size = BRINK_POOL, self.shapes()
        sparse = {name: self.rng.random((rows, *shape)) < 1 / self.rows for name, shape in size.items()}
        shown = np.ones(()) if self.input.sequence else self.windows[self.picked(rows)]
        given: Tensors = {self.input.name: shown * sparse[self.input.name]}
        for state in self.spec.states:
            if state.input not in self.aimed:
                given[state.input] = self.plain(state, sparse[state.input] & (np.arange(rows) % 2 > 0).reshape(
                    -1, *(1,) * len(state.shape)))  # fmt: skip
        given[self.input.name][::2] = 0
        given = self.placed(given, {})
        tensors, doubts = self.graph.doubts(given)
        votes = np.zeros(rows)
        for cell in found:
            away = cell.distances(tensors)[0].reshape(rows, -1)
            sure = certain(cell, tensors, NEAR * doubts[cell.current]).reshape(rows, -1)
            for side in (1, -1):
                near = np.where(sure & (side * away > 0), np.abs(away), np.inf)
                best, elements = near.argmin(axis=0), np.arange(near.shape[1])
                np.add.at(votes, best[np.isfinite(near[best, elements])], 1)
        kept = np.argsort(-votes, kind="stable")[: min(BRINK_ROWS, np.count_nonzero(votes))]
        return {name: value[kept] for name, value in given.items()}

    # Free runs

    def free(self) -> dict[str, Floats]:
        count = len(self.windows)
        expected = self.readouts(lambda deviation: np.zeros(deviation.shape))
        moved = [self.readouts(lambda deviation: self.rng.standard_normal(deviation.shape) * deviation)
                 for _ in range(SHAKEN)]  # fmt: skip
        deviation = np.abs(np.stack(moved) - expected).max(axis=(0, 2))
        most, top = float(deviation.max()), np.sort(expected, axis=1)
        loose = max(4 * most, 0.15 * float(np.ptp(expected)), 1.5 * quantum(expected, self.spec.readout))
        margin = top[:, -1] - top[:, -2] if self.spec.classes > 1 else np.zeros(count)
        rounding = ROUNDING * float(np.abs(expected).max())
        return {
            "fp16.free.readout": expected.astype(np.float32),
            "fp16.free.tight": (2 * deviation + rounding).astype(np.float32),
            "fp16.free.loose": np.asarray(loose + rounding, np.float32),
            "fp16.free.margin": margin.astype(np.float32),
            "fp16.free.margin_floor": (3 * deviation + rounding).astype(np.float32),
        }

    def readouts(self, shake: Shake) -> Floats:
        """Readouts of all windows with sums that are moved."""
        states: Tensors = {s.input: np.zeros((len(self.windows), *s.shape)) for s in self.spec.states}
        outputs = []
        for t in range(self.spec.timesteps):
            shown = self.windows[:, t] if self.input.sequence else self.windows
            found = self.graph.values({self.input.name: shown, **states}, shake)
            states = {s.input: found[s.output].astype(np.float32) for s in self.spec.states}
            outputs.append(found[self.spec.output])
        return np.asarray(scores(np.stack(outputs), self.spec.readout), np.float64)


def _unit(reach: float) -> float:
    return float(np.float32(reach / STEPS))


def _height(cell: Cell) -> Floats:
    """The thresholds of a cell; of several levels the lowest."""
    if cell.row.axis == "levels":
        return np.asarray(cell.parameters["fire"].min(axis=-1), np.float64)
    return np.asarray(cell.parameters["v_th"], np.float64)


def _beyond(cell: Cell, target: Floats, outward: Floats, room: Floats, unit: float) -> tuple[Floats, Floats]:
    """The same for one of several levels; past the highest where there is no such room between two, or for a step."""
    fire = np.broadcast_to(cell.parameters["fire"], (*target.shape, cell.parameters["fire"].shape[-1]))
    cramped = np.zeros(target.shape, dtype=bool)
    for end in (target, target + outward * unit * cell.decay):
        cramped |= np.abs(np.abs(end)[..., np.newaxis] - fire).min(axis=-1) < room * (1 - 1e-6)
    sign = np.where(target < 0, -1.0, 1.0)
    return np.where(cramped, sign * (fire.max(axis=-1) + room), target), np.where(cramped, sign, outward)


def _highest(cell: Cell) -> float:
    return float(cell.parameters["fire" if cell.row.axis == "levels" else "v_th"].max())


def _bound(value: Floats, doubt: Floats) -> Floats:
    """Of a number that is kept in float32."""
    rounding = 2 * float(np.finfo(np.float32).eps) * np.abs(value)
    return np.asarray(np.nextafter((doubt + rounding).astype(np.float32), np.float32(np.inf)))
