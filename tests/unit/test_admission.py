"""A share of the frames is admitted: evenly for each source that does not wait, in time for those that do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import numpy as np
import pytest

from edged.admission import WORK_S, Admission
from edged.domain import Frame, FrameId, Kind, Policy
from edged.pipeline import Pipeline
from tests.support.fakes import Collector, MemoryStore, SumEngine, SumModel


@pytest.mark.parametrize(("share", "admitted"), [(1.0, 100), (0.5, 50), (0.1, 10), (0.25, 25)])
def test_a_share_of_the_frames_is_admitted_evenly(share: float, admitted: int) -> None:
    admission = Admission()
    admission.set(share)
    let_in = [admission.admits("camera") for _ in range(100)]
    assert sum(let_in) == admitted
    assert admission.dropped == 100 - admitted
    gaps = {later - earlier for earlier, later in zip(_places(let_in), _places(let_in)[1:], strict=False)}
    assert gaps == {round(1 / share)}


def _places(let_in: list[bool]) -> list[int]:
    return [place for place, one in enumerate(let_in) if one]


def test_of_two_sources_that_take_turns_neither_is_dropped_for_the_other() -> None:
    admission = Admission()
    admission.set(0.5)
    let_in = [(source, admission.admits(source)) for _ in range(20) for source in ("left", "right")]
    assert [sum(one for source, one in let_in if source == name) for name in ("left", "right")] == [10, 10]


def test_the_rest_is_bounded_and_ends_when_the_share_is_given_back() -> None:
    async def body() -> None:
        admission = Admission()
        admission.set(0.1)
        admission.worked(3600.0)  # it waited for a worker that long
        resting = asyncio.create_task(admission.rest())
        await asyncio.sleep(0.05)
        assert not resting.done()
        assert admission._rest_until_s - time.monotonic() <= WORK_S * 9
        admission.set(1.0)
        async with asyncio.timeout(1):
            await resting

    asyncio.run(body())


@pytest.mark.parametrize(("every_s", "least", "most"), [(0.002, 3.0, 7.0), (2.0, 1.2, 1.6)], ids=["often", "rarely"])
def test_a_source_that_is_slow_by_itself_is_slowed_down_too_but_a_rare_one_hardly(
    every_s: float, least: float, most: float
) -> None:
    """At a quarter, a frame waits three times as long as the source needed for it, at most 0.75 s."""

    async def body(share: float) -> float:
        admission = Admission()
        admission.set(share)
        began = time.monotonic()
        for _ in range(3 if every_s > 1 else 100):
            await asyncio.sleep(every_s)
            await admission.pace("spool")
        return time.monotonic() - began

    pressed, free = asyncio.run(body(0.25)), asyncio.run(body(1.0))
    assert least < pressed / free < most, (pressed, free)


@asynccontextmanager
async def running(pipeline: Pipeline) -> AsyncIterator[None]:
    task = asyncio.create_task(pipeline.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def _frame(key: int) -> Frame:
    return Frame(FrameId("camera", str(key)), np.ones(3, np.float32), 0)


@pytest.mark.parametrize(("share", "dropped"), [(0.5, 20), (1.0, 0)], ids=["pressed", "control"])
def test_what_is_not_admitted_is_told_in_the_stream_with_its_reason(share: float, dropped: int) -> None:
    async def body() -> None:
        store, ends, admission = MemoryStore(), Collector(), Admission()
        pipeline = Pipeline("s", SumModel(), SumEngine(), store, policy=Policy.DROP_OLDEST, admission=admission)
        admission.set(share, "temperature (cpu) 91.0 °C")
        async with running(pipeline):
            for key in range(40):
                await pipeline.offer(_frame(key), ends)
                await asyncio.sleep(0.001)
            admission.set(1.0)
            await _until(lambda: sum(entry.count for entry in store.entries) == 40)
        rows = [entry for entry in store.entries if entry.kind is Kind.DROPPED]
        assert sum(entry.count for entry in rows) == dropped == admission.dropped
        assert sum(end.kind is Kind.DROPPED for end in ends.ended) == dropped
        for row in rows:
            told = msgspec.json.decode(row.body)["error"]
            assert told["code"] == "pressure"
            assert told["message"] == "the device admits 50% of the frames: temperature (cpu) 91.0 °C"
        assert not pipeline.flow().in_flight

    asyncio.run(body())


def test_a_full_queue_is_still_called_so() -> None:
    async def body() -> None:
        store, ends, engine, admission = MemoryStore(), Collector(), SumEngine(max_batch=1), Admission()
        engine.open.clear()
        pipeline = Pipeline(
            "s", SumModel(), engine, store, queue_limit=3, policy=Policy.DROP_NEWEST, admission=admission
        )
        admission.set(0.5, "memory used (system) 97.0 %")
        async with running(pipeline):
            for key in range(40):
                await pipeline.offer(_frame(key), ends)
            engine.open.set()
            await _until(lambda: sum(entry.count for entry in store.entries) == 40)
        reasons = {msgspec.json.decode(one.body)["error"]["code"] for one in store.entries if one.kind is Kind.DROPPED}
        assert reasons == {"pressure", "queue-full"}

    asyncio.run(body())


async def _time_of(share: float, frames: int) -> float:
    """Seconds that a waiting source needs for so many frames, each a while in the engine."""
    store, ends, admission = MemoryStore(), Collector(), Admission()
    engine = SumEngine(lambda _: time.sleep(0.01), max_batch=1)
    pipeline = Pipeline("s", SumModel(), engine, store, queue_limit=2, admission=admission)
    admission.set(share, "hot")
    async with running(pipeline):
        began = time.monotonic()
        for key in range(frames):
            await pipeline.offer(_frame(key), ends)
        await _until(lambda: len(ends.ended) == frames)
        took = time.monotonic() - began
    assert {end.kind for end in ends.ended} == {Kind.RESULT} and admission.dropped == 0
    return took


def test_a_source_that_waits_is_slowed_down_and_loses_nothing() -> None:
    free, pressed = (asyncio.run(_time_of(share, 30)) for share in (1.0, 0.25))
    assert 2.5 < pressed / free < 12, (free, pressed)


def test_what_is_queued_when_the_pressure_comes_is_not_dropped() -> None:
    async def body() -> None:
        store, ends, engine, admission = MemoryStore(), Collector(), SumEngine(), Admission()
        engine.open.clear()
        pipeline = Pipeline("s", SumModel(), engine, store, policy=Policy.DROP_OLDEST, admission=admission)
        async with running(pipeline):
            for key in range(20):
                await pipeline.offer(_frame(key), ends)
            admission.set(0.1, "hot")
            engine.open.set()
            await _until(lambda: len(ends.ended) == 20)
        assert {end.kind for end in ends.ended} == {Kind.RESULT}

    asyncio.run(body())
