"""What a trial asks for, whose fault a failure is, and that every pipeline of a model has its say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edged.bundle.store.record import Proof, Slot
from edged.bundle.store.states import State
from edged.bundle.store.store import ModelStore, ModelStoreError
from edged.engines.engine import WorkerEngine
from edged.engines.life import WorkerSpec
from edged.errors import BundleError, EdgedError, EngineCrashed, EngineError, EngineLost, FrameRejected
from edged.flow import Flow
from edged.installed import Installed, Judge, Measure, ModelDamaged, Outcome, Seen, this_machine
from edged.ready import CRASHES, KILLS, ModelFailed, Recipe, make_ready
from tests.support.bundles import make_bundle
from tests.support.store import NAME, make_store, packed, record_of, write_bundle

FLOW = Flow(queued=0, in_flight=Counter(), latency_ns=(), engine_ns=(), results=100, errors=5, rejected=7, last_seq=112)
BEGAN = Seen(FLOW, lost=4, crashes=2, now_s=1000.0)
JUDGE = Judge(Measure(results=10, seconds=60.0), BEGAN)


@pytest.mark.parametrize(("results", "later_s", "well"), [
    (10, 60, True), (500, 61, True), (9, 3600, False), (500, 59, False), (0, 0, False),
])  # fmt: skip
def test_a_trial_ends_well_after_enough_results_and_enough_time(results: int, later_s: float, well: bool) -> None:
    seen = replace(BEGAN, flow=replace(FLOW, results=100 + results), now_s=1000.0 + later_s)
    assert JUDGE.verdict(seen) == (Outcome.WELL if well else Outcome.OPEN, "")
    assert JUDGE.progress(seen) == f"{results} of 10 results, {later_s} of 60 s"


@pytest.mark.parametrize(("results", "errors", "rejected", "bad"), [
    (4, 6, 0, True), (4, 0, 6, True), (0, 5, 5, True), (5, 5, 0, False), (0, 9, 0, False), (500, 499, 0, False),
])  # fmt: skip
def test_frames_that_mostly_fail_take_the_model_back(results: int, errors: int, rejected: int, bad: bool) -> None:
    flow = replace(FLOW, results=100 + results, errors=5 + errors, rejected=7 + rejected)
    outcome, _ = JUDGE.verdict(replace(BEGAN, flow=flow))
    assert outcome is (Outcome.TAKEN_BACK if bad else Outcome.OPEN)


@pytest.mark.parametrize(("crashes", "kills", "outcome"), [
    (0, 0, Outcome.WELL), (2, 0, Outcome.WELL), (0, 2, Outcome.WELL), (1, 1, Outcome.WELL),
    (3, 0, Outcome.FAILED), (3, 5, Outcome.FAILED), (0, 3, Outcome.TAKEN_BACK), (2, 1, Outcome.TAKEN_BACK),
])  # fmt: skip
def test_crashes_are_held_against_a_model_and_kills_only_end_its_trial(
    crashes: int, kills: int, outcome: Outcome
) -> None:
    flow = replace(FLOW, results=1000)
    seen = Seen(flow, lost=4 + crashes + kills, crashes=2 + crashes, reason="it stopped", now_s=2000.0)
    found, reason = JUDGE.verdict(seen)
    assert found is outcome
    assert reason.endswith("on trial: it stopped") or outcome is Outcome.WELL


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
    for trouble in (EngineLost("no worker came up"), BundleError("No space left on device")):
        asyncio.run(installed.could_not_run(NAME, second, trouble))
        assert current(store) == second, "what troubles the device would trouble the previous one, too"
    asyncio.run(installed.could_not_run(NAME, second, ModelFailed("golden data differ")))
    found = record_of(store).slot(second.digest)
    assert found is not None and found.state is State.ROLLED_BACK
    first = current(store)
    assert installed.gone(NAME, first) == "1.0.2 rolled-back: golden data differ"
    asyncio.run(installed.could_not_run(NAME, first, ModelFailed("golden data differ")))
    assert current(store) == first, "the last one stays, to be tried again"


@pytest.mark.parametrize(("error", "left"), [
    (EngineCrashed("the worker was killed by SIGSEGV"), State.FAILED),
    (EngineLost("the worker was killed by SIGKILL"), State.ROLLED_BACK),
    (EngineError("this frame cannot be computed"), State.ROLLED_BACK),
    (FrameRejected("wants another shape"), State.ROLLED_BACK),
])  # fmt: skip
def test_a_frame_without_a_result_ends_a_trial(store: ModelStore, error: EdgedError, left: State) -> None:
    installed = Installed(store, Measure(0, 0), {NAME: {"only"}})
    trial = current(store)
    asyncio.run(installed.failed_frame(NAME, trial, error))
    found = record_of(store).slot(trial.digest)
    assert found is not None and found.state is left and error.message in found.reason
    assert current(store) == installed.fallback(NAME)


def test_a_proof_that_cannot_be_kept_stops_a_trial_and_not_the_active_model(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = Installed(store, Measure(0, 0), {NAME: {"only"}})
    trial, active = current(store), installed.fallback(NAME)
    assert active is not None

    def full(*_: object) -> None:
        raise ModelStoreError("No space left on device")

    monkeypatch.setattr(store, "prove", full)
    proof = Proof(digest=active.digest, engine="event", engine_version="2", device="board")
    installed.proved(NAME, active, proof)
    with pytest.raises(ModelStoreError):
        installed.proved(NAME, trial, proof)


def test_a_change_wakes_whoever_waits_in_the_loop(store: ModelStore) -> None:
    async def body() -> None:
        installed = Installed(store, Measure(0, 0))
        installed.attach()
        change = installed.change()
        await asyncio.to_thread(store.roll_back, NAME, "by command")  # nobody waits yet
        await asyncio.wait_for(change.wait(), 5)
        assert not installed.change().is_set()  # the next one is another

    asyncio.run(body())


FAULTS = Path(__file__).parents[1] / "support" / "fault_engine.py"


def recipe(tmp_path: Path, *, patient: bool = False, crashes: int | None = CRASHES) -> Recipe:
    spec = WorkerSpec("fault", engine_file=FAULTS, load_deadline_s=10.0)
    return Recipe((spec,), max_batch=2, cache_dir=tmp_path / "cache", patient=patient, crashes=crashes)


@pytest.mark.parametrize(("act", "error", "match"), [
    ("load-exit", EngineLost, "no worker came up"),
    ("load-engine", ModelFailed, "refuses it.*fell off the bus"),
    ("load-segfault", ModelFailed, "5 workers crashed while they loaded it.*SIGSEGV"),
])  # fmt: skip
def test_a_worker_that_does_not_come_up_is_not_the_models_fault_but_a_refusal_or_a_fault_is(
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


class Dying:
    """Lets the self-test's calls end in errors, one after the other; the rest are answered by the worker."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: EngineLost) -> None:
        self.left = list(errors)
        real = WorkerEngine.step

        async def step(engine: WorkerEngine, *arguments: Any) -> object:
            if self.left:
                raise self.left.pop(0)
            return await real(engine, *arguments)

        monkeypatch.setattr(WorkerEngine, "step", step)


