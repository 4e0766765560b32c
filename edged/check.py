"""``edged check``: looks at everything that a configuration names, as the daemon would, and changes nothing.

Each finding is one line with what was looked at and what to do. Runs beside a running daemon.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edged import config as settings
from edged.bundle.loaded import open_bundle
from edged.bundle.plans import ensure_plans
from edged.bundle.selftest import prove
from edged.bundle.store.store import current_path
from edged.devices.boards import BoardProbe
from edged.engines.engine import open_engine
from edged.engines.life import Job
from edged.errors import EdgedError
from edged.feeder_config import EventsFeeder, MqttFeeder, RtspFeeder
from edged.hardware_config import Board
from edged.workbench import Workbench, workbench

LIBRARIES = {EventsFeeder: ("", ""), MqttFeeder: ("paho", "mqtt"), RtspFeeder: ("av", "rtsp")}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``problem`` is empty when it is well."""

    what: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Who:
    """Whose rights count: a user, with every group that it is in."""

    uid: int
    groups: frozenset[int]

    def may(self, path: Path, mode: int) -> bool:
        """Whether it may use an existing file so (``os.R_OK``, ``os.W_OK``, ``os.X_OK``), and reach it.

        Of another user only owner, group and mode are known; access lists are not looked at. Raises OSError.
        """
        if self.uid == os.geteuid():
            return os.access(path, mode)
        if self.uid == 0:
            return True
        reached = all(self._has(parent, os.X_OK) for parent in path.resolve().parents)
        return reached and self._has(path, mode)

    def _has(self, path: Path, mode: int) -> bool:
        found = path.stat()
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid in self.groups else 0
        return stat.S_IMODE(found.st_mode) >> shift & mode == mode


async def _board(board: Board) -> str:
    """Why a board on Ethernet cannot be used, or nothing."""
    probe = BoardProbe([board])
    try:
        return (await probe.ask(board)).problem
    finally:
        probe.close()


def me() -> Who:
    """Whoever runs this process."""
    return Who(os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))


def check(config: settings.Config) -> Iterator[Finding]:
    """Look at directories, sources, and each pipeline's model on each of its engines, the self-test included."""
    yield from places(config, me())
    yield from (Finding(f"board {one.name} at {one.address}", asyncio.run(_board(one))) for one in config.board)
    for pipeline in config.pipeline:
        yield from (model(pipeline, engine, config) for engine in pipeline.engines)
    yield from feeders(config)
    if config.models.allow_unsigned:
        yield Finding("models", "allow_unsigned is set: bundles without a signature are taken (for development only)")


def places(config: settings.Config, who: Who) -> Iterator[Finding]:
    """Look at the directories that the daemon writes, and at what its sources read."""
    for place in (config.device.state_dir, config.device.runtime_dir):
        yield Finding(f"directory {place}", _writable(place, who))
    for source in (source for pipeline in config.pipeline for source in pipeline.source):
        if isinstance(source, settings.SpoolSource):
            yield Finding(f"spool {source.path}", _writable(source.path, who))
        if isinstance(source, settings.SerialWindowsSource):
            yield Finding(f"line {source.path}", _line(source.path, who))
        if isinstance(source, settings.CameraSource):
            yield Finding(f"camera {source.device}", _camera(source.device, who))


def feeders(config: settings.Config) -> Iterator[Finding]:
    """Look whether somebody takes what feeders bring, and whether they have their libraries."""
    asked = {_model_name(one) for one in config.pipeline if _takes_requests(one)}
    for feeder in config.feeder:
        library, extra = LIBRARIES[type(feeder)]
        if feeder.model not in asked:
            problem = f"no pipeline with model {feeder.model} has a source of type http"
        elif library and importlib.util.find_spec(library) is None:
            problem = f"it needs {library} (pip install edged[{extra}])"
        else:
            problem = ""
        yield Finding(f"feeder {feeder.name}", problem)


def _takes_requests(pipeline: settings.Pipeline) -> bool:
    return any(isinstance(source, settings.HttpSource) for source in pipeline.source)


def _model_name(pipeline: settings.Pipeline) -> str:
    """The name under which a pipeline's model is asked; empty where its bundle cannot be read (told elsewhere)."""
    try:
        return open_bundle(pipeline.bundle_dir).name if pipeline.bundle_dir else pipeline.model
    except EdgedError:
        return ""


def _writable(directory: Path, who: Who) -> str:
    """Why a directory cannot be used, or nothing. One that is not there yet must be creatable."""
    there = next(parent for parent in (directory, *directory.parents) if parent.exists())
    if not there.is_dir():
        return f"{there} is not a directory"
    return "" if who.may(there, os.W_OK | os.X_OK) else f"{there} is not writable for user {who.uid}"


def _line(path: Path, who: Who) -> str:
    """Why a line cannot be read, or nothing."""
    if not path.exists():
        return "is not there; the source waits for it"
    if not path.is_char_device() and not path.is_fifo():
        return "is no serial line, FIFO or IIO buffer"
    return "" if who.may(path, os.R_OK) else f"is not readable for user {who.uid}"


def _camera(path: Path, who: Who) -> str:
    """Why a camera cannot be used, or nothing."""
    if importlib.util.find_spec("linuxpy") is None:
        return "cameras need linuxpy (pip install edged[camera])"
    if not path.exists():
        return "is not there; the source waits for it"
    if not path.is_char_device():
        return "is no camera"
    return "" if who.may(path, os.R_OK | os.W_OK) else f"is not for user {who.uid} to use (docs/devices.md)"


def model(pipeline: settings.Pipeline, engine: str, config: settings.Config) -> Finding:
    """Let a pipeline's model prove itself on one engine, in a worker of our own."""
    what = f"pipeline {pipeline.name}: model {pipeline.model} on {engine}"
    try:
        with workbench(config, engine) as bench:
            problem = asyncio.run(_prove(pipeline, config, bench))
    except EdgedError as error:
        problem = str(error)
    return Finding(what, problem)


async def _prove(pipeline: settings.Pipeline, config: settings.Config, bench: Workbench) -> str:
    bundle = open_bundle(pipeline.bundle_dir or current_path(config.device.models_dir, pipeline.model))
    plans = await ensure_plans(bundle, bench.cache, [bench.spec.engine])
    async with open_engine(bench.spec, Job(bundle, pipeline.max_batch, plans, bench.cache)) as running:
        report = await prove(running, bundle)
    return report.reason
