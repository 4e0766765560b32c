"""A model made ready: verified, its plans derived, proved with its golden data on an engine, or on one of several.

Whose fault a failure is, is said by the error: ``ModelFailed`` is the model's own; every other EdgedError comes of the
device, its disk or its engine. A worker that is killed proves nothing: the next one is asked. Decides nothing about
what follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import statistics
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from edged.bundle.golden_form import load_golden
from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.plans import GraphRefused, ensure_plans
from edged.bundle.selftest import SelftestReport, prove
from edged.engines.engine import WorkerEngine
from edged.engines.life import Job, WorkerSpec
from edged.engines.placed import PlacedEngine
from edged.errors import BundleError, EngineCrashed, EngineError, EngineLost
from edged.placement import Placement
from edged.presence import Presence

log = logging.getLogger(__name__)

Running = WorkerEngine | PlacedEngine
CRASHES = 3  # workers lost by their own doing while they prove a model: one may be an accident, three are none
KILLS = 10  # workers that somebody ends meanwhile, until a model that others wait for is put off
POLL_S = 0.05
MEASURED = 9  # runs of one golden input: the median of so many is steady enough to choose by
RESTING = ("backoff", "quarantined")


class ModelFailed(BundleError):
    """The model itself failed on this device: its golden data, its graph, or workers that it ended."""

    code = "model-failed"


@dataclass(frozen=True, slots=True)
class Ready:
    """A proved model on a running worker; ``end`` it once."""

    bundle: Bundle
    engine: Running
    supervision: asyncio.Task[None]

    async def end(self) -> None:
        """End the worker."""
        await end_tasks(self.supervision)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make a model ready.

    ``patient``: workers that do not come up, or are killed, are replaced as long as it takes. ``crashes``: so many that
    end by their own doing are the model's fault; None: any number is replaced.
    """

    specs: tuple[WorkerSpec, ...]
    max_batch: int
    cache_dir: Path
    fastest: bool = False  # of several engines: the one measured fastest, not the one named first
    standby: bool = False  # keep the next best engine ready, and a worker without a model beside the one that serves
    patient: bool = True
    crashes: int | None = None
    is_proved: Callable[[WorkerEngine], bool] = lambda _: False  # then a short self-test is enough
    on_proved: Callable[[WorkerEngine], None] = lambda _: None
    on_stage: Callable[[Bundle, Running | None], None] = lambda _, __: None  # for whoever watches
    presence: Presence | None = None  # of devices


async def make_ready(path: Path, recipe: Recipe) -> Ready:
    """Raises ModelFailed, or another EdgedError; then nothing is left running."""
    bundle = await asyncio.to_thread(open_bundle, path)
    recipe.on_stage(bundle, None)
    try:
        plans = await ensure_plans(bundle, recipe.cache_dir, [spec.engine for spec in recipe.specs])
    except GraphRefused as error:
        raise ModelFailed(f"its graph is refused: {error.message}", error.hint) from None
    job = Job(bundle, recipe.max_batch, plans, recipe.cache_dir)
    if len(recipe.specs) > 1 or recipe.specs[0].device:
        return await _on_one_of_several(job, bundle, recipe)
    return await _on_the_one(job, bundle, recipe)


async def _on_the_one(job: Job, bundle: Bundle, recipe: Recipe) -> Ready:
    engine = WorkerEngine(recipe.specs[0], job)
    async with _ended_on_failure(bundle, engine, recipe) as ready:
        if not recipe.patient:
            await _stands(engine, recipe)
        await _prove(bundle, engine, recipe)
    if recipe.standby:
        engine.keep_spare()
    return ready


async def _on_one_of_several(job: Job, bundle: Bundle, recipe: Recipe) -> Ready:
    names = [spec.engine for spec in recipe.specs]
    placement = Placement(names, fastest=recipe.fastest, standby=recipe.standby)
    proved: set[tuple[str, str, str]] = set()
    once = replace(recipe, is_proved=lambda one: _what(one) in proved or recipe.is_proved(one))

    async def examine(one: WorkerEngine) -> float | None:
        latency_us = await _examine(bundle, once, one)
        proved.add(_what(one))
        return latency_us

    engine = PlacedEngine(recipe.specs, job, examine, placement)
    if recipe.presence is not None:
        recipe.presence.attend(engine)
    async with _ended_on_failure(bundle, engine, recipe) as ready:
        try:
            await engine.wait_serving(None if recipe.patient else recipe.crashes or 1)
        except EngineLost as error:
            if recipe.crashes is not None and engine.crashes >= recipe.crashes * len(names):
                raise ModelFailed(f"{engine.crashes} workers crashed over it: {error}") from None
            raise
    return ready


