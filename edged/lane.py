"""A lane: one configured pipeline with everything that it needs, from bundle to sources, and how far it has come.

A lane prepares itself (verify the bundle, derive plans, start the engine, prove the model on it), then runs. A model
that fails its proof is never used. A lane that cannot run says why and leaves the other lanes alone. With an installed
model it follows the store: a new one is proved on a worker of its own while the former runs, then takes its place.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from edged import config as settings
from edged.bundle.loaded import Bundle
from edged.bundle.store.record import Slot
from edged.bundle.store.states import State
from edged.engines.engine import WorkerEngine
from edged.engines.life import WorkerSpec
from edged.errors import ConfigError, EdgedError
from edged.installed import RETRY_S, Installed, Judge, proof_of
from edged.pipeline import Pipeline
from edged.ports import Inlet, Model, ResultStore, Source
from edged.ready import Ready, Recipe, end_tasks, make_ready
from edged.sources.inlet import InletSource
from edged.sources.rejected import RejectedFolder
from edged.sources.replay import ReplaySource
from edged.sources.spool import SpoolSource

log = logging.getLogger(__name__)

WATCH_S = 0.5  # between two looks at a model on trial
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
    Stage.RUNNING: {Stage.FAILED, Stage.STOPPING},
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
    engine: WorkerEngine | None = None
    slot: Slot | None = None  # of an installed model
    pipeline: Pipeline | None = None
    source_reasons: dict[str, str] = field(default_factory=dict)

    async def run(self) -> None:
        """Prepare, prove and run until cancelled. Only a defect of ours makes this raise."""
        directory = self.config.bundle_dir
        try:
            ready = await self._next() if directory is None else await self._make_ready(directory, self._recipe())
            await self._run_pipeline(ready)
        except EdgedError as error:
            self._move(Stage.FAILED, str(error))
            log.error("pipeline cannot run", extra={"pipeline": self.config.name, "reason": str(error)})

    async def _make_ready(self, directory: Path, recipe: Recipe) -> Ready:
        ready = await make_ready(directory, recipe)
        self.bundle, self.engine = ready.bundle, ready.engine
        self.shared.models[ready.bundle.name] = ready.bundle
        return ready

    def _recipe(self) -> Recipe:
        spec = worker_spec(self.config.engines[0], self.shared.engines)
        return Recipe(spec, self.config.max_batch, self.shared.cache_dir, on_stage=self._on_stage)

    def _on_stage(self, bundle: Bundle, engine: WorkerEngine | None) -> None:
        """Show what is being prepared, unless something runs meanwhile."""
        if self.pipeline is None:
            self.bundle, self.engine = bundle, engine
            self.shared.models[bundle.name] = bundle
            self._move(Stage.PROVING if engine is not None else Stage.PREPARING)

    async def _run_pipeline(self, ready: Ready) -> None:
        bundle, engine = ready.bundle, ready.engine
        current = [ready]
        work: list[asyncio.Task[None]] = []
        try:
            pipeline = self.pipeline = Pipeline(
                self.config.name,
                bundle,
                engine,
                self.shared.store,
                queue_limit=self.config.queue,
                policy=self.config.policy,
            )
            sources = [self._make_source(source) for source in self.config.source]
            self._move(Stage.RUNNING)
            log.info(
                "pipeline runs",
                extra={"pipeline": pipeline.name, "model": f"{bundle.name}@{bundle.version}", "engine": engine.name},
            )
            work = [asyncio.create_task(pipeline.run(), name=f"{pipeline.name}:pipeline")]
            if self.slot is not None:
                work.append(asyncio.create_task(self._follow(pipeline, current), name=f"{pipeline.name}:model"))
            feeds = [asyncio.create_task(self._feed(source, pipeline), name=source.name) for source in sources]
            try:
                done, _ = await asyncio.wait({*work, *feeds}, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
            finally:
                self._move(Stage.STOPPING)
                await end_tasks(*feeds, *work[1:])
                await pipeline.drain(DRAIN_S)
        finally:
            await end_tasks(*work)
            await current[0].end()

    # Installed models

    async def _next(self) -> Ready:
        """The installed model that is to run, ready; waits until there is one that proves itself."""
        installed, name = self.shared.installed, self.config.model
        while True:
            slot = installed.current(name)
            if slot is not None and (self.pipeline is None or self.slot is None or slot.digest != self.slot.digest):
                ready = await self._try(name, slot)
                if ready is not None:
                    self.slot, self.reason = slot, ""
                    return ready
                if installed.current(name) != slot:
                    continue
            elif slot is None:
                self._wait_for_model(f"no model {name} is active (edged model install, then edged model trial {name})")
            await installed.change(RETRY_S)

    async def _try(self, name: str, slot: Slot) -> Ready | None:
        """Make a slot ready; None when it cannot be: the store was told and knows what that means for the slot."""
        installed = self.shared.installed
        recipe = replace(
            self._recipe(),
            patient=slot.state is not State.TRIAL,
            is_proved=lambda engine: installed.store.is_proved(name, proof_of(slot, engine)),
            on_proved=lambda engine: installed.store.prove(name, proof_of(slot, engine)),
        )
        try:
            await installed.verify(name, slot)
            return await self._make_ready(installed.path(name, slot), recipe)
        except EdgedError as error:
            await installed.could_not_run(name, slot, error)
            self._wait_for_model(str(error))
            return None

    def _wait_for_model(self, reason: str) -> None:
        if self.pipeline is None:
            self._move(Stage.FAILED, reason)

    async def _follow(self, pipeline: Pipeline, current: list[Ready]) -> None:
        """Run what the store says, now and after every change; watch over what is on trial."""
        while True:
            watching = asyncio.create_task(self._watch(pipeline, current[0]), name=f"{pipeline.name}:trial")
            try:
                ready = await self._next()
            finally:
                await end_tasks(watching)
            former, current[0] = current[0], ready
            await pipeline.adopt(ready.bundle, ready.engine, DRAIN_S)
            log.info("model exchanged", extra={"pipeline": pipeline.name, "model": pipeline.model.version})
            await former.end()

    async def _watch(self, pipeline: Pipeline, ready: Ready) -> None:
        """Judge the model that runs for as long as it is on trial."""
        installed, name = self.shared.installed, self.config.model
        judge = Judge(installed.measure, time.monotonic(), pipeline.flow(), ready.engine.facts().restarts)
        while True:
            await asyncio.sleep(WATCH_S)
            slot = installed.current(name)
            if slot is None or slot.digest != ready.bundle.digest:
                continue
            self.slot = slot
            if slot.state is not State.TRIAL:
                continue
            verdict = judge.verdict(pipeline.flow(), ready.engine.facts(), time.monotonic())
            if verdict.reason:
                await installed.taken_back(name, slot, verdict.reason)
            elif verdict.well:
                await installed.went_well(name, slot, self.config.name)
                self.slot = installed.current(name) or slot

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

    def _make_inlet(self, name: str) -> InletSource:
        assert self.bundle is not None
        if self.bundle.name in self.shared.inlets:
            hint = "give the second pipeline no source of type http"
            raise ConfigError(f"model {self.bundle.name} takes requests in another pipeline already", hint)
        inlet = InletSource(name, RejectedFolder(self.shared.rejected_dir))
        self.shared.inlets[self.bundle.name] = inlet
        return inlet

    def _move(self, stage: Stage, reason: str = "") -> None:
        if stage is self.stage:
            return
        if stage not in STEPS[self.stage]:
            raise RuntimeError(f"a lane cannot go from {self.stage.value} to {stage.value}")
        self.stage, self.reason = stage, reason


def worker_spec(name: str, engines: settings.Engines) -> WorkerSpec:
    """How to run an engine, as its table in the configuration says."""
    chosen = engines.onnxruntime
    return WorkerSpec(name, python=chosen.python, deadline_s=chosen.deadline_s, load_deadline_s=chosen.load_deadline_s)
