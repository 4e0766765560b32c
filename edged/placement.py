"""Which engine runs a model now, and why. Pure: no processes, no clock; ``now_s`` is any clock that only goes forward.

A pipeline may name several engines. The first of them that is present, starts, builds its plan and gives the golden
results serves. When its worker is lost, the next one is tried at once while the lost one starts again; whichever is
ready first serves. An engine that comes back takes its place again only after a pause, which doubles with every loss
until it has served steadily: a flapping engine does not take the frames back and forth. An engine that takes long to
start, because it builds a plan, does not keep the next one from being tried while nothing serves. With ``fastest`` the
order of the names does not count but what was measured, and only a clear lead makes frames move. With ``standby`` the
next best is kept proved and running beside what serves: it costs its memory, and takes over at once.

One table holds every legal move of an engine; an illegal one raises. ``decide`` says what to do next; whoever does it
(``edged.lane``) tells how it went with ``tell``.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


class State(enum.Enum):
    """Where an engine stands with one model."""

    ABSENT = "absent"  # its interpreter, its package or its device is not here
    IDLE = "idle"  # here, and not tried yet or put off in peace
    TRYING = "trying"  # a worker starts, builds its plan, proves the model
    PROVED = "proved"  # it may serve from now on
    SERVING = "serving"  # it has the frames
    FALTERING = "faltering"  # it has the frames, its worker is away and is being started again
    RESTING = "resting"  # it failed; it is tried again
    UNFIT = "unfit"  # it cannot run this model, or gives wrong results: nothing changes that but another model


class Event(enum.Enum):
    """What happened to it."""

    FOUND = "found"
    MISSING = "missing"
    TRY = "try"
    PROVE = "prove"
    SERVE = "serve"
    LOST = "lost"
    BACK = "back"
    FAIL = "fail"
    REFUSE = "refuse"
    RELIEVE = "relieve"


HERE = tuple(state for state in State if state is not State.ABSENT)

TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.ABSENT, Event.FOUND): State.IDLE,
    **{(state, Event.MISSING): State.ABSENT for state in HERE},
    (State.IDLE, Event.TRY): State.TRYING,
    (State.RESTING, Event.TRY): State.TRYING,
    (State.TRYING, Event.PROVE): State.PROVED,
    (State.TRYING, Event.FAIL): State.RESTING,
    (State.TRYING, Event.REFUSE): State.UNFIT,
    (State.PROVED, Event.SERVE): State.SERVING,
    (State.PROVED, Event.FAIL): State.RESTING,
    (State.PROVED, Event.RELIEVE): State.IDLE,
    (State.SERVING, Event.LOST): State.FALTERING,
    (State.SERVING, Event.REFUSE): State.UNFIT,
    (State.SERVING, Event.RELIEVE): State.IDLE,
    (State.FALTERING, Event.BACK): State.SERVING,
    (State.FALTERING, Event.FAIL): State.RESTING,
    (State.FALTERING, Event.REFUSE): State.UNFIT,
}

FAILURES = (Event.LOST, Event.FAIL, Event.MISSING)


class IllegalMove(Exception):
    """A move that the table does not have: a mistake in the daemon."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait with an engine that failed. Pauses double: with every attempt that came to nothing where nothing
    serves, with every failure where another does."""

    urgent_s: float = 0.5  # nothing serves: frames wait for it
    urgent_longest_s: float = 10.0
    return_s: float = 5.0  # another serves: the frames are well where they are
    longest_s: float = 600.0  # an attempt every ten minutes is no burden, and heals what heals
    steady_s: float = 60.0  # served so long without a loss, its failures are forgotten
    losses: int = 3  # so often without having served steadily: another that proves itself is given the frames
    slow_s: float = 5.0  # a try that takes longer does not keep the others waiting: most plans are there in two seconds
    lead: float = 1.25  # times faster: less is noise, and not worth a change


@dataclass(slots=True)
class Site:
    """One engine's standing. ``latency_us``: of one golden input, when it was measured last."""

    engine: str
    rank: int
    state: State = State.IDLE
    reason: str = ""
    since_s: float = 0.0
    failures: int = 0  # until it has served steadily
    attempts: int = 0  # in a row that came to nothing
    losses: int = 0  # since it serves
    latency_us: float | None = None


