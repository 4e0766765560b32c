"""When a worker is started, how often again, and when it is left alone for a while. Pure: no clock, no processes.

One table holds every legal move; an illegal one raises. A worker that dies is started again after a pause that doubles
with each failure in a row; a completed call ends the row. After ``Budget.failures`` in a row the worker is quarantined
and tried again at a slow pace, for ever: nobody is near the device to press a button.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass


class State(enum.Enum):
    """Where a worker stands."""

    STOPPED = "stopped"
    STARTING = "starting"
    HANDSHAKING = "handshaking"
    LOADING = "loading"
    READY = "ready"
    BACKOFF = "backoff"
    QUARANTINED = "quarantined"
    STOPPING = "stopping"


class Event(enum.Enum):
    """What happened to it."""

    START = "start"
    SPAWNED = "spawned"
    GREETED = "greeted"
    LOADED = "loaded"
    LOST = "lost"
    LOST_AGAIN = "lost again"  # the budget is used up
    RETRY = "retry"
    REPLACE = "replace"  # it was worn and ended in peace
    STOP = "stop"
    ENDED = "ended"


ALIVE = (State.STARTING, State.HANDSHAKING, State.LOADING, State.READY)
RESTING = (State.BACKOFF, State.QUARANTINED)

TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.STOPPED, Event.START): State.STARTING,
    (State.STARTING, Event.SPAWNED): State.HANDSHAKING,
    (State.HANDSHAKING, Event.GREETED): State.LOADING,
    (State.LOADING, Event.LOADED): State.READY,
    **{(state, Event.LOST): State.BACKOFF for state in ALIVE},
    **{(state, Event.LOST_AGAIN): State.QUARANTINED for state in ALIVE},
    (State.READY, Event.REPLACE): State.STARTING,
    **{(state, Event.RETRY): State.STARTING for state in RESTING},
    **{(state, Event.STOP): State.STOPPING for state in (*ALIVE, *RESTING)},
    (State.STOPPING, Event.ENDED): State.STOPPED,
}


class IllegalMove(Exception):
    """A move that the table does not have: a mistake in the daemon."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How patient the supervisor is. A pause is drawn between half of its length and all of it."""

    first_s: float = 0.1  # a worker that crashed once may return at once: frames wait for it
    factor: float = 2.0
    longest_s: float = 30.0
    failures: int = 5  # in a row, without one completed call
    quarantine_s: float = 300.0  # a load attempt every five minutes is no burden, and heals what heals


class Supervisor:
    """The life of one worker after another. ``reason`` says why the last one was lost."""

    def __init__(self, budget: Budget | None = None, seed: int | None = None) -> None:
        self.state = State.STOPPED
        self.reason = ""
        self.restarts = 0
        self.failures = 0
        self._budget = budget or Budget()
        self._random = random.Random(seed)  # noqa: S311  # spreads restarts, guards nothing

    def move(self, event: Event) -> State:
        """Take an event of the table. Raises IllegalMove."""
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            raise IllegalMove(f"a worker that is {self.state.value} cannot take: {event.value}")
        self.restarts += event is Event.RETRY
        self.state = state
        return state

    def lost(self, reason: str) -> float:
        """The worker died or would not start: rest, and return for how many seconds."""
        used_up = self.failures + 1 >= self._budget.failures
        self.move(Event.LOST_AGAIN if used_up else Event.LOST)
        self.failures += 1
        self.reason = reason
        longest_s = self._budget.quarantine_s if used_up else self._pause_s()
        return longest_s * self._random.uniform(0.5, 1.0)

    def progressed(self) -> None:
        """A call was completed: the row of failures ends."""
        self.failures = 0

    def _pause_s(self) -> float:
        return min(self._budget.first_s * self._budget.factor ** (self.failures - 1), self._budget.longest_s)


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.STOPPED.value}"]
    lines += [f"    {state.value} --> {to.value}: {event.value}" for (state, event), to in TRANSITIONS.items()]
    return "\n".join(lines)