CRASH, KILL = EngineCrashed("the worker was killed by SIGSEGV"), EngineLost("the worker was killed by SIGKILL")


@pytest.mark.parametrize(("errors", "left", "error", "match"), [
    ([CRASH] * CRASHES, 0, ModelFailed, f"{CRASHES} workers crashed in its self-test.*SIGSEGV"),
    ([CRASH, KILL, CRASH, KILL, CRASH, CRASH], 1, ModelFailed, "3 workers crashed"),
    ([KILL] * (KILLS + 5), 5, EngineLost, f"{KILLS} workers were lost in its self-test.*SIGKILL"),
    ([KILL] * (KILLS - 1), 0, ModelFailed, "failed its self-test on fault: steps"),  # asked at last, it cannot step
    ([CRASH] * (CRASHES - 1), 0, ModelFailed, "failed its self-test on fault: steps"),
])  # fmt: skip
def test_a_worker_lost_in_the_self_test_is_asked_again_a_bounded_number_of_times(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    errors: list[EngineLost],
    left: int,
    error: type[Exception],
    match: str,
) -> None:
    make_bundle(tmp_path / "bundle")
    dying = Dying(monkeypatch, *errors)
    with pytest.raises(error, match=match) as caught:
        asyncio.run(make_ready(tmp_path / "bundle", recipe(tmp_path)))
    assert isinstance(caught.value, ModelFailed) is (error is ModelFailed)
    assert len(dying.left) == left


@pytest.mark.parametrize(("errors", "crashes", "match"), [
    ([KILL] * (KILLS + 5), CRASHES, "failed its self-test on fault"),  # an active one: kills are waited out
    ([CRASH] * CRASHES, CRASHES, "workers crashed"),
    ([CRASH, KILL] * 10, None, "failed its self-test on fault"),  # a bundle directory: all is waited out
])  # fmt: skip
def test_a_model_without_another_beside_it_is_given_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: list[EngineLost], crashes: int | None, match: str
) -> None:
    make_bundle(tmp_path / "bundle")
    dying = Dying(monkeypatch, *errors)
    with pytest.raises(ModelFailed, match=match):
        asyncio.run(make_ready(tmp_path / "bundle", recipe(tmp_path, patient=True, crashes=crashes)))
    assert not dying.left
