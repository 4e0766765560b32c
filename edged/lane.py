"""A lane: one configured pipeline with everything that it needs, from bundle to sources, and how far it has come.

A lane prepares itself (verify the bundle, derive plans, start the engine, prove the model on it), then runs. A model
that fails its proof is never used. A lane that cannot run says why and leaves the other lanes alone.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from dataclasses import dataclass, field
from pathlib import Path

from edged import config as settings
from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.plans import ensure_plans
from edged.bundle.selftest import prove
from edged.engines.engine import WorkerEngine
from edged.engines.life import Job, WorkerSpec
from edged.errors import BundleError, ConfigError, EdgedError, EngineLost
from edged.pipeline import Pipeline
from edged.ports import Engine, Inlet, Model, ResultStore, Source
from edged.sources.inlet import InletSource
from edged.sources.rejected import RejectedFolder
from edged.sources.replay import ReplaySource
from edged.sources.spool import SpoolSource

log = logging.getLogger(__name__)

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
    Stage.PROVING: {Stage.RUNNING, Stage.FAILED, Stage.STOPPING},
    Stage.RUNNING: {Stage.FAILED, Stage.STOPPING},
    Stage.FAILED: {Stage.STOPPING},
    Stage.STOPPING: set(),
}


@dataclass(frozen=True, slots=True)
class Shared:
    """What all lanes share. The console serves ``models`` and ``inlets``, by model name, as lanes bring them."""

    store: ResultStore
    engines: settings.Engines
    cache_dir: Path
    rejected_dir: Path
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
    pipeline: Pipeline | None = None
    source_reasons: dict[str, str] = field(default_factory=dict)

    async def run(self) -> None:
        """Prepare, prove and run until cancelled. Only a defect of ours makes this raise."""
        try:
            bundle = self.bundle = await asyncio.to_thread(open_bundle, self.config.model)
            plans = await ensure_plans(bundle, self.shared.cache_dir)
            self.shared.models[bundle.name] = bundle
            await self._run_engine(self._make_engine(bundle, plans), bundle)
        except EdgedError as error:
            self._move(Stage.FAILED, str(error))
            log.error("pipeline cannot run", extra={"pipeline": self.config.name, "reason": str(error)})

    def _make_engine(self, bundle: Bundle, plans: Path) -> WorkerEngine:
        spec = worker_spec(self.config.engines[0], self.shared.engines)
        self.engine = WorkerEngine(spec, Job(bundle, self.config.max_batch, plans, self.shared.cache_dir))
        return self.engine

    async def _run_engine(self, engine: WorkerEngine, bundle: Bundle) -> None:
        supervision = asyncio.create_task(engine.run(), name=f"{self.config.name}:engine")
        try:
            self._move(Stage.PROVING)
            await _prove(engine, bundle)
            await self._run_pipeline(engine, bundle)
        finally:
            await _end(supervision)

    async def _run_pipeline(self, engine: WorkerEngine, bundle: Bundle) -> None:
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
        work = asyncio.create_task(pipeline.run(), name=f"{pipeline.name}:pipeline")
        feeds = [asyncio.create_task(self._feed(source, pipeline), name=source.name) for source in sources]
        try:
            done, _ = await asyncio.wait({work, *feeds}, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            self._move(Stage.STOPPING)
            await _end(*feeds)
            await pipeline.drain(DRAIN_S)
            await _end(work)

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


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks and wait for them; what they raise was seen before or comes of the end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def worker_spec(name: str, engines: settings.Engines) -> WorkerSpec:
    """How to run an engine, as its table in the configuration says."""
    chosen = engines.onnxruntime
    return WorkerSpec(name, python=chosen.python, deadline_s=chosen.deadline_s, load_deadline_s=chosen.load_deadline_s)


async def _prove(engine: Engine, bundle: Bundle) -> None:
    """Raise BundleError unless the model proves itself; a worker that dies meanwhile proves nothing, so: again."""
    while True:
        try:
            report = await prove(engine, bundle)
            break
        except EngineLost as error:
            log.warning("self-test was cut short", extra={"model": bundle.name, "reason": str(error)})
    if not report.passed:
        raise BundleError(f"{bundle.name} failed its self-test on {engine.name}: {report.reason}")
