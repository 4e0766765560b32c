"""The table of slots and the rules of a record: every move, legal or not, and what no command may bring about."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest

from edged.bundle.store import record as rules
from edged.bundle.store.record import FAILED_KEPT, PROOFS_KEPT, TRIAL_STARTS, ModelRefused, Proof, Record, Slot
from edged.bundle.store.states import ALONE, TRANSITIONS, Event, IllegalMove, State, after, diagram


def digest(number: int) -> str:
    return f"{number:064x}"


def slot(number: int, state: State = State.ABSENT, **more: object) -> Slot:
    fields = {"digest": digest(number), "version": f"1.0.{number}", "release_counter": number, "state": state}
    return msgspec.convert({**fields, "state": state.value, **more}, Slot)


def proof(number: int) -> Proof:
    return Proof(digest=digest(number), engine="event", engine_version="1", device="board")


def record(*slots: Slot, floor: int = 0) -> Record:
    return Record(name="digits", floor=floor, slots=slots, proofs=tuple(proof(int(s.digest, 16)) for s in slots))


def states(found: Record) -> dict[int, State]:
    return {int(one.digest, 16): one.state for one in found.slots}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_a_move_is_in_the_table_or_raises(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert after(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalMove, match=f"{state.value} cannot take: {event.value}"):
            after(state, event)


def test_every_state_can_be_reached_and_left() -> None:
    reached = {State.ABSENT}
    for _ in State:
        reached |= {to for (state, _), to in TRANSITIONS.items() if state in reached}
    assert reached == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State)


def test_what_failed_never_runs_again_and_what_runs_was_on_trial_before() -> None:
    assert {to for (state, _), to in TRANSITIONS.items() if state is State.FAILED} == {State.ABSENT}
    assert {state for (state, _), to in TRANSITIONS.items() if to is State.ACTIVE} == {State.TRIAL, State.PREVIOUS}


def test_the_diagram_has_every_move_and_the_documentation_shows_it() -> None:
    assert len(diagram().splitlines()) == len(TRANSITIONS) + 1
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    assert f"```mermaid\n{diagram()}\n```" in text


def test_an_update_that_goes_well() -> None:
    found = rules.install(record(), slot(1))
    found = rules.proved(rules.begin_trial(found), proof(1))
    assert found.current == found.of(State.TRIAL)
    found = rules.commit(found)
    assert (states(found), found.floor) == ({1: State.ACTIVE}, 1)
    found = rules.install(found, slot(2))
    assert found.current == found.of(State.ACTIVE)
    found = rules.commit(rules.proved(rules.begin_trial(found), proof(2)))
    assert states(found) == {1: State.PREVIOUS, 2: State.ACTIVE}
    found = rules.commit(rules.proved(rules.begin_trial(rules.install(found, slot(3))), proof(3)))
    assert states(found) == {2: State.PREVIOUS, 3: State.ACTIVE}
    found = rules.roll_back(found, "by command")
    assert states(found) == {2: State.ACTIVE, 3: State.ROLLED_BACK}
    assert found.floor == 3
    with pytest.raises(ModelRefused, match="no previous version"):
        rules.roll_back(found, "again")
    assert states(rules.begin_trial(found))[3] is State.TRIAL


def test_a_trial_that_fails_is_remembered_and_forgotten_only_by_command() -> None:
    found = rules.begin_trial(record(slot(1, State.ACTIVE), slot(2, State.STAGED)))
    found = rules.fail(found, digest(2), "it dropped a bias")
    assert states(found) == {1: State.ACTIVE, 2: State.FAILED}
    assert found.digests() == {digest(1)}
    with pytest.raises(ModelRefused, match="failed on this device before: it dropped a bias"):
        rules.install(found, slot(2))
    assert states(rules.install(rules.discard(found, digest(2)), slot(2))) == {1: State.ACTIVE, 2: State.STAGED}
    assert states(rules.remove_all(found)) == {2: State.FAILED}


@pytest.mark.parametrize("state", [state for state in ALONE if state is not State.TRIAL])
def test_only_a_trial_can_fail(state: State) -> None:
    with pytest.raises(ModelRefused, match="not on trial"):
        rules.fail(record(slot(1, state)), digest(1), "reason")


def test_cuts_roll_a_trial_back_after_three_starts_and_blame_nobody() -> None:
    found = rules.begin_trial(record(slot(1, State.ACTIVE), slot(2, State.STAGED)))
    for start in range(1, TRIAL_STARTS + 1):
        found = rules.start_trial(found)
        trial = found.of(State.TRIAL)
        assert trial is not None and trial.trial_starts == start
    found = rules.start_trial(found)
    assert states(found) == {1: State.ACTIVE, 2: State.ROLLED_BACK}
    assert "started 3 times" in found.slots[1].reason
    again = rules.begin_trial(found, starts=1)
    assert again.of(State.TRIAL) == slot(2, State.TRIAL, trial_starts=1)
    assert rules.start_trial(record(slot(1, State.ACTIVE))) == record(slot(1, State.ACTIVE))


def test_a_start_that_ends_in_order_is_not_counted() -> None:
    found = rules.begin_trial(record(slot(1, State.ACTIVE), slot(2, State.STAGED)), starts=1)
    for _ in range(3 * TRIAL_STARTS):
        found = rules.start_trial(rules.stop_trial(found))
    trial = found.of(State.TRIAL)
    assert trial is not None and trial.trial_starts == 1
    assert rules.stop_trial(record(slot(1, State.ACTIVE))) == record(slot(1, State.ACTIVE))
    waiting = record(slot(1, State.TRIAL))
    assert rules.stop_trial(waiting) == waiting


def test_nothing_is_committed_without_a_proof() -> None:
    found = msgspec.structs.replace(record(slot(1, State.TRIAL)), proofs=(proof(2),))
    with pytest.raises(ModelRefused, match="has not proved itself"):
        rules.commit(found)
    with pytest.raises(ModelRefused, match="nothing on trial"):
        rules.commit(record(slot(1, State.ACTIVE)))


@pytest.mark.parametrize(("counter", "downgrade_from", "taken"), [
    (5, None, True), (6, None, True), (4, None, False), (0, None, False),
    (4, 5, True), (4, 9, True), (4, 4, False), (0, 0, False),
])  # fmt: skip
def test_an_older_release_needs_a_signature_that_allows_it(
    counter: int, downgrade_from: int | None, taken: bool
) -> None:
    found = record(slot(5, State.ACTIVE), floor=5)
    new = msgspec.structs.replace(slot(9), release_counter=counter, downgrade_from=downgrade_from)
    if taken:
        assert states(rules.install(found, new))[9] is State.STAGED
    else:
        with pytest.raises(ModelRefused, match="release counter"):
            rules.install(found, new)


def test_the_floor_outlives_removal_and_binds_trials_too() -> None:
    found = rules.remove_all(record(slot(5, State.ACTIVE), floor=5))
    assert (found.slots, found.floor) == ((), 5)
    with pytest.raises(ModelRefused, match="5 was committed before"):
        rules.install(found, slot(4))
    old = record(slot(5, State.ACTIVE), slot(4, State.ROLLED_BACK), floor=5)
    with pytest.raises(ModelRefused, match="5 was committed before"):
        rules.begin_trial(old)


@pytest.mark.parametrize("state", [*ALONE, State.FAILED])
def test_the_same_bundle_is_not_installed_twice(state: State) -> None:
    with pytest.raises(ModelRefused, match=r"installed already|failed on this device"):
        rules.install(record(slot(1, state)), slot(1))


@pytest.mark.parametrize("state", [State.ACTIVE, State.TRIAL])
def test_what_runs_is_not_removed(state: State) -> None:
    with pytest.raises(ModelRefused, match=f"is {state.value}"):
        rules.discard(record(slot(1, state)), digest(1))


def test_one_trial_at_a_time() -> None:
    with pytest.raises(ModelRefused, match="on trial already"):
        rules.begin_trial(record(slot(1, State.TRIAL), slot(2, State.STAGED)))
    with pytest.raises(ModelRefused, match="has nothing staged"):
        rules.begin_trial(record(slot(1, State.ACTIVE)))
    with pytest.raises(ModelRefused, match="is active"):
        rules.begin_trial(record(slot(1, State.ACTIVE)), digest(1))


def test_what_is_replaced_goes() -> None:
    found = record(slot(1, State.PREVIOUS), slot(2, State.ACTIVE), slot(3, State.TRIAL), slot(4, State.ROLLED_BACK))
    assert states(rules.commit(found)) == {2: State.PREVIOUS, 3: State.ACTIVE, 4: State.ROLLED_BACK}
    assert states(rules.roll_back(found, "")) == {1: State.PREVIOUS, 2: State.ACTIVE, 3: State.ROLLED_BACK}
    staged = rules.install(rules.install(record(), slot(1)), slot(2))
    assert states(staged) == {2: State.STAGED}


def test_a_damaged_bundle_goes_if_another_can_run() -> None:
    pair = record(slot(1, State.PREVIOUS), slot(2, State.ACTIVE))
    assert states(rules.lose(pair, digest(2))) == {1: State.ACTIVE}
    assert states(rules.lose(pair, digest(1))) == {2: State.ACTIVE}
    assert states(rules.lose(record(slot(1, State.ACTIVE), slot(2, State.TRIAL)), digest(2))) == {1: State.ACTIVE}
    with pytest.raises(ModelRefused, match="no other"):
        rules.lose(record(slot(2, State.ACTIVE)), digest(2))


def test_what_is_remembered_is_bounded() -> None:
    found = record(slot(1, State.ACTIVE))
    for number in range(2, FAILED_KEPT + 10):
        found = rules.fail(rules.begin_trial(rules.install(found, slot(number))), digest(number), "bad")
        found = rules.proved(found, proof(number))
    failed = [one for one, state in states(found).items() if state is State.FAILED]
    assert failed == list(range(10, FAILED_KEPT + 10))
    assert len(found.proofs) == PROOFS_KEPT
    assert states(found)[1] is State.ACTIVE
    rules.check(found)


@pytest.mark.parametrize("slots", [
    (slot(1, State.ACTIVE), slot(2, State.ACTIVE)),
    (slot(1, State.ACTIVE), slot(1, State.PREVIOUS)),
    (slot(1, State.ABSENT),),
])  # fmt: skip
def test_impossible_records_are_not_believed(slots: tuple[Slot, ...]) -> None:
    with pytest.raises(ValueError, match=r"are active|two slots|is absent"):
        rules.check(record(*slots))
