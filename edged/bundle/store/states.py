"""The life of one installed bundle (a slot): every legal move in one table. Pure; knows no files.

Which bundle runs follows from the states alone: the one on trial, else the active one. A move is written down before
whatever it announces is done, so that the table also says what may be found after a cut.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Where a bundle stands."""

    ABSENT = "absent"  # before it is installed and after it is removed
    STAGED = "staged"  # verified and complete on this device; never run
    TRIAL = "trial"  # runs, and has to prove itself
    ACTIVE = "active"  # proved itself; runs
    PREVIOUS = "previous"  # was active before the present one; kept to return to
    ROLLED_BACK = "rolled-back"  # ran and was taken back, for a reason that is not its own; may be tried again
    FAILED = "failed"  # failed by itself: its files are gone, its digest is remembered and not installed again


class Event(enum.Enum):
    """What happens to it."""

    INSTALL = "install"
    TRY = "try"
    COMMIT = "commit"
    SUPERSEDE = "supersede"
    ROLL_BACK = "roll back"
    RETURN = "return"
    FAIL = "fail"
    REMOVE = "remove"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.ABSENT, Event.INSTALL): State.STAGED,
    (State.STAGED, Event.TRY): State.TRIAL,
    (State.ROLLED_BACK, Event.TRY): State.TRIAL,
    (State.TRIAL, Event.COMMIT): State.ACTIVE,
    (State.TRIAL, Event.ROLL_BACK): State.ROLLED_BACK,
    (State.TRIAL, Event.FAIL): State.FAILED,
    (State.ACTIVE, Event.SUPERSEDE): State.PREVIOUS,
    (State.ACTIVE, Event.ROLL_BACK): State.ROLLED_BACK,
    (State.PREVIOUS, Event.RETURN): State.ACTIVE,
    **{
        (state, Event.REMOVE): State.ABSENT
        for state in (State.STAGED, State.TRIAL, State.ACTIVE, State.PREVIOUS, State.ROLLED_BACK, State.FAILED)
    },
}

ALONE = (
    State.STAGED,
    State.TRIAL,
    State.ACTIVE,
    State.PREVIOUS,
    State.ROLLED_BACK,
)  # at most one slot of a model in each
WITH_FILES = ALONE


class IllegalMove(Exception):
    """A move that the table does not have: a mistake in the daemon, users are told before."""


def after(state: State, event: Event) -> State:
    """Where an event leads. Raises IllegalMove."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalMove(f"a bundle that is {state.value} cannot take: {event.value}") from None


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    for (state, event), to in TRANSITIONS.items():
        lines.append(f"    {_name(state)} --> {_name(to)}: {event.value}")
    return "\n".join(lines)


def _name(state: State) -> str:
    return "[*]" if state is State.ABSENT else state.value.replace("-", "_")
