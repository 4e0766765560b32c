"""A model takes another's place: no frame waits for it, none is lost or given up, and one model answers each."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping

import numpy as np
import pytest

from edged.domain import Array, Frame, FrameId, Kind, Payload
from edged.errors import EdgedError, EngineCrashed, EngineError, EngineLost, FrameRejected
from edged.pipeline import Pipeline
from edged.ports import Inference, Model
from tests.support.fakes import Collector, MemoryStore, SumEngine, SumModel

DRAIN_S = 0.2


class NextModel(SumModel):
    """The same, one version later."""

    version = "2.0.0"


class Strict(NextModel):
    """Takes no frame of ones."""

    def encode(self, payload: Payload) -> dict[str, Array]:
        raise FrameRejected("wants something else")


class Hung(SumEngine):
    """Answers nothing, and says that it was stopped once ``ending`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.ending = asyncio.Event()

    async def infer(self, inputs: Mapping[str, Array]) -> Inference:
        self.in_flight += 1
        await self.ending.wait()
        raise EngineLost("the engine was stopped")


@contextlib.asynccontextmanager
async def running(pipeline: Pipeline) -> AsyncIterator[None]:
    task = asyncio.create_task(pipeline.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def feed(pipeline: Pipeline, ends: Collector, first: int, count: int) -> None:
    for key in range(first, first + count):
        await pipeline.offer(Frame(FrameId("camera", str(key)), np.ones(3), time.clock_gettime_ns(7)), ends)


async def ended(ends: Collector, count: int) -> None:
    async with asyncio.timeout(10):
        while len(ends.ended) < count:
            await asyncio.sleep(0.001)


def test_frames_before_are_the_former_models_and_frames_after_the_new_ones() -> None:
    async def body() -> None:
        store, former, new, ends = MemoryStore(), SumEngine(), SumEngine(), Collector()
        pipeline = Pipeline("s", SumModel(), former, store)
        async with running(pipeline):
            await feed(pipeline, ends, 0, 20)
            await ended(ends, 20)
            await pipeline.adopt(NextModel(), new, DRAIN_S)
            await feed(pipeline, ends, 20, 20)
            await ended(ends, 40)
        models = [entry.model for entry in store.entries]
        assert models == ["sum@1.0.0"] * 20 + ["sum@2.0.0"] * 20
        assert (sum(former.batches), sum(new.batches)) == (20, 20)
        assert pipeline.model.version == "2.0.0"

    asyncio.run(body())


def test_batches_under_way_end_with_the_former_model_while_new_ones_wait_for_nobody() -> None:
    async def body() -> None:
        store, former, new, ends = MemoryStore(), SumEngine(max_batch=2), SumEngine(), Collector()
        pipeline = Pipeline("s", SumModel(), former, store)
        former.open.clear()
        async with running(pipeline):
            await feed(pipeline, ends, 0, 2)
            while not former.in_flight:
                await asyncio.sleep(0.001)
            adopting = asyncio.create_task(pipeline.adopt(NextModel(), new, 10))
            await asyncio.sleep(0.02)
            assert not adopting.done()
            former.open.set()
            await adopting
            assert former.in_flight == 0
            await feed(pipeline, ends, 2, 2)
            await ended(ends, 4)
        assert [entry.model for entry in store.entries] == ["sum@1.0.0"] * 2 + ["sum@2.0.0"] * 2

    asyncio.run(body())


@pytest.mark.parametrize(("model", "kind"), [(NextModel(), Kind.RESULT), (Strict(), Kind.REJECTED)])
def test_a_frame_left_with_an_engine_that_is_ended_is_the_new_models(model: NextModel, kind: Kind) -> None:
    """It is told as lost (``WorkerEngine`` does that when it ends), which must not count against the frame."""

    async def body() -> None:
        store, former, ends = MemoryStore(), Hung(), Collector()
        pipeline = Pipeline("s", SumModel(), former, store)
        async with running(pipeline):
            await feed(pipeline, ends, 0, 3)
            while not former.in_flight:
                await asyncio.sleep(0.001)
            await pipeline.adopt(model, SumEngine(), DRAIN_S)
            former.ending.set()
            await ended(ends, 3)
        assert store.kinds() == {"0": kind, "1": kind, "2": kind}
        assert {entry.model for entry in store.entries} == {"sum@2.0.0"}
        assert pipeline.flow().rejected == (3 if kind is Kind.REJECTED else 0)

    asyncio.run(body())


class Fussy(SumEngine):
    """Fails with whatever holds a 2."""

    name = "fussy"

    def __init__(self, error: EngineError) -> None:
        super().__init__(self._refuse)
        self.error = error

    def _refuse(self, values: Array) -> None:
        if (values == 2).any():
            raise self.error


CRASH, REFUSAL = EngineCrashed("the worker was killed by SIGSEGV"), EngineError("this frame cannot be computed")


@pytest.mark.parametrize("error", [CRASH, REFUSAL])
@pytest.mark.parametrize("blames_the_model", [True, False])
def test_a_frame_that_the_model_is_blamed_for_is_the_next_models(error: EngineError, blames_the_model: bool) -> None:
    """The control leaves the blame with the frame, which then ends as an error, as without any appeal."""

    async def body() -> None:
        store, ends, heard = MemoryStore(), Collector(), list[str]()

        async def appeal(model: Model, _payload: Payload, why: EdgedError) -> None:
            heard.append(f"{model.version}: {why.message}")
            if blames_the_model:
                await pipeline.hold(0)

        pipeline = Pipeline("s", NextModel(), Fussy(error), store, appeal=appeal)
        async with running(pipeline):
            await feed(pipeline, ends, 0, 4)
            await pipeline.offer(Frame(FrameId("camera", "two"), np.full(3, 2.0), time.clock_gettime_ns(7)), ends)
            await feed(pipeline, ends, 5, 4)
            if blames_the_model:
                await asyncio.sleep(0.05)
                assert pipeline.held
                assert len(ends.ended) < 9, "frames wait for a model"
                await pipeline.adopt(SumModel(), SumEngine(), DRAIN_S)
                assert not pipeline.held
            await ended(ends, 9)
        assert heard == [f"2.0.0: {error.message}"]
        assert store.kinds()["two"] is (Kind.RESULT if blames_the_model else Kind.ERROR)
        assert {kind for key, kind in store.kinds().items() if key != "two"} == {Kind.RESULT}
        assert len(store.entries) == 9
        last = next(entry for entry in store.entries if entry.frame and entry.frame.key == "two")
        assert last.model == ("sum@1.0.0" if blames_the_model else "sum@2.0.0")

    asyncio.run(body())


@pytest.mark.parametrize("blames_the_model", [True, False])
def test_a_frame_that_only_the_new_model_rejects_is_the_next_models(blames_the_model: bool) -> None:
    async def body() -> None:
        store, ends = MemoryStore(), Collector()

        async def appeal(*_: object) -> None:
            if blames_the_model:
                await pipeline.hold(0)

        pipeline = Pipeline("s", Strict(), SumEngine(), store, appeal=appeal)
        async with running(pipeline):
            await feed(pipeline, ends, 0, 3)
            if blames_the_model:
                await asyncio.sleep(0.02)
                await pipeline.adopt(SumModel(), SumEngine(), DRAIN_S)
            await ended(ends, 3)
        kind = Kind.RESULT if blames_the_model else Kind.REJECTED
        assert store.kinds() == {"0": kind, "1": kind, "2": kind}

    asyncio.run(body())


def test_while_nothing_may_run_frames_wait_and_what_was_under_way_is_the_next_models() -> None:
    async def body() -> None:
        store, former, ends = MemoryStore(), Hung(), Collector()
        pipeline = Pipeline("s", SumModel(), former, store)
        async with running(pipeline):
            await feed(pipeline, ends, 0, 3)
            while not former.in_flight:
                await asyncio.sleep(0.001)
            began = time.monotonic()
            await pipeline.hold(DRAIN_S)
            assert time.monotonic() - began >= DRAIN_S, "the batch under way is given its time"
            former.ending.set()
            await feed(pipeline, ends, 3, 3)
            await asyncio.sleep(0.02)
            assert not ends.ended
            await pipeline.adopt(NextModel(), SumEngine(), DRAIN_S)
            await ended(ends, 6)
        assert {entry.model for entry in store.entries} == {"sum@2.0.0"}
        assert set(store.kinds().values()) == {Kind.RESULT}

    asyncio.run(body())
