"""ONNX Runtime on the CPU: the reference engine. The only file that imports onnxruntime.

The plan directory holds ``window-unrolled.onnx`` and ``window-scan.onnx``, two forms of one window, and ``step.onnx``.
On the first load both windows are optimised and timed; the faster one is cached in its optimised form, and every start,
the first included, runs that file: what was proven is what runs. The step plan is loaded at the first step. Where
nothing can be written the engine runs all the same, and chooses anew at each start.

One thread that never spins: a device has better uses for its cores. Inputs, outputs and states are bound to the shared
memory, nothing is copied: that saves 10 to 20 µs a call.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]  # ships no stubs
from onnxruntime.capi import onnxruntime_pybind11_state as errors  # type: ignore[import-untyped]  # ships no stubs

from edged.engines.layout import Layout, Role
from edged.engines.wire import Load
from edged.engines.worker.arrays import Arrays
from edged.engines.worker.engine import FrameFailed
from edged.engines.worker.plan_cache import PlanCache, cache_key, cpu, file_digest

FORMS = ("unrolled", "scan")
WINDOW, STEP = "window.onnx", "step.onnx"
FORMAT = 1  # of what is cached: raised when notes or options are read differently
OPTIONS = {
    "session.intra_op.allow_spinning": "0",  # spinning burns 110 % of a core at 90 frames a second
    "session.inter_op.allow_spinning": "0",
    # A silent neuron's potential decays into denormals, measured 3.5 times slower. The process's first session decides.
    "session.set_denormal_as_zero": "1",
    "session.disable_quant_qdq": "1",  # weight-only dequantisation would block the fast convolution layout
}
TIMING_ROUNDS = 12  # alternating, the minimum counts: enough on a busy machine
TIMING_BUDGET_S = 0.4  # a slow model is told apart in fewer rounds
TYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bool)": "bool",
    "tensor(int8)": "int8", "tensor(int16)": "int16", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(uint8)": "uint8", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32", "tensor(uint64)": "uint64",
}  # fmt: skip


class PlanUnfit(Exception):
    """A plan does not have the inputs and outputs that the model promises."""


class Engine:
    """ONNX Runtime's CPU provider."""

    version: str = ort.__version__

    def load(self, load: Load, memory: mmap.mmap, progress: Callable[[str], None]) -> Model:
        """Choose a window form, or read the choice from the cache. Raises PlanUnfit and ONNX Runtime's exceptions."""
        return Model(load, memory, progress)


class Model:
    """One model, ready. Bindings are made at the first use of each (slot, batch)."""

    def __init__(self, load: Load, memory: mmap.mmap, progress: Callable[[str], None]) -> None:
        started = time.perf_counter()
        self._plans = Path(load.plan_dir)
        self._layout = load.layout
        self._arrays = Arrays(memory, load.layout)
        windows = [self._plans / f"window-{form}.onnx" for form in FORMS]
        digests = [file_digest(path) for path in [*windows, self._plans / STEP]]
        parts = [FORMAT, load.digest, *digests, ort.__version__, cpu(), OPTIONS, load.layout.max_batch]
        self._cache = PlanCache(Path(load.cache_dir) / "onnxruntime", cache_key(*parts))
        self.timings: dict[str, float] = {}
        self._window, self.plan = self._load_window(progress)
        self._step: Bound | None = None
        self.timings["load_s"] = time.perf_counter() - started

    def infer(self, slot: int, batch: int) -> None:
        """Run a window: INPUT to READOUT."""
        self._window.run(slot, batch)

    def step(self, slot: int, batch: int) -> None:
        """Run one time step: STEP_INPUT and STATE to STEP_OUTPUT and NEXT_STATE."""
        if self._step is None:
            self._step = self._load_step()
        self._step.run(slot, batch)

    def _load_window(self, progress: Callable[[str], None]) -> tuple[Bound, str]:
        cached = self._from_cache(WINDOW)
        if cached is not None:
            return self._bind_window(cached[0]), self._note(cached[1])
        progress("choosing between the forms of the window")
        with self._cache.scratch() as scratch:
            built = {form: self._build(f"window-{form}.onnx", scratch) for form in FORMS}
            windows = {form: self._bind_window(session) for form, session in built.items()}
            best_us = _race(windows, self._arrays, self._layout.max_batch)
            form = min(best_us, key=lambda name: best_us[name])
            notes = {"form": form, "us_per_frame": best_us}
            kept = self._keep(WINDOW, scratch, f"window-{form}.onnx", notes)
        return windows[form] if kept is None else self._bind_window(kept), self._note(notes)

    def _note(self, notes: dict[str, Any]) -> str:
        self.timings.update({f"{form}_us": float(us) for form, us in notes["us_per_frame"].items()})
        return f"window-{notes['form']}"

    def _load_step(self) -> Bound:
        cached = self._from_cache(STEP)
        if cached is not None:
            session = cached[0]
        else:
            with self._cache.scratch() as scratch:
                built = self._build(STEP, scratch)
                session = self._keep(STEP, scratch, STEP, {}) or built
        roles = [Role.STEP_INPUT, Role.STATE], [Role.STEP_OUTPUT, Role.NEXT_STATE]
        return Bound(session, self._arrays, self._layout, *roles)

    def _build(self, name: str, scratch: Path | None) -> ort.InferenceSession:
        """Optimise a plan, and write the result to ``scratch`` where that is possible."""
        if scratch is not None:
            try:
                return _session(self._plans / name, scratch / name)
            except Exception as error:  # a full disk is reported as whatever step it hit
                print(f"plan {name} is not written: {error}", flush=True)
        return _session(self._plans / name, optimise=True)

    def _keep(self, name: str, scratch: Path | None, built: str, notes: dict[str, Any]) -> ort.InferenceSession | None:
        """A session of the written plan, which is then cached; None where it is not there or not whole."""
        if scratch is None:
            return None
        try:
            session = _session(scratch / built)  # ONNX Runtime does not notice that a full disk took half of it
        except Exception as error:  # whatever the half that is there looks like
            print(f"plan {name} is not cached: {error}", flush=True)
            return None
        self._cache.keep(name, scratch / built, notes)
        return session

    def _from_cache(self, name: str) -> tuple[ort.InferenceSession, dict[str, Any]] | None:
        cached = self._cache.find(name)
        if cached is None:
            return None
        try:
            return _session(cached.path), cached.notes
        except Exception as error:  # a plan that does not load is no plan
            print(f"the cached plan {name} is built again: {error}", flush=True)
            return None

    def _bind_window(self, session: ort.InferenceSession) -> Bound:
        return Bound(session, self._arrays, self._layout, [Role.INPUT], [Role.READOUT])


