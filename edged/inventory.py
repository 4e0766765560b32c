"""``edged engines``: which engines are here, why not, and what they can run. Runs beside a daemon and changes nothing.

An engine is asked by starting its worker; a model is asked for by loading it, and proved if that is wanted. Nothing of
a running daemon is touched: every worker is our own, with a cache that is thrown away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from edged import config as settings
from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.plans import ensure_plans
from edged.bundle.selftest import prove
from edged.bundle.store.store import current_path
from edged.engines.engine import open_engine
from edged.engines.life import Job, WorkerLife
from edged.errors import EdgedError, EngineError
from edged.workbench import Workbench, workbench


class Runs(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an engine runs a model, and why not."""

    model: str
    runs: bool
    reason: str = ""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One engine. ``reason`` says why it is not present."""

    engine: str
    present: bool
    version: str = ""
    python: str = ""
    reason: str = ""
    models: tuple[Runs, ...] = ()


def look(config: settings.Config, *, thorough: bool) -> Iterator[Found]:
    """Every engine that we know, one after the other. ``thorough``: models prove themselves, not only load."""
    models = list(_models(config))
    for engine in settings.ENGINES:
        with workbench(config, engine) as bench:
            found = asyncio.run(_look(bench, models, thorough=thorough))
        yield found


def show(found: Iterable[Found]) -> Iterator[str]:
    """Lines for a person."""
    for one in found:
        if one.present:
            yield f"{one.engine:16}present   version {one.version}, Python {one.python}"
        else:
            yield f"{one.engine:16}absent    {one.reason}"
        for model in one.models:
            yield f"    {model.model:28}{'runs' if model.runs else f'does not run: {model.reason}'}"


def _models(config: settings.Config) -> Iterator[tuple[str, Bundle | str]]:
    """The models that pipelines name, each once, or why one cannot be had."""
    for model in dict.fromkeys(pipeline.model for pipeline in config.pipeline):
        path = Path(model) if "/" in model else None
        try:
            bundle = open_bundle(path or current_path(config.device.models_dir, model))
        except EdgedError as error:
            yield model, str(error)
        else:
            yield f"{bundle.name}@{bundle.version}", bundle


async def _look(bench: Workbench, models: Sequence[tuple[str, Bundle | str]], *, thorough: bool) -> Found:
    engine = bench.spec.engine
    life = WorkerLife(bench.spec)
    try:
        hello = await life.meet()
    except EngineError as error:
        return Found(engine=engine, present=False, reason=str(await life.end(error)))
    await life.end()
    runs = [await _runs(bench, name, model, thorough=thorough) for name, model in models]
    return Found(engine=engine, present=True, version=hello.engine_version, python=hello.python, models=tuple(runs))


async def _runs(bench: Workbench, name: str, model: Bundle | str, *, thorough: bool) -> Runs:
    if isinstance(model, str):
        return Runs(model=name, runs=False, reason=model)
    try:
        job = Job(model, 1, await ensure_plans(model, bench.cache, [bench.spec.engine]), bench.cache)
        async with open_engine(bench.spec, job) as running:
            reason = (await prove(running, model)).reason if thorough else ""
    except EdgedError as error:
        return Runs(model=name, runs=False, reason=error.message)
    return Runs(model=name, runs=not reason, reason=reason)