def _what(engine: WorkerEngine) -> tuple[str, str, str]:
    """What proves a model: another release of an engine, or another plan, has to prove it anew."""
    facts = engine.facts()
    return facts.name, facts.version, facts.plan


@contextlib.asynccontextmanager
async def _ended_on_failure(bundle: Bundle, engine: Running, recipe: Recipe) -> AsyncIterator[Ready]:
    ready = Ready(bundle, engine, asyncio.create_task(engine.run(), name=f"{bundle.name}:engine"))
    if recipe.presence is not None and isinstance(engine, PlacedEngine):
        ready.supervision.add_done_callback(partial(_left, recipe.presence, engine))
    try:
        recipe.on_stage(bundle, engine)
        yield ready
    except BaseException:  # a cancellation too: what was begun is undone, and it goes on
        await ready.end()
        raise


def _left(presence: Presence, engine: PlacedEngine, _: asyncio.Task[None]) -> None:
    presence.leave(engine)


async def end_tasks(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks and wait for them; what they raise was seen before or comes of the end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _stands(engine: WorkerEngine, recipe: Recipe) -> None:
    """Wait until a worker has the model loaded.

    Raises ModelFailed when the engine refuses it or falls over it, EngineLost when none comes up for another reason.
    """
    try:
        await engine.wait_ready()
        return
    except EngineLost as error:
        why = str(error)
    except EngineError as error:
        raise ModelFailed(f"the engine {engine.name} refuses it: {error}") from None
    while (facts := engine.facts()).state != "quarantined":
        if facts.state == "ready":
            return
        why = facts.reason if facts.state in RESTING else why
        await asyncio.sleep(POLL_S)
    if recipe.crashes is not None and engine.crashes >= recipe.crashes:
        raise ModelFailed(f"{engine.crashes} workers crashed while they loaded it: {why}")
    raise EngineLost(f"no worker came up: {why}")


async def _prove(bundle: Bundle, engine: WorkerEngine, recipe: Recipe) -> None:
    """Raise ModelFailed unless the model proves itself; EngineLost where it is not let."""
    cuts, crashes = 0, 0
    while True:
        try:
            return await _ask(bundle, engine, recipe)
        except EngineLost as error:
            cuts, crashes = cuts + 1, crashes + isinstance(error, EngineCrashed)
            log.warning("self-test was cut short", extra={"model": bundle.name, "reason": str(error)})
            if recipe.crashes is not None and crashes >= recipe.crashes:
                raise ModelFailed(f"{crashes} workers crashed in its self-test: {error}") from None
            if not recipe.patient and cuts >= KILLS:
                raise EngineLost(f"{cuts} workers were lost in its self-test: {error}") from None
        await asyncio.sleep(POLL_S)


async def _examine(bundle: Bundle, recipe: Recipe, engine: WorkerEngine) -> float:
    """Prove the model and measure one golden input, in microseconds. Raises ModelFailed, EngineLost."""
    await _ask(bundle, engine, recipe)
    spec, golden = bundle.inputs[0], load_golden(bundle)
    sample = golden["free.input"][:1].astype(spec.dtype)
    feed = {spec.name: np.ascontiguousarray(np.swapaxes(sample, 0, 1) if spec.sequence else sample)}
    return statistics.median([(await engine.infer(feed)).engine_ns for _ in range(MEASURED)]) / 1000


async def _ask(bundle: Bundle, engine: WorkerEngine, recipe: Recipe) -> None:
    full = not recipe.is_proved(engine)
    _judge(await prove(engine, bundle, full=full))
    if full:
        await asyncio.to_thread(recipe.on_proved, engine)


def _judge(report: SelftestReport) -> None:
    if not report.passed:
        raise ModelFailed(f"{report.bundle.partition('@')[0]} failed its self-test on {report.engine}: {report.reason}")
