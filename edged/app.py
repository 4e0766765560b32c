"""The composition root: builds the daemon's parts in order, runs them in one TaskGroup, and stops them in reverse.

Start: lock → buffer → console → lanes (bundle, plans, engine, proof, sources). The console answers while lanes prepare,
so that a slow start can be watched. Stop: sources → frames under way → engines → console → buffer → lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import msgspec

from edged import config as settings
from edged.buffer.store import SegmentStore, StoreSettings
from edged.bundle.store import control, incoming, requests
from edged.bundle.store.store import ModelStore
from edged.bundle.store.trust import Trust
from edged.console.app import Console
from edged.console.server import local_address, open_socket, open_unix_socket
from edged.errors import ConfigError
from edged.governor import Governor
from edged.host import systemd
from edged.installed import Installed, Measure
from edged.lane import Lane, Shared
from edged.presence import Presence
from edged.report import Report
from edged.sources.decode import decode

log = logging.getLogger(__name__)

STATUS_EVERY_S = 1.0  # how old status.json may be; it lies on a tmpfs, so it wears out nothing
STUCK_S = 30.0  # a call this far past its deadline means that the daemon no longer ends what hangs
STOPPED = 0


def run(config: settings.Config) -> int:
    """Run the daemon until SIGTERM or SIGINT. Raises EdgedError when it cannot start."""
    return asyncio.run(_main(config))


async def _main(config: settings.Config) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    with _directories(config.device):
        async with (
            SegmentStore(store_settings(config), config.device.id) as store,
            _opened(model_store(config)) as models,
        ):
            await _Daemon(config, store, models).run(stop)
    return STOPPED


def model_store(config: settings.Config) -> ModelStore:
    """The store of installed models, as the configuration says; not open yet."""
    trust = Trust(config.device.trust_dir, config.models.trusted_keys, config.models.allow_unsigned)
    return ModelStore(config.device.models_dir, trust)


@contextlib.asynccontextmanager
async def _opened(models: ModelStore) -> AsyncIterator[ModelStore]:
    """The model store while a daemon runs, which is its only writer then."""
    await asyncio.to_thread(models.open, daemon=True)
    try:
        yield models
        await asyncio.to_thread(models.stop_trials)
    finally:
        models.close()


def store_settings(config: settings.Config) -> StoreSettings:
    """The buffer's settings, as the configuration says."""
    return StoreSettings(
        directory=config.device.buffer_dir,
        cap_bytes=config.buffer.cap_mb << 20,
        segment_bytes=config.buffer.segment_mb << 20,
        keep_s=config.buffer.keep_hours * 3600,
        frame_identity=config.buffer.frame_identity,
        priorities={pipeline.name: pipeline.priority for pipeline in config.pipeline},
        ack_file=config.device.sync_dir / "ack.json",
    )


class _Daemon:
    """The parts of one running daemon."""

    def __init__(self, config: settings.Config, store: SegmentStore, models: ModelStore) -> None:
        self._device = config.device
        self._http = config.http
        state = config.device.state_dir
        self._models = models
        self._used = config.installed_models
        measure = Measure(config.models.trial_results, config.models.trial_s)
        installed = Installed(models, measure, {name: set(users) for name, users in self._used.items()})
        hosts = config.device.hosts_dir
        self._presence = Presence(config.board, hosts / "boards.sock")
        rejected = state / "rejected"
        self._shared = Shared(
            store, config.engines, config.device.cache_dir, rejected, installed, self._presence, hosts
        )
        self._lanes = [Lane(pipeline, self._shared) for pipeline in config.pipeline]
        self._governor = Governor(config.pressure, self._lanes)
        self._report = Report(config.device, self._lanes, store, self._presence.watch, self._governor)
        self._notifier = systemd.Notifier()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set."""
        handed_over = list(itertools.chain.from_iterable(systemd.listen_sockets().values()))
        sockets = handed_over or [open_socket(self._http.host, self._http.port)]
        _announce(self._device.runtime_dir, sockets)
        sockets.append(open_unix_socket(self._device.runtime_dir))
        self._shared.installed.attach()
        async with asyncio.TaskGroup() as services:
            running = [
                services.create_task(self._console().serve(sockets), name="console"),
                services.create_task(self._presence.watch.run(), name="devices"),
                services.create_task(self._governor.run(), name="pressure"),
                services.create_task(self._write_status(), name="status"),
                services.create_task(control.serve(self._device.runtime_dir, self._perform), name="control"),
                services.create_task(incoming.watch(self._models, self._device.incoming_dir), name="incoming"),
                services.create_task(self._notifier.watch(self._makes_progress), name="watchdog"),
            ]
            self._notifier.ready(self._report.line())
            await self._run_lanes(stop)
            for task in running:
                task.cancel()
        self._save_status()

    async def _run_lanes(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as lanes:
            running = [lanes.create_task(lane.run(), name=lane.config.name) for lane in self._lanes]
            await stop.wait()
            self._report.stopping = True
            self._notifier.stopping()
            log.info("stopping")
            for task in running:
                task.cancel()

    def _console(self) -> Console:
        return Console(
            status=self._report.status,
            models=self._shared.models,
            inlets=self._shared.inlets,
            decode=decode,
            progress=self._makes_progress,
        )

    def _perform(self, request: requests.Request) -> requests.Done:
        """Do what a command asks of the model store."""
        return requests.perform(self._models, request, self._device.incoming_dir, used=self._used, running=True)

    async def _write_status(self) -> None:
        """Keep ``status.json`` and systemd's status line current."""
        while True:
            self._presence.assign()
            self._save_status()
            self._notifier.status(self._report.line())
            await asyncio.sleep(STATUS_EVERY_S)

    def _save_status(self) -> None:
        file = self._device.runtime_dir / "status.json"
        try:
            _replace(file, msgspec.json.encode(self._report.status()))
        except OSError as error:
            log.warning("status cannot be written", extra={"path": str(file), "reason": str(error)})

    def _makes_progress(self) -> bool:
        """No pending work past its deadline: an idle pipeline and a long plan build make progress too."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        engines = [lane.engine for lane in self._lanes if lane.engine is not None]
        pending = [since for since in (engine.oldest_pending_ns() for engine in engines) if since is not None]
        deadlines = [
            self._shared.engines.worker(name).deadline_s for lane in self._lanes for name in lane.config.engines
        ]
        limit_s = max(deadlines) + STUCK_S
        return all(now_ns - since < limit_s * 1e9 for since in pending)


@contextlib.contextmanager
def _directories(device: settings.Device) -> Iterator[None]:
    """Make the daemon's directories and hold them alone. Raises ConfigError."""
    try:
        device.runtime_dir.mkdir(parents=True, exist_ok=True)
        device.state_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(device.state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
    except OSError as error:
        hint = "the daemon must be able to write device.state_dir and device.runtime_dir"
        raise ConfigError(f"{error.filename}: {error.strerror}", hint) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another daemon holds {device.state_dir}", "stop it first: one daemon a state") from None
        yield
    finally:
        os.close(lock)


def _announce(runtime_dir: Path, sockets: Sequence[socket.socket]) -> None:
    """Write down where the console listens, for ``edged status``."""
    host, port = local_address(sockets)
    _replace(runtime_dir / "http.json", msgspec.json.encode({"host": host, "port": port}))
    log.info("console listens", extra={"address": f"http://{host}:{port}/"})


def _replace(file: Path, data: bytes) -> None:
    """Put a file in place whole; readers never see half of it."""
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(data)
    part.replace(file)
