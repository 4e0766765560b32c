"""A lane: one configured pipeline with everything that it needs, from bundle to sources, and how far it has come.

A lane prepares itself (verify the bundle, derive plans, start the engine, prove the model on it), then runs. A model
that fails its proof is never used. A lane that cannot run says why and leaves the other lanes alone. With an installed
model it follows the store: a new one is proved on a worker of its own while the former runs, then takes its place. A
frame that gets no result from a model on trial is the active one's; where no model may run, frames wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edged import config as settings
from edged.admission import Admission
from edged.bundle.loaded import Bundle
from edged.bundle.store.record import Slot
from edged.bundle.store.states import State
from edged.domain import Payload
from edged.engines.life import WorkerSpec
from edged.errors import ConfigError, EdgedError, FrameRejected
from edged.installed import RETRY_S, Installed, Judge, Outcome, Seen, proof_of
from edged.pipeline import Pipeline
from edged.ports import Inlet, Model, ResultStore, Source
from edged.presence import Presence
from edged.ready import CRASHES, Ready, Recipe, Running, end_tasks, make_ready
from edged.sources.camera import CameraSource
from edged.sources.camera_formats import Wanted
from edged.sources.camera_v4l2 import open_capture
from edged.sources.inlet import InletSource
from edged.sources.rejected import RejectedFolder
from edged.sources.replay import ReplaySource
from edged.sources.sample_stream import FRAMINGS, Windows
from edged.sources.serial_windows import SerialWindowsSource
from edged.sources.spool import SpoolSource

log = logging.getLogger(__name__)

WATCH_S = 0.5  # between two looks at a model on trial
FOREIGN = ("lava",)  # lava-nc starts on Python 3.10 only, the daemon on 3.11 and newer
DRAIN_S = 2.0  # frames under way at a stop get this long; what is left is still in the spool or is asked again


class Stage(enum.Enum):
    """How far a lane has come."""

    PREPARING = "preparing"
    PROVING = "proving"
    RUNNING = "running"
    FAILED = "failed"
    STOPPING = "stopping"


STEPS = {
    Stage.PREPARING: {Stage.PROVING, Stage.FAILED, Stage.STOPPING},
    Stage.PROVING: {Stage.PREPARING, Stage.RUNNING, Stage.FAILED, Stage.STOPPING},
    Stage.RUNNING: {
        Stage.PREPARING,
        Stage.PROVING,
        Stage.FAILED,
        Stage.STOPPING,
    },  # the model was taken back, another is to run
    Stage.FAILED: {Stage.PREPARING, Stage.STOPPING},  # another model was installed
    Stage.STOPPING: set(),
}


@dataclass(frozen=True, slots=True)
class Shared:
    """What all lanes share. The console serves ``models`` and ``inlets``, by model name, as lanes bring them."""

    store: ResultStore
    engines: settings.Engines
    cache_dir: Path
    rejected_dir: Path
    installed: Installed
    presence: Presence
    hosts_dir: Path | None = None  # sockets behind which systemd starts workers, by engine
    models: dict[str, Model] = field(default_factory=dict)
    inlets: dict[str, Inlet] = field(default_factory=dict)


@dataclass(slots=True)
class Lane:
    """One pipeline's life. Read its fields for the status; ``run`` moves it along."""

    config: settings.Pipeline
    shared: Shared
    stage: Stage = Stage.PREPARING
    reason: str = ""
    bundle: Bundle | None = None
    engine: Running | None = None
    slot: Slot | None = None  # of an installed model
    pipeline: Pipeline | None = None
    trial: str = ""  # how far a trial has come, or why the last one was taken back
    admission: Admission = field(default_factory=Admission)  # how much may pass while the device is pressed
    source_reasons: dict[str, str] = field(default_factory=dict)  # why a source brings nothing
    source_notes: dict[str, str] = field(default_factory=dict)  # what a source has lost
    source_losses: dict[str, dict[str, int]] = field(default_factory=dict)  # the same as counts
    _ready: list[Ready] = field(default_factory=list)  # what has a worker; the last one runs, or is to

    async def run(self) -> None:
        """Prepare, prove and run until cancelled. Only a defect of ours makes this raise."""
        directory = self.config.bundle_dir
        try:
            ready = await self._next() if directory is None else await self._make_ready(directory, self._recipe())
            await self._run_pipeline(ready)
        except EdgedError as error:
            self._move(Stage.FAILED, str(error))
            log.error("pipeline cannot run", extra={"pipeline": self.config.name, "reason": str(error)})
        finally:
            await self._end(self._ready)

    async def _make_ready(self, directory: Path, recipe: Recipe) -> Ready:
        ready = await make_ready(directory, recipe)
        self._ready.append(ready)
        self.bundle, self.engine = ready.bundle, ready.engine
        self.shared.models[ready.bundle.name] = ready.bundle
        return ready

    def _recipe(self) -> Recipe:
        specs = tuple(worker_spec(name, self.shared.engines, self.shared.hosts_dir) for name in self.config.engines)
        return Recipe(
            specs,
            self.config.max_batch,
            self.shared.cache_dir,
            fastest=self.config.placement == "fastest",
            standby=self.config.standby,
            on_stage=self._on_stage,
            presence=self.shared.presence,
        )

    def _on_stage(self, bundle: Bundle, engine: Running | None) -> None:
        """Show what is being prepared, unless something runs meanwhile."""
        if not self._runs:
            self.bundle, self.engine = bundle, engine
            self.shared.models[bundle.name] = bundle
            self._move(Stage.PROVING if engine is not None else Stage.PREPARING)

    @property
    def _runs(self) -> bool:
        return self.pipeline is not None and not self.pipeline.held

    async def _end(self, those: list[Ready]) -> None:
        for ready in list(those):
            self._ready.remove(ready)
            await ready.end()

    async def _run_pipeline(self, ready: Ready) -> None:
        pipeline = self.pipeline = Pipeline(
            self.config.name,
            ready.bundle,
            ready.engine,
            self.shared.store,
            queue_limit=self.config.queue,
            policy=self.config.policy,
            appeal=self._appeal,
            admission=self.admission,
        )
        sources = [self._make_source(source) for source in self.config.source]
        self._tell_running(ready)
        work = asyncio.create_task(pipeline.run(), name=f"{pipeline.name}:pipeline")
        others = [asyncio.create_task(self._feed(source, pipeline), name=source.name) for source in sources]
        if self.config.bundle_dir is None:
            others.append(asyncio.create_task(self._follow(pipeline), name=f"{pipeline.name}:model"))
        try:
            done, _ = await asyncio.wait({work, *others}, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            self._move(Stage.STOPPING)
            await end_tasks(*others)
            await pipeline.drain(DRAIN_S)
            await end_tasks(work)

    def _tell_running(self, ready: Ready) -> None:
        self._move(Stage.RUNNING)
        model = f"{ready.bundle.name}@{ready.bundle.version}"
        log.info("pipeline runs", extra={"pipeline": self.config.name, "model": model, "engine": ready.engine.name})

    # Installed models

    async def _follow(self, pipeline: Pipeline) -> None:
        """Run what the store says, now and after every change; watch over what is on trial."""
        while True:
            watching = asyncio.create_task(self._watch(pipeline, self._ready[-1]), name=f"{pipeline.name}:trial")
            try:
                ready = await self._next()
            finally:
                await end_tasks(watching)
            await pipeline.adopt(ready.bundle, ready.engine, DRAIN_S)
            self._tell_running(ready)
            await self._end(self._ready[:-1])

    async def _next(self) -> Ready:
        """The installed model that is to run, ready, when another does; waits until there is one that can."""
        installed, name = self.shared.installed, self.config.model
        while True:
            change = installed.change()
            slot = installed.current(name)
            if slot is None:
                hint = f"edged model install, then edged model trial {name}"
                await self._hold(f"no model {name} is active ({hint})")
            elif not (self._runs and self._ready[-1].bundle.digest == slot.digest):
                ready = await self._try(name, slot)
                if ready is not None:
                    self.slot = slot
                    return ready
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S):
                    await change.wait()

    async def _try(self, name: str, slot: Slot) -> Ready | None:
        """Make a slot ready; None when it cannot be: the store was told and knows what that means for the slot."""
        installed = self.shared.installed
        recipe = replace(
            self._recipe(),
            patient=slot.state is not State.TRIAL,
            crashes=CRASHES,
            is_proved=lambda engine: installed.store.is_proved(name, proof_of(slot, engine)),
            on_proved=lambda engine: installed.proved(name, slot, proof_of(slot, engine)),
        )
        try:
            await installed.verify(name, slot)
            return await self._make_ready(installed.path(name, slot), recipe)
        except EdgedError as error:
            if not self._runs:
                self._move(Stage.FAILED, str(error))
            await installed.could_not_run(name, slot, error)
            return None

    async def _hold(self, reason: str) -> None:
        """Nothing may run: frames wait, and workers are ended."""
        if self.pipeline is not None:
            await self.pipeline.hold(DRAIN_S)
        await self._end(self._ready)
        self.slot, self.trial = None, ""
        self._move(Stage.FAILED, reason)

    async def _appeal(self, model: Model, payload: Payload, error: EdgedError) -> None:
        """A frame gets no result from this model. On trial, the model goes instead, if the active one may do better."""
        installed, name = self.shared.installed, self.config.model
        slot, other = installed.current(name), installed.fallback(name)
        if self.config.bundle_dir is not None or self.pipeline is None or other is None or slot is None:
            return
        if slot.digest == model.digest and slot.state is State.TRIAL:
            if isinstance(error, FrameRejected) and not await installed.takes(name, other, payload):
                return
            await installed.failed_frame(name, slot, error)
            slot = installed.current(name)
        if slot is not None and slot.digest != model.digest:
            await self.pipeline.hold(0)

    async def _watch(self, pipeline: Pipeline, ready: Ready) -> None:
        """Judge the model that runs for as long as it is on trial."""
        installed, name = self.shared.installed, self.config.model
        judge = Judge(installed.measure, _seen(pipeline, ready))
        while ready in self._ready:
            slot = installed.current(name)
            if slot is not None and slot.digest == ready.bundle.digest:
                self.slot = slot
                if slot.state is State.TRIAL:
                    await self._weigh(judge, _seen(pipeline, ready), slot)
                else:
                    self.trial = installed.gone(name, slot)
            await asyncio.sleep(WATCH_S)

    async def _weigh(self, judge: Judge, seen: Seen, slot: Slot) -> None:
        installed, name = self.shared.installed, self.config.model
        outcome, reason = judge.verdict(seen)
        self.trial = judge.progress(seen)
        if outcome is Outcome.FAILED:
            await installed.failed(name, slot, reason)
        elif outcome is Outcome.TAKEN_BACK:
            await installed.taken_back(name, slot, reason)
        elif outcome is Outcome.WELL:
            await installed.went_well(name, slot, self.config.name)

    # Sources

    async def _feed(self, source: Source, pipeline: Pipeline) -> None:
        """One source; when it is unusable the others go on."""
        try:
            await source.run(pipeline)
        except EdgedError as error:
            self.source_reasons[source.name] = str(error)
            log.error("source cannot run", extra={"source": source.name, "reason": str(error)})
            await asyncio.Event().wait()

    def _make_source(self, source: settings.SourceConfig) -> Source:
        match source:
            case settings.SpoolSource():
                return SpoolSource(source.name, source.path, source.poll_s)
            case settings.ReplaySource():
                return ReplaySource(source.name, source.path, source.rate_hz, loop=source.loop)
            case settings.HttpSource():
                return self._make_inlet(source.name)
            case settings.SerialWindowsSource():
                return self._make_serial(source)
            case settings.CameraSource():
                wanted = Wanted(source.format, source.width, source.height, source.rate)
                tell = functools.partial(self._tell_device, source.name, source.device)
                return CameraSource(source.name, source.device, wanted, open_capture, tell)

    def _make_serial(self, source: settings.SerialWindowsSource) -> SerialWindowsSource:
        windows = Windows(source.sample, source.channels, source.window, source.hop or source.window, source.scale)
        framing = FRAMINGS[source.framing](windows.scan_bytes)
        tell = functools.partial(self._tell_device, source.name, source.path)
        return SerialWindowsSource(source.name, source.path, source.baud, framing, windows, tell)

    def _tell_device(self, name: str, path: Path, reason: str, note: str, losses: Mapping[str, int]) -> None:
        """A source of a device says how it is: it has the device as long as there is nothing wrong."""
        self.shared.presence.reads(name, "" if reason else str(path.resolve()))
        self._tell_source(name, reason, note, losses)

    def _tell_source(self, name: str, reason: str, note: str, losses: Mapping[str, int]) -> None:
        """A source says why it brings nothing (or nothing), and what it has lost, in words and as counts."""
        self.source_notes[name] = note
        self.source_losses[name] = dict(losses)
        if reason:
            self.source_reasons[name] = reason
        else:
            self.source_reasons.pop(name, None)

    def _make_inlet(self, name: str) -> InletSource:
        assert self.bundle is not None
        if self.bundle.name in self.shared.inlets:
            hint = "give the second pipeline no source of type http"
            raise ConfigError(f"model {self.bundle.name} takes requests in another pipeline already", hint)
        inlet = InletSource(name, RejectedFolder(self.shared.rejected_dir))
        self.shared.inlets[self.bundle.name] = inlet
        return inlet

    def _move(self, stage: Stage, reason: str = "") -> None:
        if stage is not self.stage and stage not in STEPS[self.stage]:
            raise RuntimeError(f"a lane cannot go from {self.stage.value} to {stage.value}")
        self.stage, self.reason = stage, reason


def _seen(pipeline: Pipeline, ready: Ready) -> Seen:
    engine = ready.engine
    return Seen(pipeline.flow(), engine.lost, engine.crashes, engine.loss, time.monotonic())


def worker_spec(name: str, engines: settings.Engines, hosts_dir: Path | None = None) -> WorkerSpec:
    """How to run an engine, as its table in the configuration says; engines of one package share a host too."""
    table, package = engines.worker(name), name.partition("-")[0]
    return WorkerSpec(
        name,
        python=table.python,
        deadline_s=table.deadline_s,
        load_deadline_s=table.load_deadline_s,
        memory_limit_bytes=table.memory_mb << 20,
        recycle_calls=table.recycle_calls,
        device=engines.device(name),
        host=hosts_dir / f"{package}.sock" if hosts_dir is not None else None,
        foreign=package in FOREIGN,
    )
