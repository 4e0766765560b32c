"""Makes golden data: three kinds of evidence with which any engine can prove that it runs a model correctly.

These are for float32; what engines in integers and in float16 are held to is made by ``golden_loihi`` and
``golden_fp16``, and stands beside them.

*Recorded steps*: single steps from recorded states. Every expected number carries the bound of its rounding error,
``c·eps·(|decay·v| + Σ|w||x| + |bias| + θ + v_sub)``; states are nudged so that no potential lies in that band around
its threshold, hence every spike is certain. *Free runs*: whole windows, with a tight bound from runs with perturbed
weights, and a loose one for the few samples in which another rounding flips a spike. *Ties*: see ``ties``.

Inputs are seeded synthetic data. Uses stock ONNX Runtime; the judge is ``selftest``, in pure NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edged.bundle.arrays import compact
from edged.bundle.golden_fp16 import fp16_golden
from edged.bundle.golden_loihi import loihi_golden
from edged.bundle.graph.cells import Cell, cells, magnitudes, tapped
from edged.bundle.graph.plans import window_plan
from edged.bundle.graph.readout import quantum
from edged.bundle.graph.sensitivity import VALUE
from edged.bundle.graph.spec import READOUT, GraphSpec
from edged.bundle.graph.stock import Stock
from edged.bundle.ties import make_ties
from edged.errors import BundleError

Floats = NDArray[Any]

FORMAT = 1
EPS = float(np.finfo(np.float32).eps)
MIN_C = 16.0  # four times what sums of any sign showed on two summation orders
MAX_C = 1024.0  # beyond, the bound would hide a dropped bias of 1e-4
CLEAR = 4.0  # recorded potentials keep this many bounds away from their threshold
MAX_ROWS = 8  # recorded steps
FREE_ROWS = 16  # free runs that are kept, the steadiest of POOL_ROWS
POOL_ROWS = 64
PERTURBATIONS = 4
ROW_BUDGET = 384 << 10  # bytes for recorded steps and for free inputs: a small model's golden data stays below 1 MB
BRINK_POOL = 256  # rows among which those nearest to a stateless threshold are looked for
BRINK_ROWS = 32


def make_golden(
    model: onnx.ModelProto, spec: GraphSpec, seed: int, samples: Floats | None = None, most_steps: int | None = None
) -> dict[str, Floats]:
    """Golden data of a checked step graph. ``samples`` (N, *shape) or (N, T, *shape) replace the synthetic inputs.

    Of more than ``most_steps`` recorded steps the last are kept: half of them are driven to spike.

    The same arguments give the same data on one machine. Raises BundleError when no meaningful test can be made: the
    network does not answer to the inputs, or rounding errors drown it.
    """
    golden = _Maker(model, spec, seed, samples).make(most_steps)
    return golden | loihi_golden(model, spec, golden) | fp16_golden(model, spec, golden)


class _Maker:
    def __init__(self, model: onnx.ModelProto, spec: GraphSpec, seed: int, samples: Floats | None) -> None:
        self.model = model
        self.spec = spec
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.cells = cells(model, spec)
        with_taps = tapped(model, self.cells)
        self.stock, self.plain = Stock(with_taps), Stock(with_taps, optimized=False)
        of_magnitudes = magnitudes(model, spec, self.cells)
        self.magnitudes = Stock(of_magnitudes)
        self.values_asked = [entry.name for entry in of_magnitudes.graph.input if entry.name.startswith(VALUE)]
        self.input = spec.inputs[0]
        self.samples = self.synthetic() if samples is None else np.asarray(samples, dtype=np.float32)

    def make(self, most_steps: int | None) -> dict[str, Floats]:
        golden = {"format": np.asarray(FORMAT), "seed": np.asarray(self.seed)} | self.free()
        golden |= {name: one[-(most_steps or len(one)) :] if one.ndim else one for name, one in self.steps().items()}
        return golden | make_ties(self.model, self.spec, self.cells, self.seen)

    def synthetic(self) -> Floats:
        """Noise images of different brightness, or spike trains of different rate: (N, *shape) or (N, T, *shape)."""
        shape = (self.spec.timesteps, *self.input.shape) if self.input.sequence else self.input.shape
        level = self.rng.uniform(0.2, 1.0, (POOL_ROWS, *(1 for _ in shape)))
        noise = self.rng.random((POOL_ROWS, *shape))
        values = noise < 0.5 * level if self.input.sequence else noise * level
        return values.astype(np.float32)

    def rows(self, most: int, size: int) -> int:
        return max(2, min(most, ROW_BUDGET // (4 * max(1, size))))

    # Free runs

    def window(self, session: Stock, samples: Floats) -> Floats:
        """Readouts (N, classes) of whole windows, a few samples at a time."""
        parts = [samples[k : k + 8] for k in range(0, len(samples), 8)]
        feeds = (np.ascontiguousarray(np.swapaxes(p, 0, 1)) if self.input.sequence else p for p in parts)
        return np.concatenate([session.run({self.input.name: feed})[READOUT] for feed in feeds])

    def free(self) -> dict[str, Floats]:
        plan = window_plan(self.model, self.spec, "unrolled")
        expected = self.window(Stock(plan), self.samples)
        spread = float(expected.max() - expected.min())
        if not np.isfinite(expected).all() or spread == 0 or np.ptp(expected, axis=0).max() == 0:
            raise BundleError(
                "the model answers the same to every golden input", "give make_golden samples that make it spike"
            )
        others = [Stock(plan, optimized=False), Stock(window_plan(self.model, self.spec, "scan"))]
        others += [Stock(_perturbed(plan, self.rng)) for _ in range(PERTURBATIONS)]
        deviation = np.max([np.abs(self.window(o, self.samples) - expected).max(axis=1) for o in others], axis=0)
        kept = np.argsort(deviation, kind="stable")[: self.rows(FREE_ROWS, self.samples[0].size)]
        top = np.sort(expected, axis=1)
        margin = top[:, -1] - top[:, -2] if self.spec.classes > 1 else np.zeros(len(top), dtype=np.float32)
        loose = max(4 * float(deviation.max()), 0.15 * spread, 1.5 * quantum(expected, self.spec.readout))
        return {
            "free.input": compact(self.samples[kept]),
            "free.readout": expected[kept],
            "free.tight": (8 * deviation[kept] + 64 * EPS * np.abs(expected).max()).astype(np.float32),
            "free.loose": np.asarray(loose, dtype=np.float32),
            "free.margin": margin[kept].astype(np.float32),
            "free.margin_floor": np.asarray(4 * float(deviation.max()) + 64 * EPS * spread, dtype=np.float32),
        }

    # Recorded steps

    def steps(self) -> dict[str, Floats]:
        rows = self.rows(MAX_ROWS, 2 * sum(int(np.prod(state.shape)) for state in self.spec.states))
        frames, states = self.scenes(4 * rows)
        feeds = {self.input.name: frames, **states}
        feeds = self.nudged(feeds, MIN_C)
        c = self.calibrated(feeds)
        feeds = self.nudged(feeds, c)
        certain = self.certain(feeds, c)
        if certain.sum() < 2:
            raise BundleError(
                "no golden step keeps its potentials away from the thresholds",
                "the model's rounding errors are too large",
            )
        # half natural, half random states: natural ones may leave deep layers silent
        order = np.argsort(~certain, kind="stable")
        halves = [order[order < 2 * rows][: rows - rows // 2], order[order >= 2 * rows][: rows // 2]]
        kept = np.concatenate([half[certain[half]] for half in halves])
        feeds = {name: value[kept] for name, value in feeds.items()}
        for name, value in self.brinks(c).items():
            feeds[name] = np.concatenate([feeds[name], value])
        values, bounds = self.stock.run(feeds), self.bounds(feeds, c)
        golden = {"step.c": np.asarray(c), "step.input": compact(feeds[self.input.name])}
        golden |= {"step.output": values[self.spec.output], "step.output_bound": bounds[self.spec.output]}
        for k, state in enumerate(self.spec.states):
            golden[f"step.state.{k}"] = compact(feeds[state.input])
            golden[f"step.next.{k}"] = compact(values[state.output])
            golden[f"step.next_bound.{k}"] = bounds[state.output]
        return golden

    def brinks(self, c: float) -> dict[str, Floats]:
        """Certain rows that bring the current of each stateless threshold closest to it, from either side.

        Such a current shows in spikes only: a wrong weight before it is seen by who is nearest, or by nobody.
        """
        found = [cell for cell in self.cells if cell.row.spiking and cell.membrane is None]
        if not found:
            return {}
        frames, states = self.scenes(BRINK_POOL)
        feeds = self.nudged({self.input.name: frames, **states}, c)
        certain, tensors = self.certain(feeds, c), self.seen(feeds)
        votes = np.zeros(BRINK_POOL)
        for cell in found:
            away = cell.distances(tensors)[0].reshape(BRINK_POOL, -1)
            for side in (1, -1):
                near = np.where(certain[:, np.newaxis] & (side * away > 0), np.abs(away), np.inf)
                best, elements = near.argmin(axis=0), np.arange(near.shape[1])
                np.add.at(votes, best[np.isfinite(near[best, elements])], 1)
        size = 2 * sum(int(np.prod(state.shape)) for state in self.spec.states)
        kept = np.argsort(-votes, kind="stable")[: min(self.rows(BRINK_ROWS, size), np.count_nonzero(votes))]
        return {name: value[kept] for name, value in feeds.items()}

    def scenes(self, count: int) -> tuple[Floats, dict[str, Floats]]:
        """(frames, states): the first half from free runs at random steps, the second driven (see ``driven``)."""
        picked = self.samples[self.rng.integers(0, len(self.samples), count)]
        when = self.rng.integers(0, self.spec.timesteps, count)
        states = {s.input: np.zeros((count, *s.shape), dtype=np.float32) for s in self.spec.states}
        taken = {name: value.copy() for name, value in states.items()}
        at = picked[np.arange(count), when] if self.input.sequence else picked.copy()
        for t in range(int(when.max())):
            feed = np.ascontiguousarray(picked[:, t]) if self.input.sequence else picked
            values = self.stock.run({self.input.name: feed, **states})
            states = {s.input: values[s.output] for s in self.spec.states}
            for name, value in states.items():
                taken[name][when == t + 1] = value[when == t + 1]
        half = count // 2
        if self.input.sequence:
            at[half:] = self.coin((count - half, *self.input.shape), 1)
        driven = self.driven(at[half:], count - half)
        for name, value in driven.items():
            taken[name][half:] = value
        return np.ascontiguousarray(at), taken

    def driven(self, frames: Floats, count: int) -> dict[str, Floats]:
        """Random states with which about half of all neurons spike: free runs may leave deep layers silent.

        Rows come in groups of four in which two neighbouring layers go through all combinations, so that every weight
        is once in use into a neuron that stays silent: after a hard reset nothing of it would be seen.
        """
        states = {s.input: self.coin((count, *s.shape), 1).astype(np.float32) for s in self.spec.states}
        wanted: dict[str, NDArray[np.bool_]] = {}
        for depth, cell in enumerate(self.cells):
            wants = wanted[cell.emission] = self.coin((count, *cell.shape), depth % 2)
            if cell.membrane is not None:
                spread = self.rng.uniform(-0.5, 0.9, wants.shape)
                states[cell.membrane.input] = (_threshold(cell) * (spread + wants)).astype(np.float32)
        for cell in self.cells:  # in order: a current depends on the neurons before it
            if cell.row.spiking and cell.membrane is not None:
                tensors = self.seen({self.input.name: frames, **states})
                above, wants = cell.distances(tensors)[0], wanted[cell.emission]
                lift = np.where(wants, 0.1, -0.1) * _threshold(cell) - above
                moved = states[cell.membrane.input] + np.where(
                    wants != (above >= 0), lift / np.maximum(cell.decay, 0.05), 0
                )
                states[cell.membrane.input] = moved.astype(np.float32)
        return states

    def seen(self, feeds: Mapping[str, Floats]) -> dict[str, Floats]:
        """Inputs, states, and everything that the tapped graph computes, by tensor name."""
        return {**feeds, **self.stock.run(feeds)}

    def coin(self, shape: tuple[int, ...], pattern: int) -> NDArray[np.bool_]:
        """Random booleans in groups of four rows: x, not x, x, not x (pattern 0) or x, x, not x, not x (pattern 1)."""
        flips = np.array([[False, True, False, True], [False, False, True, True]][pattern])
        groups = -(-shape[0] // 4)
        tossed = self.rng.random((groups, 1, *shape[1:])) < 0.5
        flipped = tossed ^ flips.reshape(1, 4, *(1 for _ in shape[1:]))
        return np.asarray(flipped.reshape(4 * groups, *shape[1:])[: shape[0]])

    def bounds(self, feeds: Mapping[str, Floats], c: float) -> dict[str, Floats]:
        """Rounding bounds by output, per sample and channel: the largest over the other axes."""
        scale = self.scales(feeds)
        return {
            name: (c * EPS * value.max(axis=tuple(range(2, value.ndim)), keepdims=True)).astype(np.float32)
            for name, value in scale.items()
        }

    def scales(self, feeds: Mapping[str, Floats]) -> dict[str, Floats]:
        """What rounding errors are relative to, elementwise, by the name of the output (or of a cell's emission)."""
        tensors = self.seen(feeds)
        given = {self.input.name: np.abs(feeds[self.input.name])}
        given |= {s.input: np.abs(feeds[s.input]) for s in self.spec.states if not s.neuron}
        given |= {cell.emission: np.abs(tensors[cell.emission]) for cell in self.cells}
        given |= {name: tensors[name.removeprefix(VALUE)] for name in self.values_asked}
        for _ in self.cells:
            scale = self._scales(tensors, self.magnitudes.run(given))
            # a spike is exact, but what a RunningSum or an LI hands on carries the errors of its current
            passed = {c.emission: scale[c.emission].astype(np.float32) for c in self.cells if not c.row.spiking}
            if all(np.array_equal(given[name], value) for name, value in passed.items()):
                break
            given |= passed
        return scale

    def _scales(self, tensors: Mapping[str, Floats], sums: Mapping[str, Floats]) -> dict[str, Floats]:
        """The same, given the magnitudes of what every cell's current was computed from."""
        scale = {s.output: sums[f"magnitude/{s.output}"] for s in self.spec.states if not s.neuron}
        scale[self.spec.output] = sums[f"magnitude/{self.spec.output}"]
        for cell in self.cells:
            found = cell.scales(tensors, sums[f"magnitude/{cell.current}"] if cell.current else None)
            for name, next_name in cell.row.states:
                state = cell.states[name]
                scale[state.output] = np.broadcast_to(found[next_name], (len(tensors[state.input]), *state.shape))
            potential = cell.membrane.output if cell.membrane else ""
            scale[cell.emission] = scale[potential] if potential else found[cell.row.potential]
            if cell.emission == self._emitted_by_output():
                scale[self.spec.output] = scale[cell.emission]
        return scale

    def _emitted_by_output(self) -> str:
        """The tensor that the graph's output copies, through Identity only."""
        source = {node.output[0]: node.input[0] for node in self.model.graph.node if node.op_type == "Identity"}
        name = self.spec.output
        while name in source:
            name = source[name]
        return name

    def calibrated(self, feeds: Mapping[str, Floats]) -> float:
        """c: at least MIN_C, and four times the largest ratio of error to bound between two summation orders."""
        first, second, scale = self.seen(feeds), {**feeds, **self.plain.run(feeds)}, self.scales(feeds)
        worst = 0.0
        for cell in self.cells:
            u = [cell.values(tensors)[cell.row.potential] for tensors in (first, second)]
            same = first[cell.emission] == second[cell.emission] if cell.row.spiking else np.ones_like(u[0], dtype=bool)
            ratio = np.abs(u[0] - u[1]) / (EPS * np.maximum(scale[cell.emission], np.finfo(np.float32).tiny))
            if not same.all():
                break  # a flipped spike changes what follows; rounding no longer explains it
            worst = max(worst, float(ratio.max()))
        c = max(MIN_C, 4 * worst)
        if c > MAX_C:
            raise BundleError(
                f"the model's rounding errors are {worst:.0f} times eps", "golden data would prove nothing"
            )
        return c

    def nudged(self, feeds: Mapping[str, Floats], c: float) -> dict[str, Floats]:
        """The same, with states moved so that potentials leave the band around their threshold; no spike changes."""
        tensors, scale, moved = self.seen(feeds), self.scales(feeds), dict(feeds)
        for cell in self.cells:
            if not cell.row.spiking or cell.membrane is None:
                continue
            v, band = feeds[cell.membrane.input], c * EPS * scale[cell.emission]
            for away in cell.distances(tensors):
                outward = np.where(away >= 0, 1, -1) * _direction(cell, tensors)
                with np.errstate(divide="ignore", invalid="ignore"):
                    shift = outward * 4 * CLEAR * band / cell.decay
                v = np.where((np.abs(away) <= 2 * CLEAR * band) & np.isfinite(shift), v + shift, v)
            moved[cell.membrane.input] = v.astype(np.float32)
        return moved

    def certain(self, feeds: Mapping[str, Floats], c: float) -> NDArray[np.bool_]:
        """Which rows keep every potential clear of its thresholds, so that every spike is certain."""
        tensors, scale = self.seen(feeds), self.scales(feeds)
        clear = np.ones(len(feeds[self.input.name]), dtype=bool)
        for cell in self.cells:
            if cell.row.spiking:
                for away in cell.distances(tensors):
                    fine = np.abs(away) > CLEAR * c * EPS * scale[cell.emission]
                    clear &= fine.reshape(len(fine), -1).all(axis=1)
        return clear


def _threshold(cell: Cell) -> Floats:
    """The highest threshold of a cell, 1 where it has none: the size of a lively potential."""
    if cell.row.axis == "levels":
        return np.asarray(cell.parameters["fire"].max(axis=-1))
    return cell.parameters.get("v_th", np.ones(1, dtype=np.float32))


def _direction(cell: Cell, tensors: Mapping[str, Floats]) -> Floats | int:
    """Where the potential has to go for what is compared to grow: away from zero where its size is compared."""
    if cell.row.axis != "levels":
        return 1
    return np.asarray(np.where(cell.values(tensors)[cell.row.potential] < 0, -1, 1))


def _perturbed(plan: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """The plan with every weight off by up to two units of rounding."""
    copy = onnx.ModelProto()
    copy.CopyFrom(plan)
    for tensor in copy.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.ndim >= 2 and value.size > 1:
            noise = rng.uniform(-2 * EPS, 2 * EPS, value.shape)
            tensor.CopyFrom(numpy_helper.from_array((value * (1 + noise)).astype(np.float32), tensor.name))
    return copy
