"""The judge of golden data: drives any engine through the port and says whether it runs the model correctly.

Pure NumPy, no engine of its own. Labels alone miss most defects (a dropped bias moves spike counts by less than
1 %), so three kinds of evidence are asked for: recorded steps within their rounding bounds, ties, and free runs,
made twice in one session, the second time in reversed order, so that a state kept from the first run shows.

An engine that computes in Loihi's integers (``INTEGERS``) is held to golden data of its own, where nothing is uncertain
but the last bits of a float32: each potential is within half a unit, each spike is the same. So is one whose sums are
in float16 (``FLOAT16``), where each number has a bound; in bundles that have no such data, those of float32 decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.bundle.golden_form import has_float16, has_integers, load_golden
from edged.bundle.loaded import Bundle
from edged.errors import BundleError, EngineError, EngineLost
from edged.ports import Engine

Floats = NDArray[Any]

INTEGERS = ("lava-fixed", "lava-loihi2")  # engines that compute in Loihi's integers
FLOAT16 = ("tensorrt-fp16",)  # engines whose sums are in float16
TIGHT_SHARE = 0.75  # of free runs that must agree to rounding; in the others another rounding may have flipped a spike


@dataclass(frozen=True, slots=True)
class Check:
    """One kind of evidence and how it came out."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class SelftestReport:
    """Whether an engine proved a model, and every check behind it."""

    bundle: str  # name@version
    digest: str
    engine: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """All checks passed."""
        return all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """The failed checks in one line; empty when all passed."""
        return "; ".join(f"{check.name}: {check.detail}" for check in self.checks if not check.passed)


async def prove(engine: Engine, bundle: Bundle, *, full: bool = True) -> SelftestReport:
    """Run the golden data of a bundle on an engine that has it loaded.

    ``full=False`` leaves out the ties and the second passes: for a worker that comes back with a plan that was proved
    before. An engine's errors fail the check that they happen in. Raises BundleError when the golden data is unusable.
    """
    golden = load_golden(bundle)
    if engine.name in INTEGERS:
        if not has_integers(bundle, golden):
            who = f"{engine.name} computes in integers"
            hint = "convert the model again with this release, or name another engine"
            raise BundleError(f"{who}, and {bundle.name}@{bundle.version} has no golden data in integers", hint)
        exam: _Exam = _IntegerExam(engine, bundle, golden, full)
    elif engine.name in FLOAT16 and has_float16(bundle, golden):
        exam = _Float16Exam(engine, bundle, golden, full)
    else:
        exam = _Exam(engine, bundle, golden, full)
    checks = []
    for name, check in (("steps", exam.steps), ("ties", exam.ties), ("free runs", exam.free)):
        if full or name != "ties":
            try:
                checks.append(await check(name))
            except EngineLost:
                raise  # a worker that was killed says nothing about the model: the caller asks again
            except EngineError as error:
                checks.append(Check(name, False, f"the engine failed: {error}"))
    if engine.name in FLOAT16 and not isinstance(exam, _Float16Exam) and not all(check.passed for check in checks):
        checks.append(Check("numbers", False, "the bundle has no golden data in float16, so those of float32 decided"))
    return SelftestReport(f"{bundle.name}@{bundle.version}", bundle.digest, engine.name, tuple(checks))


_Wanted = dict[str, tuple[Floats, Floats]]  # what must come out, and its bound


