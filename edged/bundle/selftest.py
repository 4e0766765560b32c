"""The judge of golden data: drives any engine through the port and says whether it runs the model correctly.

Pure NumPy, no engine of its own. Labels alone miss most defects (a dropped bias moves spike counts by less than
1 %), so three kinds of evidence are asked for: recorded steps within their rounding bounds, ties, and free runs,
made twice in one session, the second time in reversed order, so that a state kept from the first run shows.

An engine that computes in Loihi's integers (``INTEGERS``) is held to golden data of its own, where nothing is uncertain
but the last bits of a float32: each potential is within half a unit, each spike is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.bundle.arrays import decode_npz
from edged.bundle.loaded import Bundle
from edged.errors import BundleError, EngineError, EngineLost
from edged.ports import Engine

Floats = NDArray[Any]

FORMAT = 1
INTEGERS = ("lava-fixed", "lava-loihi2")  # engines that compute in Loihi's integers
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
    return SelftestReport(f"{bundle.name}@{bundle.version}", bundle.digest, engine.name, tuple(checks))


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
        wanted = {self.output: (_floats(golden["step.output"]), golden["step.output_bound"])}
        for k, state in enumerate(self.states):
            wanted[state] = (_floats(golden[f"step.next.{k}"]), golden[f"step.next_bound.{k}"])
        return await self.recorded(name, frames, given, wanted)

    async def recorded(
        self,
        name: str,
        frames: Floats,
        given: Mapping[str, Floats],
        wanted: Mapping[str, tuple[Floats, Floats]],
    ) -> Check:
        """Steps from given states, and what must come out within which bounds: by row, or one for all."""
        orders = [np.arange(len(frames)), np.arange(len(frames))[::-1]]
        worst, where = 0.0, ""
        for order in orders if self.full else orders[:1]:
            found = await self.step(frames[order], {state: value[order] for state, value in given.items()})
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
            sure = self.golden["free.margin"][rows] > self.golden["free.margin_floor"]
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


class _IntegerExam(_Exam):
    """The same kinds of evidence in Loihi's integers: ``loihi.*``."""

    async def steps(self, name: str) -> Check:
        golden = self.golden
        rows = golden["loihi.step.rows"]
        given = {state: _floats(golden[f"step.state.{k}"][rows]) for k, state in enumerate(self.states)}
        wanted = {self.output: (golden["loihi.step.output"], golden["loihi.step.output_bound"])}
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


def load_golden(bundle: Bundle) -> dict[str, Floats]:
    """The golden data of a bundle, complete and of the shapes that the manifest implies. Raises BundleError."""
    golden = decode_npz(bundle.read(bundle.manifest.variant.golden))
    if int(golden.get("format", np.zeros(())).max(initial=0)) != FORMAT:
        raise BundleError(f"{bundle.path}: the golden data has no format {FORMAT}", "make the bundle again")
    _check_shapes(bundle, golden, _expected_shapes(bundle, golden))
    return golden


def _check_shapes(bundle: Bundle, golden: Mapping[str, Floats], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        value = golden.get(name)
        if value is None or not _fits(value.shape, shape):
            found = "missing" if value is None else f"of shape {value.shape}"
            raise BundleError(f"{bundle.path}: golden array {name!r} is {found}", f"expected {shape} (-1: any)")
        if not np.isfinite(value).all():
            raise BundleError(f"{bundle.path}: golden array {name!r} holds NaN or infinity")


def has_integers(bundle: Bundle, golden: Mapping[str, Floats]) -> bool:
    """Whether an engine in integers has something to prove itself with. Raises BundleError where that is unusable."""
    if int(golden.get("loihi.format", np.zeros(())).max(initial=0)) != FORMAT:
        return False
    rows, free = golden.get("loihi.step.rows", np.zeros(0)), len(golden["free.input"])
    shapes: dict[str, tuple[int, ...]] = {
        "loihi.step.rows": (max(len(rows) if rows.ndim else 0, 1),),
        "loihi.step.output": (len(rows), bundle.classes),
        "loihi.step.output_bound": (),
        "loihi.free.readout": (free, bundle.classes),
        "loihi.free.bound": (),
    }
    for k, state in enumerate(bundle.states):
        shapes |= {f"loihi.step.next.{k}": (len(rows), *state.shape), f"loihi.bound.{k}": ()}
        place = golden.get(f"loihi.tie.{k}.place")
        if place is not None:
            ties = place.size
            shapes |= {f"loihi.tie.{k}.place": (ties,)}
            shapes |= {f"loihi.tie.{k}.{role}": (2, ties) for role in ("state", "next")}
            _check_indices(bundle, f"loihi.tie.{k}.place", place, int(np.prod(state.shape)))
    _check_shapes(bundle, golden, shapes)
    _check_indices(bundle, "loihi.step.rows", rows, len(golden["step.input"]))
    return True


def _check_indices(bundle: Bundle, name: str, found: Floats, size: int) -> None:
    if found.dtype.kind not in "iu" or found.size == 0 or found.min() < 0 or found.max() >= size:
        raise BundleError(f"{bundle.path}: golden array {name!r} holds places that there are not", f"of {size}")


def _expected_shapes(bundle: Bundle, golden: Mapping[str, Floats]) -> dict[str, tuple[int, ...]]:
    entry = bundle.inputs[0]
    steps, free = (
        len(golden[name]) if golden.get(name, np.zeros(())).ndim else 0 for name in ("step.input", "free.input")
    )
    steps, free = max(steps, 1), max(free, 1)
    window = (bundle.timesteps, *entry.shape) if entry.sequence else entry.shape
    shapes: dict[str, tuple[int, ...]] = {
        "step.input": (steps, *entry.shape),
        "step.output": (steps, bundle.classes),
        "step.output_bound": (steps, bundle.classes),
        "free.input": (free, *window),
        "free.readout": (free, bundle.classes),
        "free.tight": (free,),
        "free.margin": (free,),
        "free.loose": (),
        "free.margin_floor": (),
        "tie.silent": (len(bundle.states),),
    }
    for k, state in enumerate(bundle.states):
        shapes |= {f"step.{role}.{k}": (steps, *state.shape) for role in ("state", "next")}
        shapes[f"step.next_bound.{k}"] = (steps, *state.shape[:1], *(-1 for _ in state.shape[1:]))
        if f"tie.{k}.state" in golden:
            rows = len(golden[f"tie.{k}.state"]) if golden[f"tie.{k}.state"].ndim else 0
            shapes |= {f"tie.{k}.{role}": (max(rows, 3), *state.shape) for role in ("state", "next", "hit")}
            shapes[f"tie.{k}.bound"] = ()
            if f"tie.{k}.others" in golden:
                shapes[f"tie.{k}.others"] = (max(rows, 3), len(bundle.states))
    return shapes


def _fits(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(found) == len(expected) and all(b in (-1, a) for a, b in zip(found, expected, strict=True))
