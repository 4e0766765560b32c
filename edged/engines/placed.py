"""One model on several engines, as the pipeline sees it: whichever serves gets the calls.

``edged.placement`` decides; this file does it: starts workers, has the model proved on them, hands the calls over, ends
what is not needed. A call that no worker has seen goes to the next one that serves; a call that a worker died of comes
back to the caller as lost. Calls wait while nothing serves. Every decision is a line in the log and is remembered for
the status.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from edged.domain import Array
from edged.engines.engine import WorkerEngine
from edged.engines.life import Job, WorkerSpec
from edged.engines.spare import Spare
from edged.errors import EdgedError, EngineAway, EngineError, EngineLost, EngineRefused
from edged.placement import Act, Decision, Event, Placement, Site, State
from edged.ports import Inference
from edged.status import DecisionFacts, EngineFacts
from edged.supervisor import Budget

log = logging.getLogger(__name__)

T = TypeVar("T")

DECISIONS = 20  # remembered for the status
DRAIN_S = 2.0  # calls under way on an engine that is relieved get this long; then they go to the next one
AWAY_S = 0.005  # a worker that is away was lost, which is acted upon at once, or is being replaced
GONE_S = 0.5  # calls under way on a device that was pulled: they fail by themselves, or never
LOOK_S = 10.0  # between two looks for what is absent

Examine = Callable[[WorkerEngine], Awaitable[float | None]]
"""Proves the model on an engine; returns microseconds of one golden input. Raises EngineLost when it was not let, any
other EdgedError when the model is not to run there."""


@dataclass(eq=False, slots=True)
class _Post:
    """An engine with a worker, and how many calls are with it."""

    engine: WorkerEngine
    task: asyncio.Task[None]
    calls: int = 0
    proof: asyncio.Task[None] | None = None


class PlacedEngine:
    """Implements ``edged.ports.Engine`` on the engines of ``specs``, best first. ``run`` it as long as it is wanted."""

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        job: Job,
        examine: Examine,
        placement: Placement | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.max_batch = job.max_batch
        self.placement = placement or Placement([spec.engine for spec in specs])
        self.decisions: deque[DecisionFacts] = deque(maxlen=DECISIONS)
        self._specs = {spec.engine: spec for spec in specs}
        self._job = job
        self._examine = examine
        self._budget = budget
        self._name = specs[0].engine
        self._posts: dict[str, _Post] = {}
        self._devices: dict[str, str] = {}  # why the device of an engine is not here
        self._errors: dict[str, EdgedError] = {}  # why an engine does not serve
        self._leaving: set[_Post] = set()  # being ended
        self._spares = {spec.engine: Spare(spec) for spec in specs}  # they outlive an engine that gave way
        self._ended_lost = 0
        self._ended_crashes = 0
        self._ended_loss = ""
        self._pulse = asyncio.Event()  # replaced at every change
        self._looked_s = float("-inf")
        self._proofs: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.Task[None]] = set()
        self._defect: BaseException | None = None  # of a task of ours
        self._over = False

    # The port

    @property
    def name(self) -> str:
        """The engine that serves, or did last."""
        return self._name

    async def infer(self, inputs: Mapping[str, Array]) -> Inference:
        """Run whole windows, as the Engine port says."""
        name, answer = await self._call(lambda engine: engine.infer(inputs))
        return replace(answer, engine=name)

    async def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run one time step, as the Engine port says."""
        return (await self._call(lambda engine: engine.step(inputs, states)))[1]

    async def _call(self, ask: Callable[[WorkerEngine], Awaitable[T]]) -> tuple[str, T]:
        while True:
            name, post = await self._served()
            post.calls += 1
            try:
                return name, await ask(post.engine)
            except EngineAway:
                await asyncio.sleep(AWAY_S)
            finally:
                post.calls -= 1

    async def _served(self) -> tuple[str, _Post]:
        while True:
            pulse, site = self._pulse, self.placement.serving
            if self._over:
                raise EngineAway("the engine was stopped")
            if site is not None and site.state is State.SERVING:
                return site.engine, self._posts[site.engine]
            await pulse.wait()

    # Life

    async def run(self) -> None:
        """Keep the best engine serving until cancelled. No worker is left when it returns."""
        try:
            while self._defect is None:
                pulse = self._pulse
                self._look()
                decision = self.placement.decide(time.monotonic())
                if decision is not None:
                    self._carry_out(decision)
                else:
                    await self._rest(pulse)
            raise self._defect
        finally:
            self._over = True
            self._stir()
            for proof in self._proofs:
                proof.cancel()
            await asyncio.gather(*self._proofs, return_exceptions=True)
            for name in list(self._posts):
                self._retire(name)
            ends = [spare.end() for spare in self._spares.values()]
            await asyncio.gather(*self._ends, *ends, return_exceptions=True)

    async def wait_serving(self, attempts: int | None) -> None:
        """Return once an engine serves. Raises what the engines said when none can run the model.

        ``attempts``: so often each of them may fail for reasons that may pass; None: for ever.
        """
        while self.placement.serving is None:
            pulse, sites = self._pulse, list(self.placement.sites.values())
            if all(_is_over(site, attempts) for site in sites):
                raise self._why_none(sites)
            await pulse.wait()

    @property
    def lost(self) -> int:
        """Workers that were lost, on any engine, whatever became of it."""
        return self._ended_lost + sum(engine.lost for engine in self._engines())

    @property
    def crashes(self) -> int:
        """Those of them that were lost by their own doing."""
        return self._ended_crashes + sum(engine.crashes for engine in self._engines())

    @property
    def loss(self) -> str:
        """Why a worker was lost last, empty if none was."""
        losses = [engine.loss for engine in self._engines() if engine.loss]
        return losses[-1] if losses else self._ended_loss

    def facts(self) -> EngineFacts:
        """The engine that serves, or did last, in ``edged status``."""
        return self._facts(self.placement.sites[self._name])

    def all_facts(self) -> tuple[EngineFacts, ...]:
        """Every engine that the model may run on, best first."""
        return tuple(self._facts(site) for site in self.placement.sites.values())

    def workers(self) -> tuple[WorkerEngine, ...]:
        """Every engine that has a worker now, each with one."""
        return tuple(worker for post in self._posts.values() for worker in post.engine.workers())

    def oldest_pending_ns(self) -> int | None:
        """Since when a worker is at its present call (CLOCK_BOOTTIME), None when none has one."""
        pending = [post.engine.oldest_pending_ns() for post in self._posts.values()]
        return min((since for since in pending if since is not None), default=None)

    # Devices

    @property
    def devices(self) -> dict[str, str]:
        """The device that an engine needs, for each that needs one."""
        return {name: spec.device for name, spec in self._specs.items() if spec.device}

    def working(self) -> tuple[str, ...]:
        """The engines that have a worker now."""
        return tuple(self._posts)

    def tell_device(self, name: str, missing: str) -> None:
        """Whether the device of an engine is here: ``missing`` says why not, empty if it is. Acted upon at once.

        An engine whose device is gone loses its worker; what it was asked goes to the next engine, or waits.
        """
        self._devices[name] = missing
        if not self._over:
            self._see(name)

    # What is decided

    def _carry_out(self, decision: Decision) -> None:
        name = decision.engine
        self._remember(decision)
        if decision.act is Act.TRY:
            self._try(name)
        elif decision.act is Act.SERVE:
            self._serve(name)
        else:
            faltering = self.placement.sites[name].state is State.FALTERING
            self._tell(name, Event.FAIL if faltering else Event.RELIEVE, decision.reason)
            self._retire(name)

    def _try(self, name: str) -> None:
        self._tell(name, Event.TRY)

        def on_change(stands: bool, reason: str) -> None:
            self._on_change(name, engine, stands, reason)

        engine = WorkerEngine(
            self._specs[name],
            self._job,
            budget=self._budget,
            patience_s=0.0,
            on_change=on_change,
            spare=self._spares[name],
        )
        self._posts[name] = _Post(engine, asyncio.create_task(engine.run(), name=f"engine:{name}"))
        self._posts[name].proof = self._start(self._prove(name, engine), self._proofs)

    async def _prove(self, name: str, engine: WorkerEngine) -> None:
        try:
            await engine.wait_ready()
            latency_us = await self._examine(engine)
        except EdgedError as error:
            self._errors[name] = error
            may_heal = isinstance(error, EngineError) and not isinstance(error, EngineRefused)
            self._tell(name, Event.FAIL if may_heal else Event.REFUSE, str(error))
            self._retire(name)
        else:
            self._tell(name, Event.PROVE, latency_us=latency_us)

    def _serve(self, name: str) -> None:
        if not self._posts[name].engine.stands:  # it was lost between its proof and now
            self._tell(name, Event.FAIL, "its worker was lost")
            self._retire(name)
            return
        former = self.placement.serving
        if former is not None:
            event = Event.FAIL if former.state is State.FALTERING else Event.RELIEVE
            self._tell(former.engine, event, former.reason)
            self._retire(former.engine)
        self._name = name
        self._tell(name, Event.SERVE)
        if self.placement.standby:
            self._spares[name].keep()

    def _retire(self, name: str, drain_s: float = DRAIN_S) -> None:
        """End a worker, once the calls that are with it are answered."""
        post = self._posts.pop(name)
        self._leaving.add(post)
        self._start(self._end(post, drain_s), self._ends)

    async def _end(self, post: _Post, drain_s: float) -> None:
        deadline = time.monotonic() + drain_s
        while post.calls and post.engine.stands and not self._over and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        post.task.cancel()
        await asyncio.gather(post.task, return_exceptions=True)
        self._leaving.discard(post)
        self._ended_lost += post.engine.lost
        self._ended_crashes += post.engine.crashes
        self._ended_loss = post.engine.loss or self._ended_loss

    def _engines(self) -> list[WorkerEngine]:
        """Those that may still have a worker, the ones in use last."""
        return [post.engine for post in (*self._leaving, *self._posts.values())]

    def _start(self, work: Coroutine[None, None, None], those: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        those.add(task)
        task.add_done_callback(those.discard)
        task.add_done_callback(self._notice)
        return task

    def _notice(self, task: asyncio.Task[None]) -> None:
        """A task of ours that raises is a defect: ``run`` raises it."""
        if not task.cancelled() and task.exception() is not None:
            self._defect = task.exception()
            self._stir()

    # What happens

    def _on_change(self, name: str, engine: WorkerEngine, stands: bool, reason: str) -> None:
        site, post = self.placement.sites[name], self._posts.get(name)
        if post is None or post.engine is not engine:
            return  # one that is being ended
        if stands and site.state is State.FALTERING:
            self._tell(name, Event.BACK)
        elif not stands and site.state is State.SERVING:
            self._tell(name, Event.LOST, reason)
        elif not stands and site.state in (State.PROVED, State.FALTERING):  # of no use now: it is tried anew
            self._tell(name, Event.FAIL, reason)
            self._retire(name)

    def _tell(self, name: str, event: Event, reason: str = "", latency_us: float | None = None) -> None:
        self.placement.tell(name, event, time.monotonic(), reason=reason, latency_us=latency_us)
        self._stir()

    def _stir(self) -> None:
        pulse, self._pulse = self._pulse, asyncio.Event()
        pulse.set()

    def _look(self) -> None:
        """Notice interpreters that come and go. An engine that has a worker is seen by its worker."""
        if time.monotonic() - self._looked_s < LOOK_S:
            return
        self._looked_s = time.monotonic()
        for name in self._specs:
            self._see(name)

    def _see(self, name: str) -> None:
        state, post = self.placement.sites[name].state, self._posts.get(name)
        missing = self._devices.get(name, "") or ("" if post is not None else self._specs[name].missing())
        if missing and state is not State.ABSENT:
            self._errors[name] = EngineLost(missing)
            self._tell(name, Event.MISSING, missing)
            self._start(self._spares[name].end(), self._ends)
            if post is not None:
                if post.proof is not None:
                    post.proof.cancel()
                self._retire(name, GONE_S)
        elif not missing and state is State.ABSENT:
            self._tell(name, Event.FOUND)

    async def _rest(self, pulse: asyncio.Event) -> None:
        """Until something changes, or time alone may."""
        wake_s = self.placement.wake_s(time.monotonic())
        until_s = self._looked_s + LOOK_S
        pause_s = max(0.01, min(until_s, until_s if wake_s is None else wake_s) - time.monotonic())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await pulse.wait()

    # What is told

    def _why_none(self, sites: Sequence[Site]) -> EdgedError:
        said = [(site, self._errors[site.engine]) for site in sites if site.engine in self._errors]
        if len(said) == 1:
            return said[0][1]
        worst = next((error for site, error in said if site.state is not State.UNFIT), said[0][1])
        reasons = "; ".join(f"{site.engine}: {error.message}" for site, error in said)
        return type(worst)(f"no engine can run it: {reasons}", worst.hint)

    def _facts(self, site: Site) -> EngineFacts:
        post, model = self._posts.get(site.engine), self._job.model
        if post is not None:
            facts = post.engine.facts()
        else:
            facts = EngineFacts(name=site.engine, model=f"{model.name}@{model.version}", state=site.state.value)
        reason = facts.reason or site.reason
        return msgspec.structs.replace(facts, reason=reason, placement=site.state.value, latency_us=site.latency_us)

    def _remember(self, decision: Decision) -> None:
        wall = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.decisions.append(
            DecisionFacts(wall_time=wall, engine=decision.engine, act=decision.act.value, reason=decision.reason)
        )
        model = self._job.model
        extra = {"engine": decision.engine, "act": decision.act.value, "reason": decision.reason}
        log.info("engine placed", extra={"model": f"{model.name}@{model.version}", **extra})


def _is_over(site: Site, attempts: int | None) -> bool:
    """Whether an engine was tried enough."""
    if attempts is None:
        return site.state is State.UNFIT
    rests = site.state is State.RESTING and site.failures >= attempts
    return rests or site.state in (State.UNFIT, State.ABSENT)
