"""What a trial asks for, whose fault a failure is, and that every pipeline of a model has its say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from edged.bundle.store.record import Proof, Slot
from edged.bundle.store.states import State
from edged.bundle.store.store import ModelStore
from edged.engines.life import WorkerSpec
from edged.errors import BundleError, EngineLost
from edged.installed import CRASHES, Installed, Judge, Measure, ModelDamaged, this_machine
from edged.pipeline import Flow
from edged.ready import CUTS, ModelFailed, Recipe, make_ready
from edged.status import EngineFacts
from tests.support.bundles import make_bundle
from tests.support.store import NAME, make_store, packed, record_of, write_bundle

FLOW = Flow(queued=0, in_flight=Counter(), latency_ns=(), engine_ns=(), results=100, errors=5, rejected=7, last_seq=112)
ENGINE = EngineFacts(name="event", model="digits@1.0.2", state="ready", restarts=4)
JUDGE = Judge(Measure(results=10, seconds=60.0), began_s=1000.0, flow=FLOW, restarts=4)


@pytest.mark.parametrize(("results", "later_s", "well"), [
    (10, 60, True), (500, 61, True), (9, 3600, False), (500, 59, False), (0, 0, False),
])  # fmt: skip
def test_a_trial_ends_well_after_enough_results_and_enough_time(results: int, later_s: float, well: bool) -> None:
    verdict = JUDGE.verdict(replace(FLOW, results=100 + results), ENGINE, 1000.0 + later_s)
    assert (verdict.well, verdict.reason) == (well, "")


@pytest.mark.parametrize(("results", "errors", "rejected", "bad"), [
    (4, 6, 0, True), (4, 0, 6, True), (0, 5, 5, True), (5, 5, 0, False), (0, 9, 0, False), (500, 499, 0, False),
])  # fmt: skip
def test_frames_that_mostly_fail_take_the_model_back(results: int, errors: int, rejected: int, bad: bool) -> None:
    flow = replace(FLOW, results=100 + results, errors=5 + errors, rejected=7 + rejected)
    assert bool(JUDGE.verdict(flow, ENGINE, 1001.0).reason) is bad


def test_lost_workers_take_the_model_back_though_all_else_is_well() -> None:
    flow = replace(FLOW, results=1000)
    for lost in range(CRASHES):
        facts = msgspec.structs.replace(ENGINE, restarts=4 + lost)
        assert JUDGE.verdict(flow, facts, 2000.0).well
    facts = msgspec.structs.replace(ENGINE, restarts=4 + CRASHES, reason="out of memory")
    assert JUDGE.verdict(flow, facts, 2000.0).reason == f"it lost {CRASHES} workers on trial: out of memory"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ModelStore]:
    store = make_store(tmp_path, allow_unsigned=True)
    store.open()
    for counter in (1, 2):
        name, slot = store.install(packed(tmp_path / "b", None, counter))
        store.begin_trial(name, running=True)
        if counter == 1:
            proof = Proof(digest=slot.digest, engine="event", engine_version="1", device=this_machine())
            store.prove(name, proof)
            store.commit(name)
    yield store
    store.close()


def current(store: ModelStore) -> Slot:
    slot = store.current(NAME)
    assert slot is not None
    return slot


def prove(store: ModelStore) -> None:
    proof = Proof(digest=current(store).digest, engine="event", engine_version="1", device=this_machine())
    store.prove(NAME, proof)


def test_a_model_is_committed_when_every_pipeline_is_content(store: ModelStore) -> None:
    installed = Installed(store, Measure(0, 0), {NAME: {"left", "right"}})
    prove(store)
    slot = current(store)
    for pipeline in ("left", "left"):
        asyncio.run(installed.went_well(NAME, slot, pipeline))
        assert current(store).state is State.TRIAL
    asyncio.run(installed.went_well(NAME, slot, "right"))
    assert (current(store).state, current(store).digest) == (State.ACTIVE, slot.digest)


def test_content_pipelines_cannot_commit_what_proved_nothing(store: ModelStore) -> None:
    installed = Installed(store, Measure(0, 0), {NAME: {"only"}})
    asyncio.run(installed.went_well(NAME, current(store), "only"))
    assert current(store).state is State.TRIAL


@pytest.mark.parametrize(("error", "left"), [
    (ModelFailed("golden data differ"), State.FAILED),
    (EngineLost("no worker came up"), State.ROLLED_BACK),
    (BundleError("its plans cannot be written: No space left on device"), State.ROLLED_BACK),
    (ModelDamaged("model.onnx is damaged"), None),
])  # fmt: skip
def test_only_a_failure_of_its_own_is_held_against_a_model(
    store: ModelStore, error: Exception, left: State | None
) -> None:
    installed = Installed(store, Measure(0, 0), {NAME: {"only"}})
    trial = current(store)
    assert isinstance(error, (ModelFailed, EngineLost, BundleError))
    asyncio.run(installed.could_not_run(NAME, trial, error))
    found = record_of(store).slot(trial.digest)
    assert (found.state if found else None) is left
    assert current(store).release_counter == 1


def test_an_active_model_that_fails_later_gives_way_but_is_not_condemned(store: ModelStore) -> None:
    installed = Installed(store, Measure(0, 0), {NAME: {"only"}})
    prove(store)
    asyncio.run(installed.went_well(NAME, current(store), "only"))
    second = current(store)
    asyncio.run(installed.could_not_run(NAME, second, ModelFailed("golden data differ")))
    found = record_of(store).slot(second.digest)
    assert found is not None and found.state is State.ROLLED_BACK
    first = current(store)
    asyncio.run(installed.could_not_run(NAME, first, ModelFailed("golden data differ")))
    assert current(store) == first, "the last one stays, to be tried again"


def test_a_change_wakes_whoever_waits_in_the_loop(store: ModelStore) -> None:
    async def body() -> None:
        installed = Installed(store, Measure(0, 0))
        installed.attach()
        waiting = asyncio.create_task(installed.change(10))
        await asyncio.sleep(0)
        await asyncio.to_thread(store.roll_back, NAME, "by command")
        await asyncio.wait_for(waiting, 5)
        await installed.change(0.01)  # and it ends by itself

    asyncio.run(body())


FAULTS = Path(__file__).parents[1] / "support" / "fault_engine.py"


def recipe(tmp_path: Path, *, patient: bool = False) -> Recipe:
    spec = WorkerSpec("fault", engine_file=FAULTS, load_deadline_s=10.0)
    return Recipe(spec, max_batch=2, cache_dir=tmp_path / "cache", patient=patient)


@pytest.mark.parametrize(("act", "error", "match"), [
    ("load-exit", EngineLost, "no worker came up"),
    ("load-engine", ModelFailed, "refuses it.*fell off the bus"),
])  # fmt: skip
def test_a_worker_that_does_not_come_up_is_not_the_models_fault_but_its_refusal_is(
    tmp_path: Path, act: str, error: type[Exception], match: str
) -> None:
    make_bundle(tmp_path / act)
    with pytest.raises(error, match=match) as caught:
        asyncio.run(make_ready(tmp_path / act, recipe(tmp_path)))
    assert isinstance(caught.value, ModelFailed) is (error is ModelFailed)


def test_wrong_answers_are_the_models_fault(tmp_path: Path) -> None:
    """The fault engine cannot step, so no recorded step comes out right."""
    make_bundle(tmp_path / "bundle")
    with pytest.raises(ModelFailed, match="failed its self-test on fault: steps"):
        asyncio.run(make_ready(tmp_path / "bundle", recipe(tmp_path)))


def test_a_refused_graph_is_the_models_fault_and_a_damaged_file_is_not(tmp_path: Path) -> None:
    with pytest.raises(ModelFailed, match="its graph is refused"):
        asyncio.run(make_ready(write_bundle(tmp_path / "no-graph").path, recipe(tmp_path)))
    bundle = make_bundle(tmp_path / "bundle")
    (bundle.path / "model.onnx").write_bytes(b"short")
    with pytest.raises(BundleError, match=r"has 5 bytes") as caught:
        asyncio.run(make_ready(bundle.path, recipe(tmp_path)))
    assert not isinstance(caught.value, ModelFailed)


def test_a_full_disk_while_plans_are_made_is_not_the_models_fault(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    (tmp_path / "cache").write_bytes(b"")  # no directory can be made here
    with pytest.raises(BundleError, match=r"cannot be made|cannot be") as caught:
        asyncio.run(make_ready(tmp_path / "bundle", recipe(tmp_path)))
    assert not isinstance(caught.value, ModelFailed)


def test_three_workers_that_die_in_the_self_test_are_the_models_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "bundle")
    asked = []

    async def step(*_: object) -> None:
        asked.append(1)
        raise EngineLost("the worker was killed by SIGSEGV")

    monkeypatch.setattr("edged.engines.engine.WorkerEngine.step", step)
    monkeypatch.setattr("edged.engines.engine.WorkerEngine.infer", step)
    with pytest.raises(ModelFailed, match=f"ended {CUTS} workers in its self-test.*SIGSEGV"):
        asyncio.run(make_ready(tmp_path / "bundle", recipe(tmp_path)))
    assert len(asked) >= CUTS
    with pytest.raises(TimeoutError):  # a model that was active before is given all the time there is
        asyncio.run(asyncio.wait_for(make_ready(tmp_path / "bundle", recipe(tmp_path, patient=True)), 1.0))