class _Exam:
    def __init__(self, engine: Engine, bundle: Bundle, golden: Mapping[str, Floats], full: bool) -> None:
        self.engine = engine
        self.bundle = bundle
        self.golden = golden
        self.full = full
        self.input = bundle.inputs[0]
        self.states = [state.name for state in bundle.states]
        self.output = bundle.manifest.output.name

    async def steps(self, name: str) -> Check:
        """Recorded steps: every output and new state within its rounding bound, twice."""
        golden = self.golden
        frames = _floats(golden["step.input"])
        given = {state: _floats(golden[f"step.state.{k}"]) for k, state in enumerate(self.states)}
        wanted: _Wanted = {self.output: (_floats(golden["step.output"]), golden["step.output_bound"])}
        for k, state in enumerate(self.states):
            wanted[state] = (_floats(golden[f"step.next.{k}"]), golden[f"step.next_bound.{k}"])
        return await self.recorded(name, frames, given, wanted)

    async def recorded(
        self,
        name: str,
        frames: Floats,
        given: Mapping[str, Floats],
        wanted: _Wanted,
        places: Mapping[str, Floats] | None = None,
    ) -> Check:
        """Steps from given states, and what must come out within which bounds: by row, or one for all.

        ``places``: of which elements, counted flat in a row; of all where none are named.
        """
        orders = [np.arange(len(frames)), np.arange(len(frames))[::-1]]
        worst, where = 0.0, ""
        for order in orders if self.full else orders[:1]:
            found = await self.step(frames[order], {state: value[order] for state, value in given.items()})
            found |= {key: found[key].reshape(len(frames), -1)[:, place] for key, place in (places or {}).items()}
            for key, (expected, bound) in wanted.items():
                excess = _excess(found[key], expected[order], (bound[order] if bound.ndim else bound))
                if excess > worst:
                    worst, where = excess, key
        detail = f"{len(frames)} recorded steps, largest error {worst:.2g} of its bound"
        return Check(name, worst <= 1, detail + (f" in {where!r}" if worst > 1 else ""))

    async def ties(self, name: str) -> Check:
        """Just below, at and above each threshold: the new states say who spiked."""
        silent, wrong, met, failed = self.golden["tie.silent"], 0, 0, []
        for k, state in enumerate(self.states):
            if f"tie.{k}.state" not in self.golden:
                continue
            at = _floats(self.golden[f"tie.{k}.state"])
            hit = self.golden[f"tie.{k}.hit"]
            others = self.golden.get(f"tie.{k}.others", np.tile(silent, (len(at), 1)))
            given = {
                other.name: np.tile(_floats(others[:, j]).reshape(-1, *(1,) * len(other.shape)), (1, *other.shape))
                for j, other in enumerate(self.bundle.states)
            }
            found = await self.step(np.zeros((len(at), *self.input.shape), dtype=np.float32), given | {state: at})
            error = np.abs(found[state] - self.golden[f"tie.{k}.next"])
            bad = int((~(error <= self.golden[f"tie.{k}.bound"])).sum())
            met, wrong = met + int(hit.sum()), wrong + bad
            failed += [repr(state)] if bad else []
        if not met:
            return Check(name, True, "no threshold of this model can be met exactly")
        detail = f"{met} potentials at or next to their threshold"
        return Check(name, not wrong, detail + (f", {wrong} neurons wrong in {', '.join(failed)}" if wrong else ""))

    async def free(self, name: str) -> Check:
        """Whole windows from zero state: recorded readouts and labels, and nothing kept from the run before."""
        samples, expected = _floats(self.golden["free.input"]), self.golden["free.readout"]
        order = np.arange(len(samples))
        problems, shares = [], []
        for run, rows in enumerate((order, order[::-1]) if self.full else (order,)):
            found = await self.infer(samples[rows])
            deviation = np.abs(found - expected[rows]).max(axis=1)
            if not (deviation <= self.golden["free.loose"]).all():
                problems.append(
                    f"run {run + 1}: readout off by {deviation.max():.3g}, at most {self.golden['free.loose']:.3g}"
                )
            shares.append(float((deviation <= self.golden["free.tight"][rows]).mean()))
            sure = (self.golden["free.margin"] > self.golden["free.margin_floor"])[rows]
            differing = found.argmax(axis=1)[sure] != expected[rows].argmax(axis=1)[sure]
            if differing.any():
                problems.append(f"run {run + 1}: {int(differing.sum())} of {int(sure.sum())} labels differ")
        if min(shares) < TIGHT_SHARE:
            problems.append(f"only {min(shares):.0%} of the windows agree to rounding, at least {TIGHT_SHARE:.0%} must")
        detail = f"{len(samples)} windows, {min(shares):.0%} agree to rounding"
        return Check(name, not problems, "; ".join(problems) or detail)

    async def step(self, frames: Floats, states: Mapping[str, Floats]) -> dict[str, Floats]:
        """One step of any number of rows, as many at a time as the engine takes: the output and new states by name."""
        parts = []
        for k in range(0, len(frames), self.engine.max_batch):
            rows = slice(k, k + self.engine.max_batch)
            given = {name: np.ascontiguousarray(value[rows]) for name, value in states.items()}
            feeds = {self.input.name: np.ascontiguousarray(frames[rows])}
            outputs, new = await self.engine.step(feeds, given)
            parts.append(self._complete({**new, self.output: outputs.get(self.output)}, len(feeds[self.input.name])))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _complete(self, found: Mapping[str, Floats | None], rows: int) -> dict[str, Floats]:
        shapes = {state.name: state.shape for state in self.bundle.states} | {self.output: (self.bundle.classes,)}
        complete = {}
        for name, shape in shapes.items():
            value = found.get(name)
            if value is None or value.shape != (rows, *shape):
                got = "nothing" if value is None else f"shape {value.shape}"
                raise EngineError(f"the engine returned {got} for {name!r}", f"expected {(rows, *shape)}")
            complete[name] = value
        return complete

    async def infer(self, samples: Floats) -> Floats:
        """Readouts of any number of windows."""
        parts = []
        for k in range(0, len(samples), self.engine.max_batch):
            rows = samples[k : k + self.engine.max_batch]
            feed = np.swapaxes(rows, 0, 1) if self.input.sequence else rows
            readout = (await self.engine.infer({self.input.name: np.ascontiguousarray(feed)})).readout
            if readout.shape != (len(rows), self.bundle.classes):
                raise EngineError(f"the engine returned a readout of shape {readout.shape}", f"for {len(rows)} windows")
            parts.append(readout)
        return np.concatenate(parts)


