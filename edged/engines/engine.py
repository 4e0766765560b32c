"""A model on an engine, as the pipeline sees it: a worker that is started, watched, ended and started again.

``run`` lasts as long as the engine is wanted. Calls wait while there is no worker, in quarantine too: frames are safe
in their bounded queues, and a call that no worker has seen says nothing about its frame. Decides nothing about when to
restart (``edged.supervisor``) and knows no protocol (``client``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

from edged.domain import Array
from edged.engines.client import WorkerAway
from edged.engines.life import Job, WorkerLife, WorkerSpec
from edged.engines.spare import Spare
from edged.errors import EngineAway, EngineCrashed, EngineError, EngineLost
from edged.ports import Inference
from edged.pressure import Held
from edged.status import INTEGRATED, DecisionFacts, EngineFacts, GpuFacts
from edged.supervisor import Budget, Event, State, Supervisor

log = logging.getLogger(__name__)

T = TypeVar("T")


class WorkerEngine:
    """Implements ``edged.ports.Engine``. ``patience_s``: how long a call waits for a worker, None for ever. ``spare``
    belongs to whoever gives it; without one the engine has its own.

    ``on_change`` hears of every worker that is ready (True) or lost (False, and why), before any call can.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        job: Job,
        *,
        budget: Budget | None = None,
        patience_s: float | None = None,
        on_change: Callable[[bool, str], None] = lambda _, __: None,
        spare: Spare | None = None,
    ) -> None:
        self.name = spec.engine
        self.max_batch = job.max_batch
        self.decisions: tuple[DecisionFacts, ...] = ()  # there is nothing to choose
        self.lost = 0  # workers
        self.crashes = 0  # those of them that were lost by their own doing
        self.loss = ""  # why the last worker was lost, for as long as the engine is wanted
        self._spec = spec
        self._job = job
        self._patience_s = patience_s
        self._on_change = on_change
        self._supervisor = Supervisor(budget)
        self._life: WorkerLife | None = None
        self._spare = spare or Spare(spec)
        self._has_own_spare = spare is None
        self._error: EngineError | None = None
        self._obituary: dict[str, object] = {}
        self._ready = asyncio.Event()
        self._tried = asyncio.Event()  # a first worker became ready or was lost
        self._over = False  # there will be no other worker

    # The port

    async def infer(self, inputs: Mapping[str, Array]) -> Inference:
        """Run whole windows, as the Engine port says."""
        return await self._call(lambda life: life.client.infer(inputs))

    async def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run one time step, as the Engine port says."""
        return await self._call(lambda life: life.client.step(inputs, states))

    # Life

    async def run(self) -> None:
        """Keep a worker alive until cancelled."""
        self._move(Event.START)
        try:
            while True:
                error = await self._live()
                if error is None:  # it was worn, and is replaced at once
                    self._move(Event.REPLACE)
                    continue
                pause_s = self._supervisor.lost(str(error))
                self._tell_lost(pause_s)
                await asyncio.sleep(pause_s)
                self._move(Event.RETRY)
        finally:
            if self._supervisor.state is not State.STOPPING:
                self._move(Event.STOP)
            self._move(Event.ENDED)
            self._over = True
            self._ready.set()  # whoever still waits for a worker learns that there will be none
            if self._has_own_spare:
                await self._spare.end()
            log.info("engine stopped", extra=self._extra())

    def keep_spare(self) -> None:
        """Have the next worker wait, warm but without the model, from now on: it costs its memory."""
        if not self._over:
            self._spare.keep()

    @property
    def stands(self) -> bool:
        """Whether a call would find a worker now."""
        return self._life is not None and self._ready.is_set()

    async def wait_ready(self) -> None:
        """Return once the first worker is ready. Raises EngineError if it could not be started or load the model."""
        await self._tried.wait()
        if self._error is not None and not self._ready.is_set():
            raise self._error

    def facts(self) -> EngineFacts:
        """The engine in ``edged status``."""
        life, state = self._life, self._supervisor.state
        model = self._job.model
        reason = self._supervisor.reason if state is not State.READY else ""
        if state is State.LOADING and life is not None:
            reason = life.stage
        return EngineFacts(
            name=self.name,
            model=f"{model.name}@{model.version}",
            state=state.value,
            reason=reason,
            version=life.hello.engine_version if life and life.hello else "",
            plan=life.loaded.plan if life and life.loaded else "",
            pid=life.pid if life else None,
            restarts=self._supervisor.restarts,
        )

    def all_facts(self) -> tuple[EngineFacts, ...]:
        """Every engine that the model may run on: this one."""
        return (self.facts(),)

    def workers(self) -> tuple[WorkerEngine, ...]:
        """Every engine that has a worker now, each with one: this one."""
        return (self,) if self.stands else ()

    def held(self, name: str) -> Held | None:
        """The memory of the worker that is ready; None while there is none. ``name`` is what to call it."""
        return self._life.held(name) if self._life is not None and self.stands else None

    def gpu(self) -> GpuFacts | None:
        """The GPU that the worker has open, as it told it last; None where it has none, or there is no worker."""
        told = self._life.gpu if self._life is not None and self.stands else None
        if told is None:
            return None
        used, total = (told.figures.get(f"memory_{name}_bytes") for name in ("used", "total"))
        return GpuFacts(
            id=told.id or INTEGRATED,
            name=told.name,
            told_by=self.name,
            load_percent=told.figures.get("load_percent"),
            memory_used_bytes=None if used is None else int(used),
            memory_total_bytes=None if total is None else int(total),
            temperature_c=told.figures.get("temperature_c"),
        )

    def recycle(self, why: str) -> None:
        """Have the worker replaced: calls that it has are answered first, and no other is lost."""
        if self._life is not None:
            self._life.recycle(why)

    def oldest_pending_ns(self) -> int | None:
        """Since when the worker is at its present call (CLOCK_BOOTTIME), None when it has none."""
        return self._life.client.oldest_pending_ns() if self._life and self.stands else None

    async def _live(self) -> EngineError | None:
        """One worker from start to end. Returns why it was lost, None when it was only worn."""
        life = self._life = self._spare.take() or WorkerLife(self._spec)
        why: EngineError | None = None
        try:
            await life.start(self._job, self._move)
            self._tell_ready(life)
            self._ready.set()
            self._tried.set()
            self._on_change(True, "")
            lost = await life.watch()
            if life.worn:
                await self._retire(life)
                return None
            why = EngineLost(f"the worker {lost}")
        except EngineError as reason:
            why = reason
        finally:
            self._ready.clear()
            if not life.worn:
                self._on_change(False, str(why or "it was stopped"))
                if why is None:
                    self._move(Event.STOP)
            try:
                await life.end(why)
            finally:  # whoever hears of a loss ends this engine at once, perhaps
                self._bury(life, was_lost=why is not None)
        return self._error

    def _bury(self, life: WorkerLife, *, was_lost: bool) -> None:
        error = life.error
        assert error is not None
        self._error = type(error)(error.message, error.hint)  # without the traceback, which holds the memory
        self._obituary = life.obituary()
        self._life = None
        self._tried.set()
        if was_lost:
            self.lost += 1
            self.crashes += isinstance(error, EngineCrashed)
            self.loss = str(error)

    async def _retire(self, life: WorkerLife) -> None:
        """Hand a worn worker no more calls, and let it finish those that it has."""
        self._ready.clear()
        log.info("engine's worker is replaced", extra=self._extra() | {"reason": life.worn})
        await life.drain()

    async def _call(self, ask: Callable[[WorkerLife], Awaitable[T]]) -> T:
        while True:
            life = await self._standing()
            try:
                life.calls += 1
                answer = await ask(life)
            except WorkerAway:
                await life.ended.wait()
                continue
            self._supervisor.progressed()
            return answer

    async def _standing(self) -> WorkerLife:
        """The worker that is ready. Raises EngineAway when patience ends first."""
        while self._life is None or not self.stands:
            if self._over:
                raise EngineAway("the engine was stopped")
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._ready.wait()
            except TimeoutError:
                reason = self._supervisor.reason or self._supervisor.state.value
                raise EngineAway(f"no worker became ready within {self._patience_s:g} s: {reason}") from None
        return self._life

    def _move(self, event: Event) -> None:
        self._supervisor.move(event)

    def _tell_ready(self, life: WorkerLife) -> None:
        assert life.loaded is not None
        more = {"plan": life.loaded.plan, "start_s": round(life.start_s, 3), **life.loaded.timings}
        log.info("engine ready", extra=self._extra() | more)

    def _tell_lost(self, pause_s: float) -> None:
        resting = "left alone for a while" if self._supervisor.state is State.QUARANTINED else "starting it again"
        more = {
            "reason": self._supervisor.reason,
            "pause_s": round(pause_s, 3),
            "failures": self._supervisor.failures,
        }
        log.warning(f"engine lost; {resting}", extra=self._extra() | self._obituary | more)

    def _extra(self) -> dict[str, object]:
        model = self._job.model
        return {"engine": self.name, "model": f"{model.name}@{model.version}", "pid": self.facts().pid}


@contextlib.asynccontextmanager
async def open_engine(spec: WorkerSpec, job: Job) -> AsyncIterator[WorkerEngine]:
    """An engine for the length of a block: ready when it begins, its worker ended after it.

    Raises EngineError when the engine cannot be started or cannot load the model.
    """
    engine = WorkerEngine(spec, job, patience_s=spec.load_deadline_s)
    running = asyncio.create_task(engine.run(), name=f"engine:{spec.engine}")
    try:
        await engine.wait_ready()
        yield engine
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