class Bound:
    """A session whose inputs and outputs are regions of the shared memory.

    Inputs are matched by name. Outputs are matched by their order, because a plan names a new state as it likes.
    """

    def __init__(
        self, session: ort.InferenceSession, arrays: Arrays, layout: Layout, inputs: list[Role], outputs: list[Role]
    ) -> None:
        self._session = session
        self._arrays = arrays
        self._inputs = inputs
        self._outputs = outputs
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}
        self._wanted = _check(session, layout, inputs, outputs)

    def run(self, slot: int, batch: int) -> None:
        """Run on what the slot holds. Raises FrameFailed when the input cannot be computed."""
        binding = self._bindings.get((slot, batch)) or self._bind(slot, batch)
        try:
            self._session.run_with_iobinding(binding, None)  # RunOptions() would cost 40 µs
        except (errors.Fail, errors.InvalidArgument, errors.RuntimeException) as error:
            raise FrameFailed(str(error)) from None

    def _bind(self, slot: int, batch: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        for role in self._inputs:
            for name, array in self._arrays.of(slot, role, batch).items():
                if name in self._wanted:
                    binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        views = [array for role in self._outputs for array in self._arrays.of(slot, role, batch).values()]
        for output, array in zip(self._session.get_outputs(), views):  # noqa: B905  # Python 3.8; _check compared
            binding.bind_ortvalue_output(output.name, ort.OrtValue.ortvalue_from_numpy(array))
        self._bindings[slot, batch] = binding
        return binding


def _session(path: Path, optimised: Path | None = None, optimise: bool = False) -> ort.InferenceSession:
    """Load a plan: optimise it, and write the result to ``optimised`` if that is given, or take it as it is."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # warnings about hardware-specific plans are what we want, not news
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise or optimised else level.ORT_DISABLE_ALL
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    for name, value in OPTIONS.items():
        options.add_session_config_entry(name, value)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _check(session: ort.InferenceSession, layout: Layout, inputs: list[Role], outputs: list[Role]) -> set[str]:
    """The names of the session's inputs. Raises PlanUnfit unless the plan is what the layout says."""
    offered = {region.tensor.name: region for role in inputs for region in layout.role(role)}
    for node in session.get_inputs():
        if node.name not in offered:
            raise PlanUnfit(f"the plan wants an input {node.name!r}; the model has {', '.join(offered)}")
        _compare(node, layout.shape(offered[node.name], 1), offered[node.name].tensor.dtype)
    regions = [region for role in outputs for region in layout.role(role)]
    nodes = session.get_outputs()
    if len(nodes) != len(regions):
        raise PlanUnfit(f"the plan has {len(nodes)} outputs, the model {len(regions)}")
    for node, region in zip(nodes, regions):  # noqa: B905  # Python 3.8; compared above
        _compare(node, layout.shape(region, 1), region.tensor.dtype)
    return {node.name for node in session.get_inputs()}


def _compare(node: Any, shape: tuple[int, ...], dtype: str) -> None:
    if TYPES.get(node.type) != dtype:
        raise PlanUnfit(f"{node.name} is {node.type} in the plan and {dtype} in the model")
    extents = zip(node.shape, shape)  # noqa: B905  # Python 3.8; compared below
    if len(node.shape) != len(shape) or any(isinstance(have, int) and have != want for have, want in extents):
        raise PlanUnfit(f"{node.name} is {node.shape} in the plan and {list(shape)} in the model")


def _race(windows: dict[str, Bound], arrays: Arrays, max_batch: int) -> dict[str, float]:
    """Best microseconds a frame of each form: the mean of a frame alone and a frame in a full batch."""
    random = np.random.default_rng(0)
    batches = sorted({1, max_batch})
    best_us: dict[str, float] = dict.fromkeys(windows, 0.0)
    for batch in batches:
        for array in arrays.of(0, Role.INPUT, batch).values():
            values = random.random(array.shape)
            array[...] = values if array.dtype.kind == "f" else values < 0.25
        best_ns = dict.fromkeys(windows, 1 << 62)
        for window in windows.values():
            window.run(0, batch)  # the first run allocates
        give_up = time.perf_counter() + TIMING_BUDGET_S
        for _ in range(TIMING_ROUNDS):
            for form, window in windows.items():
                started = time.perf_counter_ns()
                window.run(0, batch)
                best_ns[form] = min(best_ns[form], time.perf_counter_ns() - started)
            if time.perf_counter() > give_up:
                break
        for form, ns in best_ns.items():
            best_us[form] += ns / 1000 / batch / len(batches)
    return best_us
