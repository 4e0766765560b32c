"""What becomes of a device from the moment it is seen: an enum and ONE table of moves. Pure.

A device that is lost is remembered for a while: it may return, in another port or under another id once it has its
firmware, and it is the same device then.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Where a device stands."""

    SEEN = "seen"  # udev told of it
    PROBING = "probing"  # being asked whether we may open it, and whether it answers
    READY = "ready"
    UNUSABLE = "unusable"  # it is here and cannot be used; its reason says why and what to do
    IN_USE = "in-use"  # a worker has it
    LOST = "lost"  # gone, and remembered
    RETURNED = "returned"  # here again, not asked yet


class Event(enum.Enum):
    """What happened to it."""

    PROBE = "probe"
    PASS = "pass"  # noqa: S105 -- a word for a probe that went well
    FAIL = "fail"
    TAKE = "take"
    GIVE = "give"
    REMOVE = "remove"
    RETURN = "return"


HERE = tuple(state for state in State if state is not State.LOST)
AT_REST = (State.SEEN, State.RETURNED, State.READY, State.UNUSABLE)  # it may be asked: nobody works with it

TRANSITIONS: dict[tuple[State, Event], State] = {
    **{(state, Event.PROBE): State.PROBING for state in AT_REST},
    (State.PROBING, Event.PASS): State.READY,
    (State.PROBING, Event.FAIL): State.UNUSABLE,
    (State.READY, Event.TAKE): State.IN_USE,
    (State.IN_USE, Event.GIVE): State.READY,
    **{(state, Event.REMOVE): State.LOST for state in HERE},
    (State.LOST, Event.RETURN): State.RETURNED,
}


class IllegalMove(Exception):
    """A move that the table does not have: a mistake in the daemon."""


def after(state: State, event: Event) -> State:
    """The state after an event. Raises IllegalMove."""
    to = TRANSITIONS.get((state, event))
    if to is None:
        raise IllegalMove(f"a device that is {state.value} cannot take: {event.value}")
    return to


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.SEEN.value}"]
    lines += [f"    {state.value} --> {to.value}: {event.value}" for (state, event), to in TRANSITIONS.items()]
    return "\n".join(lines)