class _Float16Exam(_Exam):
    """The same kinds of evidence for sums in float16: ``fp16.*``; the ties are those of float32."""

    def __init__(self, engine: Engine, bundle: Bundle, golden: Mapping[str, Floats], full: bool) -> None:
        own = {name.removeprefix("fp16."): value for name, value in golden.items() if name.startswith("fp16.free.")}
        super().__init__(engine, bundle, {**golden, **own}, full)

    async def steps(self, name: str) -> Check:
        """Steps in which each neuron spikes once: every output, and chosen new states, within their bounds."""
        golden, given, places = self.golden, {}, {}
        wanted: _Wanted = {self.output: (golden["fp16.step.output"], golden["fp16.step.output_bound"])}
        rows = len(golden["fp16.step.input"])
        for k, state in enumerate(self.states):
            given[state] = _floats(golden[f"fp16.step.state.{k}"]) * golden["fp16.step.unit"][k]
            wanted[state] = (golden[f"fp16.step.next.{k}"], golden[f"fp16.step.next_bound.{k}"])
            places[state] = golden.get(f"fp16.step.place.{k}", np.arange(given[state].size // rows))
        return await self.recorded(name, _floats(golden["fp16.step.input"]), given, wanted, places)


class _IntegerExam(_Exam):
    """The same kinds of evidence in Loihi's integers: ``loihi.*``."""

    async def steps(self, name: str) -> Check:
        golden = self.golden
        rows = golden["loihi.step.rows"]
        given = {state: _floats(golden[f"step.state.{k}"][rows]) for k, state in enumerate(self.states)}
        wanted: _Wanted = {self.output: (golden["loihi.step.output"], golden["loihi.step.output_bound"])}
        for k, state in enumerate(self.states):
            wanted[state] = (golden[f"loihi.step.next.{k}"], golden[f"loihi.bound.{k}"])
        return await self.recorded(name, _floats(golden["step.input"][rows]), given, wanted)

    async def ties(self, name: str) -> Check:
        golden, wrong, met, failed = self.golden, 0, 0, []
        for k, state in enumerate(self.states):
            if f"loihi.tie.{k}.place" not in golden:
                continue
            place, at = golden[f"loihi.tie.{k}.place"], golden[f"loihi.tie.{k}.state"]
            given = {s.name: np.zeros((len(at), *s.shape), np.float32) for s in self.bundle.states}
            given[state].reshape(len(at), -1)[:, place] = at
            found = await self.step(np.zeros((len(at), *self.input.shape), np.float32), given)
            error = np.abs(found[state].reshape(len(at), -1)[:, place] - golden[f"loihi.tie.{k}.next"])
            bad = int((~(error <= golden[f"loihi.bound.{k}"])).sum())
            met, wrong = met + at.size, wrong + bad
            failed += [repr(state)] if bad else []
        detail = f"{met} potentials at their threshold or one above"
        return Check(name, not wrong, detail + (f", {wrong} neurons wrong in {', '.join(failed)}" if wrong else ""))

    async def free(self, name: str) -> Check:
        samples, expected = _floats(self.golden["free.input"]), self.golden["loihi.free.readout"]
        order, bound, problems = np.arange(len(samples)), self.golden["loihi.free.bound"], []
        for run, rows in enumerate((order, order[::-1]) if self.full else (order,)):
            found = await self.infer(samples[rows])
            differing = ~(np.abs(found - expected[rows]) <= bound).all(axis=1)
            if differing.any():
                problems.append(f"run {run + 1}: {int(differing.sum())} of {len(samples)} windows differ")
        return Check(name, not problems, "; ".join(problems) or f"{len(samples)} windows, spike for spike")


def _excess(found: Floats, expected: Floats, bound: Floats) -> float:
    """The largest error as a multiple of its bound; infinite where a number is not finite."""
    error = np.abs(found.astype(np.float64) - expected)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0, 0.0, error / bound)
    return float(np.where(np.isfinite(error), ratio, np.inf).max())


def _floats(values: Floats) -> Floats:
    return values.astype(np.float32)
