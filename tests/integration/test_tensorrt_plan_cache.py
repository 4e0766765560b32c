"""Plans of TensorRT: kept, found again, refused when not ours; builds that are killed, crash or take too long.

On the test doubles of ``test_tensorrt_worker.py``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edged.bundle.plans import ensure_plans
from edged.bundle.selftest import prove
from edged.engines.engine import WorkerEngine
from edged.engines.life import Job, WorkerLife, WorkerSpec
from edged.engines.worker.tensorrt.model import TRIED
from edged.errors import EngineError, EngineLost
from edged.ready import Recipe, make_ready
from tests.support.bundles import make_bundle
from tests.support.tensorrt import MAX_BATCH, FakeGpu, on_tensorrt, plan_of, spec_of

SLOW = pytest.mark.slow


def kept(cache: Path) -> dict[str, float]:
    """The files of the plan cache with their times of change; none of a build that is under way."""
    found = [path for path in (cache / "tensorrt").rglob("*") if path.is_file()]
    assert not [path for path in found if ".building" in str(path)]
    return {path.name: path.stat().st_mtime_ns for path in found}


# The cache


def test_a_second_start_builds_nothing(gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "dense")
    first = on_tensorrt(gpu, bundle, tmp_path, plan_of)
    before = kept(tmp_path)
    assert {"step.plan", "window.plan", "choice", "timing.cache"} <= set(before)
    monkeypatch.setenv("FAKE_TENSORRT_FAIL", "all")  # whoever builds now fails
    assert on_tensorrt(gpu, bundle, tmp_path, plan_of) == first
    assert kept(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{"FAKE_TENSORRT_VERSION": "10.4.0"}, {"FAKE_CUDA_NAME": "another board"}])
def test_another_version_or_device_builds_again(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str]
) -> None:
    bundle = make_bundle(tmp_path / "dense")
    on_tensorrt(gpu, bundle, tmp_path, plan_of)
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    on_tensorrt(gpu, bundle, tmp_path, plan_of)
    assert len(list((tmp_path / "tensorrt" / "plans").iterdir())) == 2


def test_a_jetpack_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edged.engines.worker.tensorrt import model

    release = tmp_path / "nv_tegra_release"
    monkeypatch.setattr(model, "JETPACK", release)
    assert model._jetpack() == ""
    release.write_text("# R36 (release), REVISION: 4.3\n")
    assert model._jetpack() == "# R36 (release), REVISION: 4.3"


@pytest.mark.parametrize("damage", ["cut", pytest.param("flip", marks=SLOW), pytest.param("foreign", marks=SLOW)])
def test_a_plan_that_is_damaged_or_not_ours_is_built_again(gpu: FakeGpu, tmp_path: Path, damage: str) -> None:
    bundle = make_bundle(tmp_path / "dense")
    on_tensorrt(gpu, bundle, tmp_path, plan_of)
    plan = next((tmp_path / "tensorrt").rglob("step.plan"))
    whole = plan.read_bytes()
    plan.write_bytes({"flip": bytes([whole[0] ^ 1]) + whole[1:], "cut": whole[:-9], "foreign": b"somebody's"}[damage])

    async def use(engine: WorkerEngine) -> str:
        return (await prove(engine, bundle)).reason

    assert on_tensorrt(gpu, bundle, tmp_path, use) == ""
    assert plan.read_bytes() == whole


# Builds that end early


async def killed_while(job: Job, spec: WorkerSpec, stage: str) -> str:
    """Kill a worker while it is at a stage. Returns the stage it was at."""
    life = WorkerLife(spec)
    starting = asyncio.create_task(life.start(job, lambda _: None))
    give_up = time.monotonic() + 60
    while stage not in life.stage and time.monotonic() < give_up:
        await asyncio.sleep(0.02)
    at = life.stage
    assert life.pid is not None
    (child,) = map(int, Path(f"/proc/{life.pid}/task/{life.pid}/children").read_text().split())
    os.kill(life.pid, signal.SIGKILL)
    with pytest.raises(EngineLost):
        await starting
    await life.end(EngineLost("killed"))
    while _runs(child) and time.monotonic() < give_up:
        await asyncio.sleep(0.02)
    assert not _runs(child), "the build outlived its worker"
    return at


def _runs(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # a zombie has none
    except OSError:
        return False


@pytest.mark.parametrize("part", ["step", "window"])
def test_a_kill_in_a_build_leaves_no_half_plan_and_the_next_start_builds(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    bundle = make_bundle(tmp_path / "dense")
    plans = asyncio.run(ensure_plans(bundle, tmp_path, ["tensorrt"]))
    monkeypatch.setenv("FAKE_TENSORRT_SLOW", f"{part}:600")
    stage = asyncio.run(
        killed_while(Job(bundle, MAX_BATCH, plans, tmp_path), spec_of(gpu), f"building the {part} plan")
    )
    assert "s of at most" in stage
    left = [path.name for path in (tmp_path / "tensorrt").rglob("*") if path.is_file()]
    assert f"{part}.plan" not in left
    assert f"{part}.plan.json" not in left
    monkeypatch.setenv("FAKE_TENSORRT_SLOW", "")

    async def use(engine: WorkerEngine) -> str:
        return (await prove(engine, bundle)).reason

    assert on_tensorrt(gpu, bundle, tmp_path, use) == ""
    assert {"step.plan", "window.plan", "choice"} <= set(kept(tmp_path))


@pytest.mark.slow
def test_a_builder_that_crashes_costs_a_build_and_no_worker(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_FAIL", "crash in window")
    bundle = make_bundle(tmp_path / "dense")
    assert on_tensorrt(gpu, bundle, tmp_path, plan_of) == "tensorrt-f32-steps"
    monkeypatch.setenv("FAKE_TENSORRT_FAIL", "crash in step")
    with pytest.raises(EngineError, match="the build ended with code -11"):
        on_tensorrt(gpu, bundle, tmp_path / "other", plan_of)


@pytest.mark.slow
def test_what_a_killed_build_left_is_cleared_away(gpu: FakeGpu, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "dense")
    on_tensorrt(gpu, bundle, tmp_path, plan_of)
    folder = next((tmp_path / "tensorrt" / "plans").iterdir())
    (folder / ".building-dead").mkdir()
    (folder / ".building-dead" / "step.plan").write_bytes(b"half")
    (folder / "step.plan.json").unlink()  # so that something is to be built
    on_tensorrt(gpu, bundle, tmp_path, plan_of)
    assert not list(folder.glob(".building-*"))


@pytest.mark.slow
def test_a_window_that_takes_too_long_is_given_up_for_good(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_SLOW", "window:600")
    bundle = make_bundle(tmp_path / "dense")
    short = replace(spec_of(gpu), load_deadline_s=8.0)  # the window has about three of them
    began = time.monotonic()
    assert on_tensorrt(gpu, bundle, tmp_path, plan_of, short) == "tensorrt-f32-steps"
    assert time.monotonic() - began < 20
    began = time.monotonic()
    assert on_tensorrt(gpu, bundle, tmp_path, plan_of, short) == "tensorrt-f32-steps"
    assert time.monotonic() - began < 6, "the second start does not try again"


@pytest.mark.slow
def test_a_window_whose_build_was_cut_short_twice_is_not_tried_again(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_SLOW", "window:600")
    bundle = make_bundle(tmp_path / "dense")
    plans = asyncio.run(ensure_plans(bundle, tmp_path, ["tensorrt"]))
    job = Job(bundle, MAX_BATCH, plans, tmp_path)
    for times in (1, 2):
        asyncio.run(killed_while(job, spec_of(gpu), "building the window plan"))
        record = next((tmp_path / "tensorrt").rglob(f"{TRIED}.json"))
        assert json.loads(record.read_text())["notes"] == {"times": times}
    assert on_tensorrt(gpu, bundle, tmp_path, plan_of) == "tensorrt-f32-steps"


@pytest.mark.slow
def test_while_a_plan_is_built_the_next_engine_serves(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_SLOW", "step:600")
    bundle = make_bundle(tmp_path / "dense")

    async def main() -> tuple[str, str, str]:
        recipe = Recipe((spec_of(gpu), WorkerSpec("onnxruntime")), 1, tmp_path / "cache")
        ready = await make_ready(bundle.path, recipe)
        try:
            facts = {one.name: one for one in ready.engine.all_facts()}
            return ready.engine.name, facts["tensorrt"].placement, facts["tensorrt"].reason
        finally:
            await ready.end()

    began = time.monotonic()
    served, placement, reason = asyncio.run(main())
    assert (served, placement) == ("onnxruntime", "trying")
    assert "building the step plan" in reason
    assert "s of at most 9" in reason
    assert time.monotonic() - began < 30
