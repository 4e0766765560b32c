"""One pipeline: frames from its sources → batches → engine → entries in the buffer.

The queue in front of the engine is bounded by ``queue_limit`` frames. When it is full, the policy decides:

- ``block``        the source waits (spool, HTTP: nothing is lost, the sender feels it);
- ``drop-oldest``  the oldest queued frame makes room (cameras: the present matters most);
- ``drop-newest``  the arriving frame is shed.

What is shed is counted, and one DROPPED entry for each source says so in the stream, and why: a full queue, a later
frame (``overtaken``), or that the device is hard pressed and admits only a share (``edged.admission``). At most two
batches are with the engine (one runs, one is prepared), at most ``COMMITS`` groups wait for the medium: both push back
to the queue. Batches take what is queued and never wait to fill up.

A frame whose worker dies is tried once more, alone and with nothing else in flight, so that the guilty frame is told
from its neighbours; a frame that ends two workers is committed as an ERROR. Frames wait while the engine is away.

Before a frame is given up, ``appeal`` is heard, which may put the blame on the model and hold the pipeline: then the
frame is the next model's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edged.admission import Admission
from edged.domain import Array, Entry, Frame, FrameId, Kind, Payload, Policy, Receipt
from edged.entries import OVERTAKEN, PRESSURE, QUEUE_FULL, entry_of, prediction_body, reason_body, shed_entry
from edged.errors import EdgedError, EngineError, EngineLost, FrameRejected, StoreError
from edged.flow import Flow
from edged.ports import Ended, Engine, Inference, Model, OnEnded, ResultStore

log = logging.getLogger(__name__)

BATCHES = 2  # one in the engine, one prepared: measured to hide preparation behind inference
COMMITS = 32  # groups on their way to the medium: at 8, a disk that syncs in 10 ms held up the engine (measured)
STORE_RETRY_S = 1.0  # a full or failing medium does not heal faster
LATENCIES = 1024  # results that the latency figures look back on

Appeal = Callable[[Model, Payload, EdgedError], Awaitable[None]]  # a frame is to be given up with this model, for this


async def no_appeal(_model: Model, _payload: Payload, _error: EdgedError) -> None:
    """Every frame is given up for which a model has no result."""


@dataclass(slots=True)
class _Runner:
    """What batches are run with. A batch keeps its own to the end, though another was adopted meanwhile."""

    model: Model
    engine: Engine
    batches: int = 0  # under way


@dataclass(slots=True)
class _Waiting:
    """A frame in the queue, with whom to tell when it ends."""

    frame: Frame
    on_ended: OnEnded
    sample: dict[str, Array] | None = None


@dataclass(frozen=True, slots=True)
class _Settled:
    """A frame whose entry is ready to be committed (``entry``), or that was stored before (``receipt``)."""

    waiting: _Waiting
    entry: Entry | None = None
    receipt: Receipt | None = None
    engine_ns: int = 0


class Pipeline:
    """Joins sources, a model on an engine and the store under one stream name. Implements the Intake port."""

    def __init__(
        self,
        name: str,
        model: Model,
        engine: Engine,
        store: ResultStore,
        *,
        queue_limit: int = 64,
        policy: Policy = Policy.BLOCK,
        appeal: Appeal = no_appeal,
        admission: Admission | None = None,
    ) -> None:
        self.name = name
        self._runner = _Runner(model, engine)
        self.queue_limit = queue_limit
        self.policy = policy
        self._store = store
        self._appeal = appeal
        self._admission = admission or Admission()
        self._open = asyncio.Event()  # clear while there is no model that may run
        self._open.set()
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Condition()
        self._shed: Counter[tuple[str, str]] = Counter()  # by source and reason
        self._in_flight: Counter[str] = Counter()
        self._turns = asyncio.Semaphore(BATCHES)
        self._suspect = asyncio.Lock()
        self._latency_ns: deque[int] = deque(maxlen=LATENCIES)
        self._engine_ns: deque[int] = deque(maxlen=LATENCIES)
        self._ended_as: Counter[Kind] = Counter()
        self._last_seq = 0

    @property
    def held(self) -> bool:
        """Whether frames wait for a model."""
        return not self._open.is_set()

    @property
    def model(self) -> Model:
        """The model of the next batch."""
        return self._runner.model

    @property
    def engine(self) -> Engine:
        """The engine of the next batch."""
        return self._runner.engine

    # Intake

    async def offer(self, frame: Frame, on_ended: OnEnded) -> None:
        """Queue a frame, as the Intake port says."""
        waiting = _Waiting(frame, on_ended)
        if self.policy is Policy.BLOCK:
            await self._admission.pace(frame.id.source)
            await self._wait_for_room()
        elif not self._admission.admits(frame.id.source):
            self._drop(waiting, PRESSURE)
            return
        elif len(self._queue) >= self.queue_limit:
            if self.policy is Policy.DROP_NEWEST:
                self._drop(waiting)
                return
            oldest = self._queue.popleft()
            self._in_flight[oldest.frame.id.source] -= 1
            self._drop(oldest)
        self._in_flight[frame.id.source] += 1
        self._queue.append(waiting)
        self._arrived.set()

    async def reject(self, frame: FrameId, received_ns: int, reason: str, on_ended: OnEnded) -> None:
        """Commit a REJECTED entry for something that is not a frame, as the Intake port says."""
        entry = self._entry(self._runner, frame, received_ns, Kind.REJECTED, reason_body("rejected", reason))
        receipt = (await self._stored([entry]))[0]
        on_ended(Ended(frame, receipt.kind, receipt))

    def overtaken(self, source: str) -> None:
        """Account for a frame as the Intake port says."""
        self._shed[source, OVERTAKEN] += 1
        self._arrived.set()

    def flow(self) -> Flow:
        """What passed since the start."""
        return Flow(
            queued=len(self._queue),
            in_flight=Counter({source: count for source, count in self._in_flight.items() if count}),
            latency_ns=tuple(self._latency_ns),
            engine_ns=tuple(self._engine_ns),
            results=self._ended_as[Kind.RESULT],
            errors=self._ended_as[Kind.ERROR],
            rejected=self._ended_as[Kind.REJECTED],
            last_seq=self._last_seq,
        )

    # Life

    async def run(self) -> None:
        """Infer and store until cancelled."""
        running: asyncio.Queue[asyncio.Task[list[_Settled]]] = asyncio.Queue(maxsize=BATCHES - 1)
        commits = asyncio.Semaphore(COMMITS)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._dispatch(tasks, running), name=f"{self.name}:dispatch")
            tasks.create_task(self._settle(tasks, running, commits), name=f"{self.name}:settle")

    async def adopt(self, model: Model, engine: Engine, timeout_s: float) -> None:
        """Run the next batch with another model on another engine; nothing waits and nothing is lost meanwhile.

        Returns when no batch is with the former engine any more, at most after ``timeout_s``: it may be ended then. A
        frame that is still there comes back as lost and is tried again with the new one.
        """
        former, self._runner = self._runner, _Runner(model, engine)
        self._open.set()
        await _left(former, timeout_s)

    async def hold(self, timeout_s: float) -> None:
        """Run no further batch until a model is adopted. Returns when none is with the engine, or after ``timeout_s``.

        A frame that is still there waits for the next model, should its engine be ended.
        """
        self._open.clear()
        await _left(self._runner, timeout_s)

    async def drain(self, timeout_s: float) -> None:
        """Wait until everything queued has ended, at most ``timeout_s``. Call after the sources have stopped."""
        deadline = time.monotonic() + timeout_s
        while any(self._in_flight.values()) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    async def _dispatch(self, tasks: asyncio.TaskGroup, running: asyncio.Queue[asyncio.Task[list[_Settled]]]) -> None:
        while True:
            batch = await self._take()
            await running.put(tasks.create_task(self._batch(batch), name=f"{self.name}:batch"))

    async def _settle(
        self,
        tasks: asyncio.TaskGroup,
        running: asyncio.Queue[asyncio.Task[list[_Settled]]],
        commits: asyncio.Semaphore,
    ) -> None:
        """Hand batches to the store in the order in which they were taken."""
        while True:
            settled = await (await running.get())
            await commits.acquire()
            task = tasks.create_task(self._commit(settled), name=f"{self.name}:commit")
            task.add_done_callback(lambda _: commits.release())

    async def _take(self) -> list[_Waiting]:
        while not self._queue and not self._shed:
            self._arrived.clear()
            await self._arrived.wait()
        await self._open.wait()
        await self._admission.rest()
        count = min(len(self._queue), self.engine.max_batch)
        batch = [self._queue.popleft() for _ in range(count)]
        if self.policy is Policy.BLOCK:
            async with self._room:
                self._room.notify(count)
        return batch

    async def _wait_for_room(self) -> None:
        async with self._room:
            await self._room.wait_for(lambda: len(self._queue) < self.queue_limit)

    def _drop(self, waiting: _Waiting, reason: str = QUEUE_FULL) -> None:
        self._shed[waiting.frame.id.source, reason] += 1
        self._arrived.set()
        waiting.on_ended(Ended(waiting.frame.id, Kind.DROPPED, None))

    # Inference

    async def _batch(self, batch: Sequence[_Waiting]) -> list[_Settled]:
        runner, began_s = self._runner, time.monotonic()
        runner.batches += 1
        try:
            return await self._run(runner, batch)
        finally:
            runner.batches -= 1
            if self.policy is Policy.BLOCK:
                self._admission.worked(time.monotonic() - began_s)

    async def _run(self, runner: _Runner, batch: Sequence[_Waiting]) -> list[_Settled]:
        known = self._store.find([waiting.frame.id for waiting in batch]) if batch else []
        settled = [_Settled(waiting, receipt=receipt) for waiting, receipt in zip(batch, known, strict=True) if receipt]
        ready: list[_Waiting] = []
        for waiting, receipt in zip(batch, known, strict=True):
            if receipt is not None:
                continue
            try:
                waiting.sample = runner.model.encode(waiting.frame.payload)
                ready.append(waiting)
            except FrameRejected as error:
                settled.append(await self._rejected(runner, waiting, error))
        if ready:
            settled += await self._infer(runner, ready)
        return settled

    async def _rejected(self, runner: _Runner, waiting: _Waiting, error: FrameRejected) -> _Settled:
        if not self._replaced(runner):
            await self._appeal(runner.model, waiting.frame.payload, error)
        if self._replaced(runner):
            async with self._alone():
                return await self._infer_alone(runner, waiting)
        return self._ended(runner, waiting, Kind.REJECTED, reason_body(error.code, str(error)))

    def _replaced(self, runner: _Runner) -> bool:
        """Whether frames are another model's now, or will be when it comes."""
        return runner is not self._runner or self.held

    async def _infer(self, runner: _Runner, batch: Sequence[_Waiting]) -> list[_Settled]:
        try:
            async with self._turns:
                return self._results(runner, batch, await runner.engine.infer(_stack(runner.model, batch)))
        except EngineError as error:
            log.warning(
                "engine failed; its frames are tried once more, one by one",
                extra={"pipeline": self.name, "engine": runner.engine.name, "frames": len(batch), "reason": str(error)},
            )
            async with self._alone():
                return [await self._infer_alone(runner, waiting) for waiting in batch]

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """The engine to oneself: every turn at once, one suspect batch after the other."""
        async with self._suspect, contextlib.AsyncExitStack() as turns:
            for _ in range(BATCHES):
                await turns.enter_async_context(self._turns)
            yield

    async def _infer_alone(self, runner: _Runner, waiting: _Waiting) -> _Settled:
        await self._open.wait()
        if runner is not self._runner:  # another model was adopted; this one's engine may be gone
            runner = self._runner
            try:
                waiting.sample = runner.model.encode(waiting.frame.payload)
            except FrameRejected as error:
                return self._ended(runner, waiting, Kind.REJECTED, reason_body(error.code, str(error)))
        try:
            return self._results(runner, [waiting], await runner.engine.infer(_stack(runner.model, [waiting])))[0]
        except EngineError as error:
            if not self._replaced(runner):
                await self._appeal(runner.model, waiting.frame.payload, error)
            if self._replaced(runner):
                return await self._infer_alone(runner, waiting)
            what = "ended two workers" if isinstance(error, EngineLost) else "failed twice"
            log.error(
                "frame failed for good",
                extra={"pipeline": self.name, "source": waiting.frame.id.source, "key": waiting.frame.id.key},
            )
            return self._ended(runner, waiting, Kind.ERROR, reason_body(error.code, f"{what}: {error}"))

    def _results(self, runner: _Runner, batch: Sequence[_Waiting], inference: Inference) -> list[_Settled]:
        share_ns = inference.engine_ns // len(batch)
        return [
            self._ended(runner, waiting, Kind.RESULT, prediction_body(prediction), share_ns, inference.engine)
            for waiting, prediction in zip(batch, runner.model.decode(inference.readout), strict=True)
        ]

    # Ends

    async def _commit(self, settled: Sequence[_Settled]) -> None:
        entries = [one.entry for one in settled if one.entry is not None]
        shed, self._shed = self._shed, Counter()
        entries += [self._shed_entry(source, reason, count) for (source, reason), count in shed.items()]
        receipts = iter(await self._stored(entries) if entries else [])
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for one in settled:
            receipt = one.receipt or next(receipts)
            self._last_seq = max(self._last_seq, receipt.seq)
            self._in_flight[one.waiting.frame.id.source] -= 1
            if one.entry is not None:
                self._ended_as[receipt.kind] += 1
            if receipt.kind is Kind.RESULT and one.entry is not None:
                self._latency_ns.append(now_ns - one.waiting.frame.received_ns)
                self._engine_ns.append(one.engine_ns)
            one.waiting.on_ended(Ended(one.waiting.frame.id, receipt.kind, receipt))

    async def _stored(self, entries: Sequence[Entry]) -> list[Receipt]:
        """Commit, however long the medium refuses: frames wait in their queues meanwhile and none is given up."""
        while True:
            try:
                return await self._store.commit(entries)
            except StoreError as error:
                log.error("the buffer refuses; trying again", extra={"pipeline": self.name, "reason": str(error)})
                await asyncio.sleep(STORE_RETRY_S)

    def _ended(
        self, runner: _Runner, waiting: _Waiting, kind: Kind, body: bytes, engine_ns: int = 0, engine: str = ""
    ) -> _Settled:
        entry = self._entry(runner, waiting.frame.id, waiting.frame.received_ns, kind, body, engine)
        return _Settled(waiting, entry=entry, engine_ns=engine_ns)

    def _entry(
        self, runner: _Runner, frame: FrameId, received_ns: int, kind: Kind, body: bytes, engine: str = ""
    ) -> Entry:
        return entry_of(self.name, runner.model, engine or runner.engine.name, frame, received_ns, kind, body)

    def _shed_entry(self, source: str, reason: str, count: int) -> Entry:
        full = f"the queue of {self.queue_limit} frames was full ({self.policy.value})"
        why = {PRESSURE: self._admission.told, OVERTAKEN: "a later frame came before they could be taken"}
        return shed_entry(self.name, source, count, reason, why.get(reason, full))


async def _left(runner: _Runner, timeout_s: float) -> None:
    """Wait until no batch is with a runner, at most ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while runner.batches and time.monotonic() < deadline:
        await asyncio.sleep(0.005)


def _stack(model: Model, batch: Sequence[_Waiting]) -> dict[str, Array]:
    """Samples side by side: constants (B, *shape), sequences (T, B, *shape)."""
    samples = [waiting.sample for waiting in batch if waiting.sample is not None]
    return {
        spec.name: np.stack([sample[spec.name] for sample in samples], axis=1 if spec.sequence else 0)
        for spec in model.inputs
    }