class Act(enum.Enum):
    """What is to be done with an engine."""

    TRY = "try"  # start it, prove the model on it, beside whatever serves
    SERVE = "serve"  # give it the frames
    END = "end"  # end its worker: it is not needed, or put off


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do next, with which engine, and why."""

    act: Act
    engine: str
    reason: str


class Placement:
    """The engines of one pipeline's model, best first."""

    def __init__(
        self, engines: Sequence[str], *, fastest: bool = False, standby: bool = False, patience: Patience | None = None
    ) -> None:
        self.sites = {engine: Site(engine, rank) for rank, engine in enumerate(engines)}
        self.fastest = fastest
        self.standby = standby
        self._patience = patience or Patience()

    @property
    def serving(self) -> Site | None:
        """The engine that has the frames, its worker away or not."""
        return next(self._in(State.SERVING, State.FALTERING), None)

    def tell(
        self, engine: str, event: Event, now_s: float, *, reason: str = "", latency_us: float | None = None
    ) -> None:
        """Take an event of the table. Raises IllegalMove."""
        site = self.sites[engine]
        state = TRANSITIONS.get((site.state, event))
        if state is None:
            raise IllegalMove(f"engine {engine}, which is {site.state.value}, cannot take: {event.value}")
        if event in FAILURES and site.state is not State.IDLE:
            steady = site.state is State.SERVING and now_s - site.since_s >= self._patience.steady_s
            site.failures = 1 if steady else site.failures + (site.state is not State.FALTERING)
        site.attempts = 0 if event is Event.PROVE else site.attempts + (event is Event.FAIL)
        site.losses = 0 if event is Event.SERVE else site.losses + (event is Event.LOST)
        if event is not Event.BACK:  # then the reason of the loss is worth knowing
            site.reason = reason
        site.state, site.since_s = state, now_s
        if latency_us is not None:
            site.latency_us = latency_us

    def decide(self, now_s: float) -> Decision | None:
        """What to do now, None when all is as it should be. Tell how it went, or that it has begun (TRY)."""
        serving = self.serving
        proved = sorted(self._in(State.PROVED), key=self._order)
        decision = self._use(proved, serving, now_s) if proved else None
        if decision is not None:
            return decision
        if any(self._in(State.TRYING)) and now_s < self._patient_until_s(serving):
            return None
        open_to_try = [s for s in self._in(State.IDLE, State.RESTING) if now_s >= self._due_s(s, serving)]
        wanted = [site for site in open_to_try if serving is None or self._may_be_better(site, serving, now_s)]
        chosen = min(wanted, key=self._order, default=None)
        return None if chosen is None else Decision(Act.TRY, chosen.engine, _why_try(chosen, serving))

    def wake_s(self, now_s: float) -> float | None:
        """When ``decide`` may have an answer by the passing of time alone; None: only an event changes anything."""
        serving = self.serving
        patient_until_s = self._patient_until_s(serving) if any(self._in(State.TRYING)) else 0.0
        if patient_until_s == math.inf:
            return None
        waiting = self._in(State.IDLE, State.RESTING)  # one that was missing is idle when it is found, and waits too
        wanted = [site for site in waiting if serving is None or self._may_be_better(site, serving, now_s)]
        due_s = min((self._due_s(site, serving) for site in wanted), default=None)
        return None if due_s is None else max(due_s, patient_until_s)

    def _patient_until_s(self, serving: Site | None) -> float:
        """Until when nothing else is tried beside what is being tried: for ever where frames do not wait for it."""
        if serving is not None and serving.state is State.SERVING:
            return math.inf
        return max(site.since_s for site in self._in(State.TRYING)) + self._patience.slow_s

    def _is_unsteady(self, site: Site, now_s: float) -> bool:
        return site.losses >= self._patience.losses and now_s - site.since_s < self._patience.steady_s

    def _use(self, proved: Sequence[Site], serving: Site | None, now_s: float) -> Decision | None:
        """What becomes of the engines that may serve; None: they wait as they are."""
        best, worst = proved[0], proved[-1]
        if serving is None:
            return Decision(Act.SERVE, best.engine, "it proved the model")
        if serving.state is State.FALTERING:
            return Decision(Act.SERVE, best.engine, f"{serving.engine} was lost: {serving.reason}")
        steadier = [site for site in proved if site.failures < serving.failures]
        if steadier and self._is_unsteady(serving, now_s):
            why = f"{serving.engine} was lost {serving.losses} times: {serving.reason}"
            return Decision(Act.SERVE, steadier[0].engine, why)
        if self._is_better(best, serving):
            how = "it is faster" if self.fastest else "it is preferred"
            return Decision(Act.SERVE, best.engine, f"{how}, and proved the model")
        if self.standby and worst is best:
            return None
        return Decision(Act.END, worst.engine, f"{serving.engine} serves")

    def _may_be_better(self, site: Site, serving: Site, now_s: float) -> bool:
        """Whether trying it makes sense beside what serves."""
        if serving.state is State.FALTERING:
            return True
        steadier = self._is_unsteady(serving, now_s) and site.failures < serving.failures
        unmeasured = self.fastest and site.latency_us is None
        reserve = self.standby and not any(self._in(State.PROVED))
        return steadier or unmeasured or reserve or self._is_better(site, serving)

    def _is_better(self, site: Site, serving: Site) -> bool:
        if not self.fastest:
            return site.rank < serving.rank
        ours, theirs = site.latency_us, serving.latency_us
        return ours is not None and theirs is not None and ours * self._patience.lead < theirs

    def _order(self, site: Site) -> tuple[float, int]:
        measured = site.latency_us if self.fastest and site.latency_us is not None else 0.0
        return measured, site.rank

    def _due_s(self, site: Site, serving: Site | None) -> float:
        """When it may be tried again."""
        patience = self._patience
        if serving is None or serving.state is State.FALTERING:
            first_s, longest_s, times = patience.urgent_s, patience.urgent_longest_s, site.attempts
        else:
            first_s, longest_s, times = patience.return_s, patience.longest_s, site.failures
        return site.since_s + (min(first_s * 2.0 ** min(times - 1, 30), longest_s) if times else 0.0)

    def _in(self, *states: State) -> Iterator[Site]:
        return iter([site for site in self.sites.values() if site.state in states])


def _why_try(site: Site, serving: Site | None) -> str:
    if serving is None:
        return "nothing serves"
    if serving.state is State.FALTERING:
        return f"{serving.engine} was lost: {serving.reason}"
    return "it may serve again" if site.failures else "it may do better, or stand by"


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.IDLE.value}", f"    [*] --> {State.ABSENT.value}"]
    lines += [f"    {state.value} --> {to.value}: {event.value}" for (state, event), to in TRANSITIONS.items()]
    return "\n".join(lines)
