"""Every move of a worker's life, legal or not; pauses, quarantine and healing."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from edged.supervisor import ALIVE, RESTING, TRANSITIONS, Budget, Event, IllegalMove, State, Supervisor, diagram

BUDGET = Budget(first_s=1.0, factor=2.0, longest_s=3.0, failures=4, quarantine_s=100.0)


def ready(supervisor: Supervisor) -> None:
    for event in (Event.SPAWNED, Event.GREETED, Event.LOADED):
        supervisor.move(event)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_a_move_is_in_the_table_or_raises(state: State, event: Event) -> None:
    supervisor = Supervisor()
    supervisor.state = state
    if (state, event) in TRANSITIONS:
        assert supervisor.move(event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalMove, match=state.value):
            supervisor.move(event)
        assert supervisor.state is state


def test_every_state_can_be_reached_and_left() -> None:
    reached = {State.STOPPED}
    for _ in State:
        reached |= {to for (state, _), to in TRANSITIONS.items() if state in reached}
    assert reached == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State)
    assert all((state, Event.STOP) in TRANSITIONS for state in (*ALIVE, *RESTING))


def test_pauses_double_up_to_the_longest_then_quarantine_for_ever() -> None:
    supervisor = Supervisor(BUDGET, seed=1)
    supervisor.move(Event.START)
    pauses = []
    for _ in range(7):
        pauses.append(supervisor.lost("it broke"))
        resting = supervisor.state
        supervisor.move(Event.RETRY)
        assert resting is (State.QUARANTINED if len(pauses) >= BUDGET.failures else State.BACKOFF)
    for pause, longest in zip(pauses, [1.0, 2.0, 3.0, 100.0, 100.0, 100.0, 100.0], strict=True):
        assert longest / 2 <= pause <= longest
    assert len({round(pause, 6) for pause in pauses[3:]}) == 4, "the pauses are spread"
    assert supervisor.restarts == 7


def test_a_completed_call_ends_the_row_of_failures() -> None:
    supervisor = Supervisor(BUDGET, seed=1)
    supervisor.move(Event.START)
    for _ in range(20):
        ready(supervisor)
        supervisor.progressed()
        assert supervisor.lost("it broke") <= BUDGET.first_s
        supervisor.move(Event.RETRY)


def test_being_ready_is_no_progress() -> None:
    supervisor = Supervisor(BUDGET, seed=1)
    supervisor.move(Event.START)
    for _ in range(BUDGET.failures):
        ready(supervisor)
        supervisor.lost("it broke at its first call")
        state = supervisor.state
        supervisor.move(Event.RETRY)
    assert state is State.QUARANTINED


def test_a_worker_heals_out_of_quarantine() -> None:
    supervisor = Supervisor(BUDGET, seed=1)
    supervisor.move(Event.START)
    for _ in range(BUDGET.failures):
        supervisor.lost("the device is gone")
        supervisor.move(Event.RETRY)
    ready(supervisor)
    supervisor.progressed()
    assert supervisor.lost("once more") <= BUDGET.first_s
    assert supervisor.state.value == State.BACKOFF.value


def test_the_diagram_has_every_move() -> None:
    lines = diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    for (state, event), to in TRANSITIONS.items():
        assert f"    {state.value} --> {to.value}: {event.value}" in lines
    assert len(lines) == len(TRANSITIONS) + 2


def test_the_documentation_shows_the_present_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "wire-protocol.md").read_text()
    assert f"```mermaid\n{diagram()}\n```" in text
