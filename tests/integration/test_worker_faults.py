"""Workers that crash, hang, lie, leak or never start: each costs one worker, says why, and the next one goes on.

What an ended worker leaves behind, namely nothing, is in ``test_worker_ends.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import re
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from edged.engines import life as life_module
from edged.engines.engine import open_engine
from edged.engines.life import Job, WorkerSpec
from edged.errors import EngineError, EngineLost
from tests.support import fault_engine
from tests.support.plans import frames, make_job
from tests.support.workers import QUICK, acting, alive, assert_echoes, children, eventually, running

ENGINE_FILE = Path(fault_engine.__file__)
SPEC = WorkerSpec("echo", deadline_s=2.0, load_deadline_s=20.0, engine_file=ENGINE_FILE)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path)


def loading(job: Job, act: str) -> Job:
    model = dataclasses.replace(job.model, path=Path(f"/load-{act}"))  # type: ignore[type-var]  # a PlannedModel
    return dataclasses.replace(job, model=model)


LOSSES = {
    "segfault": "was killed by SIGSEGV",
    "exit": "exited with code 9",
    "hang": "did not answer INFER within 1 s",
    "stop": "did not answer INFER within 1 s",
    "garbage": "broke the protocol: a packet that begins with",
    "lie": "DONE for call 4242, which is not the next to be answered",
    "flood": "which is not the next to be answered|DONE from the worker",
    "family": "exited with code 9",
    "engine": "reported that it broke: the device fell off the bus; its last words: RuntimeError",
}


@pytest.mark.parametrize("act", LOSSES)
def test_a_worker_that_fails_is_lost_with_its_reason_and_the_next_one_answers(job: Job, act: str) -> None:
    async def main() -> None:
        async with running(job, dataclasses.replace(SPEC, deadline_s=1.0)) as engine:
            await assert_echoes(engine)
            first = engine.facts().pid
            with pytest.raises(EngineLost, match=f"(?s){LOSSES[act]}"):
                await engine.infer(acting(act))
                await engine.infer(frames(1))  # what came too much shows at the next call
            await assert_echoes(engine)
            assert engine.facts().pid != first
            assert engine.facts().restarts == 1
            assert first is not None
            assert not alive(first)

    asyncio.run(main())


def test_every_call_in_flight_fails_with_the_worker_and_those_behind_wait_for_the_next(job: Job) -> None:
    async def main() -> None:
        async with running(job, SPEC) as engine:
            await assert_echoes(engine)
            poisoned = asyncio.create_task(engine.infer(acting("segfault")))
            others = [asyncio.create_task(engine.infer(frames(1, seed))) for seed in range(6)]
            results = await asyncio.gather(poisoned, *others, return_exceptions=True)
            assert [isinstance(result, EngineLost) for result in results] == [True, True] + [False] * 5
            for seed, result in list(enumerate(results[1:]))[1:]:
                assert not isinstance(result, BaseException)
                np.testing.assert_array_equal(result.readout, frames(1, seed)["x"][:, :3])

    asyncio.run(main())


def test_an_error_about_the_frame_leaves_the_worker_and_its_neighbours_alone(job: Job) -> None:
    async def main() -> None:
        async with running(job, SPEC) as engine:
            await assert_echoes(engine)
            pid = engine.facts().pid
            bad = asyncio.create_task(engine.infer(acting("frame")))
            good = asyncio.create_task(engine.infer(frames(1)))
            with pytest.raises(EngineError, match="this frame cannot be computed") as caught:
                await bad
            assert not isinstance(caught.value, EngineLost)
            await good
            with pytest.raises(EngineError, match="does not step"):
                states = {spec.name: np.zeros((2, *spec.shape), np.float32) for spec in job.model.states}
                await engine.step(frames(2), states)
            await assert_echoes(engine)
            assert engine.facts().pid == pid

    asyncio.run(main())


def test_a_readout_that_is_not_finite_is_an_error_of_the_frame(job: Job) -> None:
    async def main() -> None:
        async with running(job, SPEC) as engine:
            inputs = frames(2)
            inputs["x"][0, 1] = np.nan
            with pytest.raises(EngineError, match="not finite"):
                await engine.infer(inputs)
            await assert_echoes(engine)

    asyncio.run(main())


def test_noise_on_stdout_harms_nothing_and_its_end_is_kept(job: Job) -> None:
    async def main() -> None:
        async with running(job, SPEC) as engine:
            for _ in range(20):
                await engine.infer(acting("noise"))
            with pytest.raises(
                EngineLost, match=r"(?s)exited with code 9; its last words: .*the end of the noise"
            ) as caught:
                await engine.infer(acting("exit"))
            assert len(str(caught.value)) < 1000

    asyncio.run(main())


def test_a_worker_that_leaks_is_ended(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life_module, "WATCH_S", 0.1)
    monkeypatch.setattr(life_module, "GROWN", 10.0)  # nothing is replaced in peace before

    async def main() -> None:
        spec = dataclasses.replace(SPEC, memory_limit_bytes=fault_engine.LEAK)
        async with running(job, spec) as engine:
            await assert_echoes(engine)
            await asyncio.sleep(0.3)
            assert engine.facts().restarts == 0, "the control: within its limit it is left alone"
            with contextlib.suppress(EngineLost):  # found during the call, or after it
                await engine.infer(acting("leak"))
            await eventually(lambda: engine.facts().restarts == 1)
            assert "MiB of memory, at most 256 are allowed" in engine._supervisor.reason
            await assert_echoes(engine)

    asyncio.run(main())


def test_an_idle_worker_that_stops_is_found(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life_module, "WATCH_S", 0.1)

    async def main() -> None:
        async with running(job, dataclasses.replace(SPEC, deadline_s=0.5)) as engine:
            await assert_echoes(engine)
            pid = engine.facts().pid
            assert pid is not None
            await asyncio.sleep(1.0)
            assert engine.facts().pid == pid, "the control: a healthy idle worker answers every time"
            os.kill(pid, signal.SIGSTOP)
            await eventually(lambda: not alive(pid))
            await assert_echoes(engine)

    asyncio.run(main())


def test_an_idle_worker_that_is_killed_is_replaced_before_anybody_calls(job: Job) -> None:
    async def main() -> None:
        async with running(job, SPEC) as engine:
            await engine.wait_ready()
            pid = engine.facts().pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: engine.facts().state == "ready" and engine.facts().pid != pid)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("segfault", "was killed by SIGSEGV"),
        ("hang", r"did not load the model within 1 s \(it was at: pretending to load\)"),
        ("engine", "cannot load the model: the device fell off the bus"),
        ("garbage", "broke the protocol"),
    ],
)
def test_a_worker_that_fails_to_load_says_why_at_once(job: Job, act: str, reason: str) -> None:
    async def main() -> None:
        deadline_s = 1.0 if act == "hang" else 20.0
        async with open_engine(dataclasses.replace(SPEC, load_deadline_s=deadline_s), loading(job, act)):
            raise AssertionError("it must not become ready")

    with pytest.raises(EngineError, match=reason):
        asyncio.run(main())
    assert children() == set()


@pytest.mark.parametrize(
    ("python", "reason"),
    [
        ("/nowhere/python", "cannot start /nowhere/python: No such file.*engines.echo.python"),
        ("/dev/null", "cannot start /dev/null: Permission denied"),
        ("/bin/false", "exited with code 1"),
    ],
)
def test_an_interpreter_that_is_none_says_so(job: Job, python: str, reason: str) -> None:
    async def main() -> None:
        async with open_engine(dataclasses.replace(SPEC, python=python), job):
            raise AssertionError("it must not become ready")

    with pytest.raises(EngineLost, match=reason):
        asyncio.run(main())


@pytest.mark.parametrize("spare", range(9))
def test_too_many_open_files_are_an_engine_error_that_passes(job: Job, spare: int) -> None:
    async def main() -> None:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
        async with running(job, SPEC) as engine:
            resource.setrlimit(resource.RLIMIT_NOFILE, (_free_below(used, spare), before[1]))
            try:
                with contextlib.suppress(EngineError):
                    await engine.wait_ready()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            await assert_echoes(engine)

    asyncio.run(main())
    assert children() == set()


def _free_below(used: list[int], spare: int) -> int:
    """The limit that leaves this many free descriptors."""
    return [fd for fd in range(max(used) + spare + 2) if fd not in used][spare]


def test_a_model_too_large_to_share_is_an_engine_error(job: Job) -> None:
    async def main() -> None:
        huge = dataclasses.replace(job.model, classes=1 << 28)  # type: ignore[type-var]  # a PlannedModel
        async with open_engine(SPEC, dataclasses.replace(job, model=huge)):
            raise AssertionError("it must not become ready")

    with pytest.raises(EngineError, match="the model cannot be handed to a worker: a slot of"):
        asyncio.run(main())


def test_an_engine_that_cannot_be_imported_says_so(job: Job, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import a_package_that_nobody_has\n")

    async def main() -> None:
        async with open_engine(dataclasses.replace(SPEC, engine_file=tmp_path / "broken.py"), job):
            raise AssertionError("it must not become ready")

    with pytest.raises(
        EngineLost, match=r"\(NO_ENGINE\); its last words: .*No module named 'a_package_that_nobody_has' \(install"
    ):
        asyncio.run(main())


def test_a_worker_that_keeps_failing_is_quarantined_and_heals(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with running(job, SPEC) as engine:
            for _ in range(QUICK.failures):
                with pytest.raises(EngineLost):
                    await engine.infer(acting("exit"))
            assert engine.facts().state == "quarantined"
            assert "exited with code 9" in engine.facts().reason
            started = time.monotonic()
            await assert_echoes(engine)  # waits for the slow retry
            assert time.monotonic() - started >= QUICK.quarantine_s / 2
            assert engine.facts().state == "ready"
            with pytest.raises(EngineLost):
                await engine.infer(acting("exit"))
            assert engine.facts().state == "backoff", "the completed call ended the row"

    with caplog.at_level(logging.INFO, "edged.engines.engine"):
        asyncio.run(main())
    lost = [record for record in caplog.records if record.msg.startswith("engine lost")]
    assert [record.msg.rpartition("; ")[2] for record in lost] == [
        "starting it again", "starting it again", "left alone for a while", "starting it again"]  # fmt: skip
    assert all(
        "said" in record.__dict__ and record.__dict__["reason"] and record.__dict__["pause_s"] > 0 for record in lost
    )


def test_a_poisoned_frame_ends_two_workers_and_no_more(job: Job) -> None:
    async def main() -> None:
        async with running(job, SPEC) as engine:
            await assert_echoes(engine)
            for _ in range(2):
                with pytest.raises(EngineLost):
                    await engine.infer(acting("segfault"))
            for _ in range(5):
                await assert_echoes(engine)
            assert engine.facts().restarts == 2

    asyncio.run(main())


def test_the_kernel_prefers_a_worker_when_memory_runs_out(job: Job) -> None:
    async def main() -> None:
        async with running(job, SPEC) as engine:
            await engine.wait_ready()
            assert Path(f"/proc/{engine.facts().pid}/oom_score_adj").read_text().strip() == "500"
            limits = Path(f"/proc/{engine.facts().pid}/limits").read_text()
            assert re.search(r"Max core file size +0 +0 ", limits), limits

    asyncio.run(main())


def test_a_cancelled_call_gives_its_slot_back_only_when_the_worker_is_done(job: Job) -> None:
    async def main() -> None:
        async with running(job, SPEC) as engine:
            await assert_echoes(engine)
            for seed in range(20):
                tasks = [asyncio.create_task(engine.infer(frames(2, seed))) for _ in range(4)]
                await asyncio.sleep(0)
                for task in tasks[::2]:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                for result in results[1::2]:
                    assert not isinstance(result, BaseException)
                    np.testing.assert_array_equal(result.readout, frames(2, seed)["x"][:, :3])
            assert engine.oldest_pending_ns() is None

    asyncio.run(main())


def test_pending_work_is_told_to_the_watchdog(job: Job) -> None:
    async def main() -> None:
        async with running(job, dataclasses.replace(SPEC, deadline_s=0.5)) as engine:
            await assert_echoes(engine)
            assert engine.oldest_pending_ns() is None
            before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            call = asyncio.create_task(engine.infer(acting("hang")))
            await asyncio.sleep(0.05)
            since = engine.oldest_pending_ns()
            assert since is not None
            assert before <= since <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            with pytest.raises(EngineLost):
                await call
            assert engine.oldest_pending_ns() is None

    asyncio.run(main())
