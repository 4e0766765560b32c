"""The pipeline alone, on stand-ins for engine and store: order, bounds, policies, suspects, refusals."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from edged.domain import Array, Frame, FrameId, Kind, Policy
from edged.errors import EngineError, EngineLost, StoreError
from edged.pipeline import Pipeline
from tests.support.fakes import Collector, MemoryStore, SumEngine, SumModel

POISON = 666.0


def frame(key: int | str, value: float = 1.0) -> Frame:
    return Frame(FrameId("camera", str(key)), np.full(3, value), time.clock_gettime_ns(time.CLOCK_BOOTTIME))


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 20))


@contextlib.asynccontextmanager
async def running(pipeline: Pipeline) -> AsyncIterator[None]:
    task = asyncio.create_task(pipeline.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_every_frame_ends_once_and_in_order() -> None:
    async def body() -> None:
        store, engine, ends = MemoryStore(), SumEngine(), Collector()
        pipeline = Pipeline("s", SumModel(), engine, store, queue_limit=8)
        async with running(pipeline):
            for key in range(100):
                await pipeline.offer(frame(key), ends)
            await until(lambda: len(ends.ended) == 100)
        assert [entry.frame.key for entry in store.entries if entry.frame] == [str(key) for key in range(100)]
        assert [end.receipt.seq for end in ends.ended if end.receipt] == list(range(1, 101))
        assert max(engine.batches) == engine.max_batch
        assert engine.most_in_flight == 2
        flow = pipeline.flow()
        assert (flow.queued, flow.last_seq, len(flow.latency_ns)) == (0, 100, 100)
        assert not flow.in_flight

    run(body)


def test_a_frame_that_was_stored_before_ends_with_its_first_receipt_and_is_not_inferred() -> None:
    async def body() -> None:
        store, engine, ends = MemoryStore(), SumEngine(), Collector()
        pipeline = Pipeline("s", SumModel(), engine, store)
        async with running(pipeline):
            await pipeline.offer(frame("a"), ends)
            await until(lambda: len(ends.ended) == 1)
            await pipeline.offer(frame("a"), ends)
            await until(lambda: len(ends.ended) == 2)
        assert ends.ended[0].receipt == ends.ended[1].receipt
        assert sum(engine.batches) == 1

    run(body)


def test_a_full_queue_makes_the_source_wait_under_block() -> None:
    async def body() -> None:
        engine, ends = SumEngine(max_batch=1), Collector()
        engine.open.clear()
        pipeline = Pipeline("s", SumModel(), engine, MemoryStore(), queue_limit=3)
        async with running(pipeline):
            offers = [asyncio.create_task(pipeline.offer(frame(key), ends)) for key in range(20)]
            await asyncio.sleep(0.05)
            assert pipeline.flow().queued == 3
            assert sum(task.done() for task in offers) < 20
            engine.open.set()
            await until(lambda: len(ends.ended) == 20)
        assert {end.kind for end in ends.ended} == {Kind.RESULT}

    run(body)


@pytest.mark.parametrize(("policy", "kept"), [(Policy.DROP_OLDEST, "19"), (Policy.DROP_NEWEST, "0")])
def test_a_full_queue_sheds_and_the_stream_says_how_many(policy: Policy, kept: str) -> None:
    async def body() -> None:
        store, engine, ends = MemoryStore(), SumEngine(max_batch=1), Collector()
        engine.open.clear()
        pipeline = Pipeline("s", SumModel(), engine, store, queue_limit=3, policy=policy)
        async with running(pipeline):
            for key in range(20):
                await pipeline.offer(frame(key), ends)
            engine.open.set()
            await until(lambda: len(ends.ended) == 20)
            await until(lambda: sum(entry.count for entry in store.entries) == 20)
        shed = sum(entry.count for entry in store.entries if entry.kind is Kind.DROPPED)
        assert shed == sum(end.kind is Kind.DROPPED for end in ends.ended) > 0
        assert kept in store.kinds()
        assert not pipeline.flow().in_flight

    run(body)


def test_frames_that_a_live_source_overtook_are_in_the_stream_though_nothing_else_is() -> None:
    async def body() -> None:
        store, ends = MemoryStore(), Collector()
        pipeline = Pipeline("s", SumModel(), SumEngine(), store)
        async with running(pipeline):
            for _ in range(3):
                pipeline.overtaken("camera")
            await until(lambda: sum(entry.count for entry in store.entries) == 3)
            await pipeline.offer(frame(1), ends)
            await until(lambda: len(ends.ended) == 1)
        [shed] = [entry for entry in store.entries if entry.kind is Kind.DROPPED]
        assert (shed.source, shed.count) == ("camera", 3)
        assert b'"overtaken"' in shed.body
        assert ends.ended[0].kind is Kind.RESULT

    run(body)


def test_a_frame_unfit_for_the_model_is_rejected_and_its_neighbours_are_not() -> None:
    async def body() -> None:
        store, ends = MemoryStore(), Collector()
        pipeline = Pipeline("s", SumModel(), SumEngine(), store)
        async with running(pipeline):
            await pipeline.offer(frame("good"), ends)
            await pipeline.offer(Frame(FrameId("camera", "bad"), np.zeros(7), 0), ends)
            await pipeline.offer(frame("fine"), ends)
            await pipeline.reject(FrameId("camera", "torn"), 0, "cut off", ends)
            await until(lambda: len(ends.ended) == 4)
        assert store.kinds() == {
            "good": Kind.RESULT,
            "bad": Kind.REJECTED,
            "fine": Kind.RESULT,
            "torn": Kind.REJECTED,
        }

    run(body)


@pytest.mark.parametrize("error", [EngineLost("worker died"), EngineError("out of memory")])
def test_a_poison_frame_becomes_an_error_and_its_neighbours_become_results(error: EngineError) -> None:
    async def body() -> None:
        def fault(batch: Array) -> None:
            if (batch == POISON).any():
                raise error

        store, ends = MemoryStore(), Collector()
        pipeline = Pipeline("s", SumModel(), SumEngine(fault), store)
        async with running(pipeline):
            for key in range(30):
                await pipeline.offer(frame(key, POISON if key == 13 else 1.0), ends)
            await until(lambda: len(ends.ended) == 30)
        kinds = store.kinds()
        assert kinds.pop("13") is Kind.ERROR
        assert set(kinds.values()) == {Kind.RESULT}
        assert len(kinds) == 29

    run(body)


def test_one_lost_worker_costs_no_frame() -> None:
    async def body() -> None:
        losses = [EngineLost("killed")]

        def fault(batch: Array) -> None:
            if losses:
                raise losses.pop()

        store, ends = MemoryStore(), Collector()
        pipeline = Pipeline("s", SumModel(), SumEngine(fault), store)
        async with running(pipeline):
            for key in range(10):
                await pipeline.offer(frame(key), ends)
            await until(lambda: len(ends.ended) == 10)
        assert set(store.kinds().values()) == {Kind.RESULT}

    run(body)


def test_a_refusing_medium_delays_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.pipeline.STORE_RETRY_S", 0.01)

    async def body() -> None:
        store, ends = MemoryStore(), Collector()
        store.refusals = [StoreError("disk full") for _ in range(5)]
        pipeline = Pipeline("s", SumModel(), SumEngine(), store)
        async with running(pipeline):
            for key in range(10):
                await pipeline.offer(frame(key), ends)
            await until(lambda: len(ends.ended) == 10)
        assert len(store.kinds()) == 10

    run(body)


def test_drain_waits_for_what_was_offered() -> None:
    async def body() -> None:
        store, ends = MemoryStore(), Collector()
        pipeline = Pipeline("s", SumModel(), SumEngine(), store)
        async with running(pipeline):
            for key in range(50):
                await pipeline.offer(frame(key), ends)
            await pipeline.drain(5)
            assert len(ends.ended) == 50

    run(body)
