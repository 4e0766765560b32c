"""One life of a worker: its process, its connection, its model, from the spawn to the reaped end."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edged.engines.client import HUNG_UP, WorkerClient
from edged.engines.hosted import HostedWorker
from edged.engines.memory import SharedMemory, model_layout
from edged.engines.process import WorkerProcess, command
from edged.engines.wire import Exit, Gpu, Hello, Load, Loaded
from edged.engines.wire_json import WireError
from edged.errors import EngineCrashed, EngineError, EngineLost
from edged.ports import Model
from edged.pressure import Held
from edged.supervisor import Event

WATCH_S = 5.0  # between two looks at a worker: cheap, and a leak or a silent death shows in time
GROWN = 0.75  # of what it may grow: then it is replaced in peace, before the limit takes it in the middle of a call
DRAIN_POLL_S = 0.005
BYE_S = 2.0  # to end by itself after BYE
EXIT_S = 1.0  # between the end of the socket and the exit, which names the cause
LAST_WORDS = 300  # characters of a reason; a traceback ends with the line that matters, the log has the rest
MEMORY_LIMIT = 1 << 30  # bytes; a spiking model on a CPU takes a tenth of it


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """How to run an engine. ``python`` is its interpreter, empty for the daemon's own."""

    engine: str
    python: str = ""
    deadline_s: float = 5.0  # of one call
    load_deadline_s: float = 60.0  # from the spawn to LOADED
    memory_limit_bytes: int = MEMORY_LIMIT
    recycle_calls: int = 0  # after so many calls a new worker takes its place; 0: never
    device: str = ""  # that it needs, by kind, short name or link; empty: none
    engine_file: Path | None = None  # a class ``Engine`` of somebody else's, instead of an engine of ours
    host: Path | None = None  # a socket behind which systemd starts workers; where nobody made it, the daemon does
    foreign: bool = False  # the daemon's own interpreter can never run it

    def missing(self) -> str:
        """Why a worker cannot even be started, empty if it can."""
        if self.python:
            return "" if shutil.which(self.python) else f"there is no interpreter {self.python}"
        if not self.foreign or (self.host is not None and self.host.is_socket()):
            return ""
        package = self.engine.partition("-")[0]
        return f"it needs an interpreter of its own: install edged-{package}, or set engines.{package}.python"


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to run, and where its plans are."""

    model: Model
    max_batch: int
    plan_dir: Path
    cache_dir: Path

    def load(self, memory: SharedMemory, deadline_s: float) -> Load:
        """As the worker hears it."""
        model = self.model
        paths = [str(path.absolute()) for path in (model.path, self.plan_dir, self.cache_dir)]
        name = f"{model.name}@{model.version}"
        return Load(name, model.digest, paths[0], paths[1], paths[2], deadline_s, memory.layout)


class WorkerLife:
    """One worker. ``ended`` is set when it is gone and every call to it has failed."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.ended = asyncio.Event()
        self.hello: Hello | None = None
        self.loaded: Loaded | None = None
        self.start_s = 0.0
        self.calls = 0
        self.error: EngineError | None = None  # what its calls failed with, once it is gone
        self.worn = ""  # why it is to be replaced, though it works
        self._unwanted: asyncio.Future[str] | None = None  # somebody else's reason, while it is watched
        self._held_first: int | None = None  # bytes of memory, after the first calls
        self._process: WorkerProcess | HostedWorker | None = None
        self._client: WorkerClient | None = None

    @property
    def client(self) -> WorkerClient:
        """The connection of a worker that was started."""
        assert self._client is not None
        return self._client

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        alive = self._process is not None and not self._process.exited.done()
        return self._process.pid if alive and self._process else None

    def obituary(self) -> dict[str, object]:
        """What the log says of a worker that is gone."""
        return {"pid": self._process.pid, "said": self._process.said} if self._process else {}

    @property
    def stage(self) -> str:
        """What a loading worker does now."""
        return self._client.stage if self._client else ""

    async def start(self, job: Job, on_event: Callable[[Event], object]) -> None:
        """Spawn, greet (unless that is done), load. Raises EngineError, EngineLost; ``end`` must follow either way."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.spec.load_deadline_s):
                await self._meet(on_event)
                memory = SharedMemory(model_layout(job.model, job.max_batch))
                self.loaded = await self.client.load(job.load(memory, self.spec.load_deadline_s), memory)
        except TimeoutError:
            at = f" (it was at: {self.stage})" if self.stage else ""
            limit = f"{self.spec.load_deadline_s:g} s"
            raise EngineLost(f"the worker did not load the model within {limit}{at}") from None
        except WireError as error:
            raise EngineError(f"the model cannot be handed to a worker: {error}") from None
        except OSError as error:
            raise EngineLost(f"cannot start a worker: {error}") from None
        self.start_s = time.monotonic() - began
        on_event(Event.LOADED)

    async def meet(self) -> Hello:
        """Spawn and greet, to see who is there. Raises EngineError, EngineLost; ``end`` must follow either way."""
        try:
            async with asyncio.timeout(self.spec.load_deadline_s):
                return await self._meet(lambda _: None)
        except OSError as error:
            raise EngineLost(f"cannot start a worker: {error}") from None
        except TimeoutError:
            raise EngineLost(f"the worker said nothing within {self.spec.load_deadline_s:g} s") from None

    async def _meet(self, on_event: Callable[[Event], object]) -> Hello:
        if self._client is None:
            self._spawn()
        on_event(Event.SPAWNED)
        if self.hello is None:
            self.hello = await self.client.greet(self.spec.engine)
        on_event(Event.GREETED)
        return self.hello

    async def watch(self) -> str:
        """Return why the worker is lost, once it is. A worker that is worn is not: then the answer is empty."""
        assert self._process is not None
        self._unwanted = asyncio.get_running_loop().create_future()
        while not self.client.lost.done():
            held = self._process.memory_bytes()
            if held > self.spec.memory_limit_bytes:
                return f"holds {held >> 20} MiB of memory, at most {self.spec.memory_limit_bytes >> 20} are allowed"
            self.worn = self._wear(held)
            if self.worn:
                return ""
            self.client.ping()
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait([self.client.lost, self._unwanted], timeout=WATCH_S, return_when=first)
        return self.client.lost.result()

    @property
    def gpu(self) -> Gpu | None:
        """The GPU that the worker computes on, as it told it last."""
        return self._client.gpu if self._client else None

    def held(self, name: str) -> Held | None:
        """The memory that the worker holds now; None unless it serves."""
        if self._process is None or self._unwanted is None or self.worn:
            return None
        return Held(name, self._process.memory_bytes(), self._held_first)

    def recycle(self, why: str) -> None:
        """Let a new worker take its place soon, in peace."""
        if self._unwanted is not None and not self._unwanted.done():
            self._unwanted.set_result(why)

    async def drain(self) -> None:
        """Wait for the answers to the calls that the worker has; at most for the deadline of one."""
        end = time.monotonic() + self.spec.deadline_s
        while self.client.oldest_pending_ns() is not None and time.monotonic() < end:
            await asyncio.sleep(DRAIN_POLL_S)

    def _wear(self, held: int) -> str:
        """Why a new worker is better than this one, though it works; empty: it is not."""
        if self._held_first is None and self.calls and held:
            self._held_first = held
        limit = self.spec.memory_limit_bytes
        if self._held_first is not None and held - self._held_first > (limit - self._held_first) * GROWN:
            return f"grew from {self._held_first >> 20} to {held >> 20} MiB"
        if self._unwanted is not None and self._unwanted.done():
            return self._unwanted.result()
        if self.spec.recycle_calls and self.calls >= self.spec.recycle_calls:
            return f"answered {self.calls} calls"
        return ""

    async def end(self, why: EngineError | None = None) -> EngineError:
        """End the process with all that it started, then fail the calls. Without ``why`` the worker is told first.

        Returns ``error``: the cause, as far as it is known, and the worker's last line. Cancelled, it still reaps the
        process and fails the calls before it ends. Safe to call twice.
        """
        error = why or EngineLost("the worker was stopped")
        try:
            if self._process is not None and self._client is not None and not self.ended.is_set():
                hung_up = self._client.lost.done() and self._client.lost.result() == HUNG_UP
                if why is None:
                    self._client.say_bye()
                try:
                    await self._process.end(BYE_S if why is None else EXIT_S if hung_up else 0.0)
                finally:
                    error = self._explain(error, own_doing=why is not None and self._own_doing())
                    self._client.close(error)
        finally:
            self.error = self.error or error
            self.ended.set()
        return self.error

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client = WorkerClient(ours, self.spec.deadline_s)
        try:
            self._process = self._start(theirs.fileno(), client.hang_up)
        except (OSError, EngineLost):
            client.close(EngineLost("not started"))
            raise
        finally:
            theirs.close()
        self._client = client

    def _start(self, fd: int, on_exit: Callable[[], None]) -> WorkerProcess | HostedWorker:
        """In a unit of its own where systemd offers one for its engine, else as a child. Raises EngineLost, OSError."""
        if self.spec.host is not None and self.spec.host.is_socket():
            return HostedWorker(self.spec.host, self.spec.engine, fd, on_exit)
        python = self.spec.python or sys.executable
        arguments = [self.spec.engine, "--fd", str(fd), "--parent", str(os.getpid())]
        if self.spec.engine_file is not None:
            arguments += ["--engine-file", str(self.spec.engine_file.absolute())]
        try:
            return WorkerProcess(command(python, arguments), fd, on_exit)
        except OSError as error:
            table = self.spec.engine.partition("-")[0]  # engines of one package share a table
            setting = f"set engines.{table}.python to an interpreter that has the engine's package"
            hint = setting if isinstance(error, FileNotFoundError | PermissionError) else ""
            raise EngineLost(f"cannot start {python}: {error.strerror}", hint) from None

    def _own_doing(self) -> bool:
        """Whether a lost worker, with its model, has to answer for that: once it serves, for all but a kill."""
        assert self._process is not None
        if self._process.killed_by_others:
            return False
        return self.loaded is not None or self._process.faulted

    def _explain(self, error: EngineError, *, own_doing: bool) -> EngineError:
        assert self._process is not None
        ending, words = self._process.ending(), self._process.said.rpartition("\n")[2][-LAST_WORDS:]
        if not isinstance(error, EngineLost):  # the worker said why itself
            return error
        parts = [error.message.replace(HUNG_UP, ending) if ending and HUNG_UP in error.message else error.message]
        parts += [f"it {ending}"] if ending and ending not in parts[0] else []
        parts += [f"its last words: {words}"] if words else []
        missing = f"install the package of {self.spec.engine} for {self.spec.python or sys.executable}"
        kind = EngineCrashed if own_doing else EngineLost
        return kind("; ".join(parts), missing if Exit.NO_ENGINE.name in ending else error.hint)
