"""A bundle on TensorRT: plans built or read from the cache, the faster form of a window chosen, calls answered.

The plan directory holds ``f32-step.onnx`` and ``f32-window.onnx`` (or ``fp16``, ``int8``), in standard ops. The *step*
plan is always built: single steps need it, and a window can run as T steps with the states on the GPU. The *window*
plan is an attempt to be faster: unrolled in time, its build can take minutes and hundreds of megabytes. It has half of
the time that is left; a build that was given up, or cut short twice, is not tried again. Both forms are timed, and the
faster one serves.

Every plan comes from the cache of this device or was built a moment ago, never from anywhere else. The key of the cache
holds all that a plan depends on; nothing is compared with an older plan, because no two builds give the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edged.engines.layout import Role
from edged.engines.wire import Gpu, Load
from edged.engines.worker.arrays import Arrays
from edged.engines.worker.engine import ModelRefused
from edged.engines.worker.plan_cache import PlanCache, cache_key, file_digest
from edged.engines.worker.tensorrt.api import Api, Built, Compiled, Options, PlanFailed
from edged.engines.worker.tensorrt.build import GivenUp, build
from edged.engines.worker.tensorrt.cuda import Cuda, CudaError
from edged.engines.worker.tensorrt.launch import Stepper, Windower
from edged.engines.worker.tensorrt.nvml import Nvml
from edged.engines.worker.tensorrt.spec import read_spec

FORMAT = 1  # of what is cached: raised when notes or options are read differently
FOLDER = "tensorrt"
STEP, WINDOW, TRIED, CHOICE, TIMINGS = "step.plan", "window.plan", "window.tried", "choice", "timing.cache"
INDEX = "plans.json"
TRIES = 2  # of a window's build that were cut short: the first may have been a power cut
WINDOW_SHARE = 0.5  # of the time that is left: the other half is for reading, timing and the daemon
JETPACK = Path("/etc/nv_tegra_release")  # there on a Jetson alone; the release of its drivers
ROUNDS, BUDGET_S = 20, 1.0  # of timing: alternating, the minimum counts


class Model:
    """One model, ready."""

    def __init__(
        self, cuda: Cuda, api: Api, precision: str, load: Load, memory: mmap.mmap, progress: Callable[[str], None]
    ) -> None:
        """Raises ModelRefused, PlanFailed, CudaError."""
        began = time.monotonic()
        self._cuda, self._api, self._precision, self._progress = cuda, api, precision, progress
        self._nvml = Nvml(cuda.bus_id)
        self._layout, self._arrays = load.layout, Arrays(memory, load.layout)
        self._until_s = began + load.deadline_s
        self._plans, self._spec = Path(load.plan_dir), read_spec(Path(load.bundle_dir))
        self._refuse(load)
        self._cache, self._measured = self._caches(load)
        self.timings: dict[str, float] = {}
        self._recorded = not api.is_rtx  # RTX records by itself, and only what it was asked to when a plan was built
        self._window: Windower | None = None
        self._step = Stepper(
            cuda, self._have(STEP, "step", self._until_s), load.layout, self._spec, recorded=self._recorded
        )
        self.plan = self._choose()
        self.timings["load_s"] = time.monotonic() - began

    def infer(self, slot: int, batch: int) -> None:
        """Run windows: INPUT to READOUT."""
        (self._window or self._step).window(self._arrays, slot, batch)

    def step(self, slot: int, batch: int) -> None:
        """Run one time step: STEP_INPUT and STATE to STEP_OUTPUT and NEXT_STATE."""
        self._step.step(self._arrays, slot, batch)

    def gpu(self) -> Gpu:
        """The GPU, and how full and how busy it is, as far as the driver and NVIDIA's management library say."""
        figures: dict[str, float] = {}
        with contextlib.suppress(CudaError):  # a GPU that is broken shows in the next call
            free, total = self._cuda.memory()
            figures = {"memory_used_bytes": total - free, "memory_total_bytes": total}
        figures.update(self._nvml.figures())
        return Gpu(self._cuda.bus_id, self._cuda.device.name, figures)

    def close(self) -> None:
        """Free everything on the GPU."""
        self._nvml.close()
        self._step.close()
        if self._window is not None:
            self._window.close()

    # What is chosen

    def _choose(self) -> str:
        known = self._cache.find(CHOICE)
        if known is not None:
            self.timings.update({f"{form}_us": float(us) for form, us in known.notes["us"].items()})
        if known is None or known.notes["form"] == "window":
            self._window = self._windower()
        if self._window is None:
            return self._named("steps")
        if known is None:
            return self._race()
        return self._named("window")

    def _race(self) -> str:
        """Time both forms, keep the faster one, and remember which."""
        assert self._window is not None
        self._progress("timing both forms of a window")
        forms: dict[str, Any] = {"steps": self._step, "window": self._window}
        batches = sorted({1, self._layout.max_batch})
        us = dict.fromkeys(forms, 0.0)
        for batch in batches:
            for name, best_s in self._time(forms, batch).items():
                us[name] += best_s * 1e6 / batch / len(batches)
        form = min(us, key=lambda name: us[name])
        if form == "steps":
            self._window.close()
            self._window = None
        self._note(CHOICE, {"form": form, "us": us})
        self.timings.update({f"{name}_us": value for name, value in us.items()})
        return self._named(form)

    def _time(self, forms: dict[str, Any], batch: int) -> dict[str, float]:
        for array in self._arrays.of(0, Role.INPUT, batch).values():
            array[...] = np.random.default_rng(0).random(array.shape) < 0.25
        best_s = dict.fromkeys(forms, float("inf"))
        give_up_s = time.perf_counter() + BUDGET_S
        for number in range(ROUNDS + 2):
            for name, form in forms.items():
                began_s = time.perf_counter()
                form.window(self._arrays, 0, batch)
                if number > 1:  # the first run allocates, the second records
                    best_s[name] = min(best_s[name], time.perf_counter() - began_s)
            if number > 1 and time.perf_counter() > give_up_s:
                break
        return best_s

    def _named(self, form: str) -> str:
        return f"tensorrt-{self._precision}-{form}"

    # The plans

    def _windower(self) -> Windower | None:
        """The window plan on the GPU; None where there is none, which the log tells why."""
        half_s = time.monotonic() + WINDOW_SHARE * (self._until_s - time.monotonic())
        try:
            if self._cache.find(WINDOW) is None:
                self._try_window()
            compiled = self._have(WINDOW, "window", half_s)
            return Windower(self._cuda, compiled, self._layout, self._spec, recorded=self._recorded)
        except (GivenUp, PlanFailed, ModelRefused) as error:
            self._note(TRIED, {"times": TRIES})
            print(f"no window plan: {error}", flush=True)
            return None

    def _try_window(self) -> None:
        """Count an attempt before it begins, because it may be the end of this process. Raises GivenUp."""
        tried = self._cache.find(TRIED)
        times = int(tried.notes["times"]) if tried is not None else 0
        if times >= TRIES:
            raise GivenUp(f"its build was given up, or cut short {TRIES} times")
        self._note(TRIED, {"times": times + 1})

    def _have(self, name: str, what: str, until_s: float) -> Compiled:
        """A plan from the cache, or a new one where TensorRT does not take that."""
        cached = self._cache.find(name)
        if cached is not None:
            try:
                return self._api.read(cached.path.read_bytes())
            except (PlanFailed, OSError) as error:
                print(f"the cached plan {name} is built again: {error}", flush=True)
        began_s = time.monotonic()
        built = self._build(what, until_s)
        self.timings[f"build_{what}_s"] = time.monotonic() - began_s
        compiled = self._api.read(built.plan)
        self._keep(self._cache, name, built.plan, {})
        if built.timings:
            self._keep(self._measured, TIMINGS, built.timings, {})
        return compiled

    def _build(self, what: str, until_s: float) -> Built:
        graph = self._plans / f"{self._precision}-{what}.onnx"
        measured = self._measured.find(TIMINGS)
        timings = measured.path.read_bytes() if measured is not None else b""
        options = Options(self._layout.max_batch, self._precision == "int8", timings)
        return build(self._api.package, graph, options, what, until_s, self._progress)

    def _refuse(self, load: Load) -> None:
        """Raises ModelRefused where the model or TensorRT cannot have these numbers."""
        refused = json.loads((self._plans / INDEX).read_text(encoding="utf-8")).get("refused", {})
        if self._precision in refused:
            raise ModelRefused(f"{load.model} in {self._precision}: {refused[self._precision]}")
        if self._precision == "fp16" and not self._api.strong:
            reason = "cannot be held to float32 membranes beside float16 sums; it takes 10 or later"
            raise ModelRefused(f"{load.model} in fp16: TensorRT {self._api.version} {reason}")

    # The caches

    def _caches(self, load: Load) -> tuple[PlanCache, PlanCache]:
        """Of the plans of this model, and of what builds on this device have measured."""
        device = [FORMAT, self._api.package, self._api.version, *self._cuda.device, _jetpack()]
        digests = [file_digest(self._plans / f"{self._precision}-{what}.onnx") for what in ("step", "window")]
        key = cache_key(load.digest, self._precision, load.layout.max_batch, *digests, *device)
        folder = Path(load.cache_dir) / FOLDER
        return PlanCache(folder / "plans", key), PlanCache(folder / "timings", cache_key(*device))

    def _note(self, name: str, notes: dict[str, Any]) -> None:
        self._keep(self._cache, name, b"", notes)

    @staticmethod
    def _keep(cache: PlanCache, name: str, data: bytes, notes: dict[str, Any]) -> None:
        with cache.scratch() as scratch:
            if scratch is None:
                return
            try:
                (scratch / name).write_bytes(data)
            except OSError as error:  # a full disk costs the cache, never the engine
                print(f"{name} is not cached: {error}", flush=True)
            else:
                cache.keep(name, scratch / name, notes)


def _jetpack() -> str:
    try:
        return JETPACK.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
