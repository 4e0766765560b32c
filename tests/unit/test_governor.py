"""The governor on a made-up device: it measures, sets shares, has a worker replaced, and tells all of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from edged.admission import Admission
from edged.governor import Governor
from edged.hardware_config import Pressure
from edged.lane import Lane
from edged.pressure import Held
from edged.status import INTEGRATED, GpuFacts
from tests.support.kernel import Tree

MIB = 1 << 20


class Worker:
    """An engine with one worker of so many bytes; remembers why it was replaced."""

    def __init__(self, held: int, first: int) -> None:
        self.name = "onnxruntime"
        self.replaced: list[str] = []
        self._held, self._first = held, first

    def workers(self) -> tuple[Worker, ...]:
        return (self,)

    def held(self, name: str) -> Held | None:
        return Held(name, self._held, self._first)

    def recycle(self, why: str) -> None:
        self.replaced.append(why)

    def gpu(self) -> GpuFacts | None:
        return None


def lane(name: str, priority: int, worker: Worker | None = None) -> Lane:
    fake = SimpleNamespace(config=SimpleNamespace(name=name, priority=priority), admission=Admission(), engine=worker)
    return cast("Lane", fake)


@asynccontextmanager
async def governing(root: Path, *lanes: Lane, enabled: bool = True) -> AsyncIterator[Governor]:
    settings = Pressure(enabled=enabled, root=root, look_every_s=0.1, dwell_s=0.2, step_s=60.0)
    governor = Governor(settings, lanes)
    task = asyncio.create_task(governor.run())
    try:
        yield governor
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_shares_follow_the_temperature_and_are_given_back(tree: Tree) -> None:
    async def main() -> None:
        tree.zone(0, "cpu", 50.0)
        toy, alarm = lane("toy", 1), lane("alarm", 9)
        async with governing(tree.root, toy, alarm) as governor:
            await until(lambda: bool(governor.facts().measures))
            assert (governor.facts().level, governor.reason, governor.facts().since) == ("normal", "", "")
            tree.zone(0, "cpu", 86.0)
            await until(lambda: toy.admission.share == 0.5)
            assert alarm.admission.share == 1.0
            assert governor.reason == "pressure: tight: temperature (cpu) 86.0 °C"
            assert toy.admission.told == "the device admits 50% of the frames: temperature (cpu) 86.0 °C"
            tree.zone(0, "cpu", 60.0)
            await until(lambda: toy.admission.share == 1.0)
            facts = governor.facts()
            assert (facts.level, facts.changes, bool(facts.since)) == ("normal", 2, True)

    asyncio.run(main())


def test_the_worker_that_grew_is_replaced_once_and_others_are_left_alone(tree: Tree) -> None:
    async def main() -> None:
        tree.memory(total_kb=1000, available_kb=20)
        grown, large = Worker(300 * MIB, 100 * MIB), Worker(900 * MIB, 895 * MIB)
        async with governing(tree.root, lane("a", 5, grown), lane("b", 5, large)) as governor:
            await until(lambda: governor.facts().recycled == 1)
            await asyncio.sleep(0.5)  # several looks
            assert grown.replaced == ["memory is short, and it grew by 200 to 300 MiB"]
            assert large.replaced == []

    asyncio.run(main())


def test_a_device_that_has_nothing_to_measure_says_so_and_is_well(tree: Tree) -> None:
    async def main() -> None:
        async with governing(tree.root, lane("a", 5)) as governor:
            await until(lambda: bool(governor.facts().missing))
            assert governor.facts().level == "normal" and governor.facts().triggers == 0
            assert governor.facts().missing == (
                "temperature is not available here; memory in use is not available here; "
                "pressure stall information is not available here"
            )

    asyncio.run(main())


def test_where_nobody_wants_it_nothing_is_looked_at(tree: Tree) -> None:
    async def main() -> None:
        tree.zone(0, "cpu", 120.0)
        hot = lane("a", 5)
        async with governing(tree.root, hot, enabled=False) as governor:
            await asyncio.sleep(0.3)
            assert (governor.facts().level, governor.facts().measures, governor.reason) == ("off", (), "")
            assert hot.admission.share == 1.0

    asyncio.run(main())


def test_the_kernel_and_the_workers_tell_of_one_gpu_together_and_of_two_apart(tree: Tree) -> None:
    def on_gpu(name: str, **told: float | str | None) -> Worker:
        worker = Worker(1, 1)
        facts = GpuFacts(name="Orin", told_by=name, **told)  # type: ignore[arg-type]  # a test's own few
        worker.gpu = lambda: facts  # type: ignore[method-assign]  # what this one tells
        return worker

    async def main() -> None:
        tree.write("sys/devices/gpu.0/load", "250")
        memory = {"memory_used_bytes": 5, "memory_total_bytes": 8}
        lanes = [
            lane("one", 1, on_gpu("tensorrt", id=INTEGRATED, **memory)),
            lane("two", 1, on_gpu("tensorrt-int8", id=INTEGRATED, **memory)),
            lane("three", 1, on_gpu("tensorrt", id="0000:01:00.0", load_percent=9.0)),
            lane("four", 1, Worker(1, 1)),
            lane("five", 1),
        ]
        async with governing(tree.root, *lanes) as governor:
            await until(lambda: len(governor.gpus()) == 2 and governor.gpus()[0].load_percent is not None)
            chip, card = governor.gpus()
            assert chip == GpuFacts(
                id=INTEGRATED, name="Orin", told_by="kernel, tensorrt, tensorrt-int8", load_percent=25.0, **memory
            )
            assert (card.id, card.told_by, card.load_percent) == ("0000:01:00.0", "tensorrt", 9.0)

    asyncio.run(main())
