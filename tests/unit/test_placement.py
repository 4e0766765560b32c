"""Every move of an engine's standing, and which engine is chosen when: pure, with a clock of our own."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from edged.placement import TRANSITIONS, Act, Decision, Event, IllegalMove, Patience, Placement, State, diagram

PATIENCE = Patience(
    urgent_s=1.0, urgent_longest_s=8.0, return_s=10.0, longest_s=100.0, steady_s=50.0, losses=3, slow_s=5.0, lead=1.25
)


class Play:
    """A placement, a clock, and somebody who does what is decided; every engine that is tried proves the model."""

    def __init__(
        self,
        *engines: str,
        fastest: bool = False,
        standby: bool = False,
        latency_us: dict[str, float] | None = None,
    ) -> None:
        self.placement = Placement(engines, fastest=fastest, standby=standby, patience=PATIENCE)
        self.latency_us = latency_us or {}
        self.now_s = 0.0
        self.done: list[Decision] = []

    def tell(self, engine: str, event: Event, reason: str = "") -> None:
        self.placement.tell(engine, event, self.now_s, reason=reason)

    def step(self) -> Decision | None:
        decision = self.placement.decide(self.now_s)
        if decision is not None:
            self.done.append(decision)
            self._do(decision)
        return decision

    def settle(self) -> str:
        """Do what is decided until nothing is; returns who serves."""
        for _ in range(20):
            if self.step() is None:
                break
        else:
            raise AssertionError(self.done)
        serving = self.placement.serving
        return serving.engine if serving is not None else ""

    def state(self, engine: str) -> State:
        return self.placement.sites[engine].state

    def _do(self, decision: Decision) -> None:
        serving = self.placement.serving
        if decision.act is Act.TRY:
            self.tell(decision.engine, Event.TRY)
            latency_us = self.latency_us.get(decision.engine)
            self.placement.tell(decision.engine, Event.PROVE, self.now_s, latency_us=latency_us)
        elif decision.act is Act.SERVE:
            if serving is not None:
                faltering = serving.state is State.FALTERING
                self.tell(serving.engine, Event.FAIL if faltering else Event.RELIEVE, serving.reason)
            self.tell(decision.engine, Event.SERVE)
        else:
            state = self.state(decision.engine)
            self.tell(decision.engine, Event.FAIL if state is State.FALTERING else Event.RELIEVE)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_a_move_is_in_the_table_or_raises(state: State, event: Event) -> None:
    placement = Placement(["lava"])
    placement.sites["lava"].state = state
    if (state, event) in TRANSITIONS:
        placement.tell("lava", event, 0.0)
        assert placement.sites["lava"].state is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalMove, match=state.value):
            placement.tell("lava", event, 0.0)
        assert placement.sites["lava"].state is state


def test_every_state_can_be_reached_and_left() -> None:
    reached = {State.IDLE, State.ABSENT}
    for _ in State:
        reached |= {to for (state, _), to in TRANSITIONS.items() if state in reached}
    assert reached == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State)


def test_the_first_engine_that_is_present_and_proves_itself_serves() -> None:
    play = Play("tensorrt", "lava", "onnxruntime")
    play.tell("tensorrt", Event.MISSING, "there is no GPU")
    assert play.settle() == "lava"
    assert play.state("onnxruntime") is State.IDLE, "a worse one is not even tried"
    assert play.placement.wake_s(play.now_s) is None


def test_a_model_that_an_engine_cannot_run_goes_to_the_next_for_good() -> None:
    play = Play("lava", "onnxruntime")
    play.tell("lava", Event.TRY)
    play.tell("lava", Event.REFUSE, "node mul_3: Lava has no product of two spikes")
    assert play.settle() == "onnxruntime"
    play.now_s += 1e6
    assert play.settle() == "onnxruntime"
    assert play.placement.sites["lava"].reason.startswith("node mul_3")


def test_when_the_worker_is_lost_the_next_engine_is_tried_at_once() -> None:
    play = Play("lava", "onnxruntime")
    play.settle()
    play.tell("lava", Event.LOST, "hung")
    assert play.placement.decide(play.now_s) == Decision(Act.TRY, "onnxruntime", "lava was lost: hung")
    assert play.settle() == "onnxruntime"
    assert play.state("lava") is State.RESTING


def test_a_worker_that_is_back_before_the_next_engine_is_ready_keeps_the_frames() -> None:
    play = Play("lava", "onnxruntime")
    play.settle()
    play.tell("lava", Event.LOST, "crashed")
    play.tell("onnxruntime", Event.TRY)
    assert play.step() is None
    play.tell("lava", Event.BACK)
    play.tell("onnxruntime", Event.PROVE)
    assert play.settle() == "lava"
    assert play.done[-1] == Decision(Act.END, "onnxruntime", "lava serves")
    assert play.state("onnxruntime") is State.IDLE


def test_a_healed_engine_returns_after_a_pause_that_doubles() -> None:
    play = Play("lava", "onnxruntime")
    play.settle()
    pauses = []
    for _ in range(5):
        play.tell("lava", Event.LOST, "crashed")
        assert play.settle() == "onnxruntime"
        due_s = play.placement.wake_s(play.now_s)
        assert due_s is not None
        pauses.append(due_s - play.now_s)
        play.now_s = due_s - 0.1
        assert play.settle() == "onnxruntime"
        play.now_s = due_s
        assert play.settle() == "lava"
    assert pauses == [10.0, 20.0, 40.0, 80.0, 100.0]


def test_steady_service_is_forgiven() -> None:
    play = Play("lava", "onnxruntime")
    play.settle()
    for _ in range(4):
        play.now_s += PATIENCE.steady_s
        play.tell("lava", Event.LOST, "crashed")
        assert play.settle() == "onnxruntime"
        assert play.placement.wake_s(play.now_s) == play.now_s + 10.0
        play.now_s += 10.0
        assert play.settle() == "lava"


def test_an_engine_that_falters_too_often_gives_way_though_its_worker_is_back() -> None:
    play = Play("lava", "onnxruntime")
    play.settle()
    for _ in range(PATIENCE.losses):
        assert play.settle() == "lava"
        play.tell("lava", Event.LOST, "crashed")
        play.tell("lava", Event.BACK)
    assert play.settle() == "onnxruntime"
    assert play.done[-1] == Decision(Act.SERVE, "onnxruntime", "lava was lost 3 times: crashed")
    play.now_s += 30.0
    assert play.settle() == "onnxruntime"
    play.now_s += 30.0
    assert play.settle() == "lava"


def test_of_two_that_falter_the_steadier_one_serves_and_they_do_not_take_turns() -> None:
    play = Play("lava", "onnxruntime")
    play.settle()
    changes, serving = 0, "lava"
    for _ in range(40):
        play.tell(serving, Event.LOST, "crashed")
        play.tell(serving, Event.BACK)
        now = play.settle()
        changes, serving = changes + (now != serving), now
        play.now_s += 1.0
    assert changes < 10


def test_an_engine_alone_is_never_put_off() -> None:
    play = Play("onnxruntime")
    play.settle()
    for _ in range(20):
        play.tell("onnxruntime", Event.LOST, "crashed")
        assert play.step() is None
        play.tell("onnxruntime", Event.BACK)
    assert play.settle() == "onnxruntime"


def test_where_nothing_serves_attempts_are_frequent() -> None:
    play = Play("onnxruntime")
    pauses = []
    for _ in range(6):
        assert play.placement.decide(play.now_s) == Decision(Act.TRY, "onnxruntime", "nothing serves")
        play.tell("onnxruntime", Event.TRY)
        play.tell("onnxruntime", Event.FAIL, "no memory")
        assert play.placement.decide(play.now_s) is None
        due_s = play.placement.wake_s(play.now_s)
        assert due_s is not None
        pauses.append(due_s - play.now_s)
        play.now_s = due_s
    assert pauses == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_an_engine_that_faltered_often_is_tried_at_once_where_nothing_else_serves() -> None:
    play = Play("lava", "onnxruntime")
    play.tell("lava", Event.MISSING)
    play.settle()
    for _ in range(7):
        play.tell("onnxruntime", Event.LOST, "crashed")
        play.tell("onnxruntime", Event.BACK)
    play.tell("lava", Event.FOUND)
    play.now_s += PATIENCE.return_s
    assert play.settle() == "lava"
    play.tell("lava", Event.LOST, "crashed")
    assert play.settle() == "onnxruntime"


def test_an_engine_that_loses_its_device_waits_until_it_is_found() -> None:
    play = Play("lava", "onnxruntime")
    play.settle()
    play.tell("lava", Event.MISSING, "unplugged")
    assert play.settle() == "onnxruntime"
    play.now_s += 1e6
    assert play.settle() == "onnxruntime"
    play.tell("lava", Event.FOUND)
    assert play.settle() == "onnxruntime", "it may be a loose plug"
    play.now_s += PATIENCE.return_s
    assert play.settle() == "lava"


def test_one_that_builds_for_long_does_not_keep_the_next_from_serving() -> None:
    play = Play("slow", "quick")
    decision = play.placement.decide(0.0)
    assert decision is not None
    play.tell("slow", Event.TRY)
    assert play.placement.decide(4.9) is None, "most plans are there by then"
    assert play.placement.wake_s(0.0) == 5.0
    play.now_s = 5.0
    assert play.settle() == "quick"
    assert play.state("slow") is State.TRYING
    assert play.placement.wake_s(5.0) is None, "only the end of the build changes anything"
    play.now_s = 600.0
    play.tell("slow", Event.PROVE)
    assert play.settle() == "slow"


def test_wrong_results_end_it_at_once() -> None:
    play = Play("lava", "onnxruntime")
    play.settle()
    play.tell("lava", Event.REFUSE, "wrong golden result")
    assert play.settle() == "onnxruntime"


def test_the_fastest_serves_once_all_were_measured() -> None:
    play = Play("lava", "onnxruntime", "event", fastest=True, latency_us={"lava": 900, "onnxruntime": 100, "event": 95})
    assert play.settle() == "onnxruntime", "5 % is no clear lead"
    assert {decision.engine for decision in play.done if decision.act is Act.TRY} == {"lava", "onnxruntime", "event"}
    play.tell("onnxruntime", Event.LOST, "crashed")
    assert play.settle() == "event"


def test_a_standby_is_kept_proved_and_takes_over_at_once() -> None:
    play = Play("lava", "onnxruntime", "event", standby=True)
    assert play.settle() == "lava"
    assert (play.state("onnxruntime"), play.state("event")) == (State.PROVED, State.IDLE)
    play.tell("lava", Event.LOST, "crashed")
    assert play.step() == Decision(Act.SERVE, "onnxruntime", "lava was lost: crashed")
    assert play.settle() == "onnxruntime"
    assert play.state("event") is State.PROVED
    play.now_s += PATIENCE.return_s
    assert play.settle() == "lava"
    assert (play.state("onnxruntime"), play.state("event")) == (State.IDLE, State.PROVED)


def test_a_standby_that_is_lost_is_replaced() -> None:
    play = Play("lava", "onnxruntime", "event", standby=True)
    play.settle()
    play.tell("onnxruntime", Event.FAIL, "crashed")
    assert play.settle() == "lava"
    assert (play.state("onnxruntime"), play.state("event")) == (State.RESTING, State.PROVED)


@pytest.mark.parametrize("standby", [False, True])
def test_whatever_happens_one_serves_at_most_and_in_the_end_the_best(standby: bool) -> None:
    chance = random.Random(7)
    play = Play("a", "b", "c", standby=standby)
    for _ in range(5000):
        play.now_s += chance.choice((0.0, 0.5, 5.0))
        site = chance.choice(list(play.placement.sites.values()))
        legal = [event for state, event in TRANSITIONS if state is site.state]
        harmful = (Event.LOST, Event.FAIL, Event.MISSING, Event.FOUND, Event.BACK)
        events = [event for event in legal if event in harmful]
        if events and chance.random() < 0.3:
            play.tell(site.engine, chance.choice(events), "bad luck")
        play.step()
        having = [one for one in play.placement.sites.values() if one.state in (State.SERVING, State.FALTERING)]
        assert len(having) <= 1
    for site in play.placement.sites.values():
        if site.state is State.ABSENT:
            play.tell(site.engine, Event.FOUND)
        if site.state is State.FALTERING:
            play.tell(site.engine, Event.BACK)
    for _ in range(100):
        play.settle()
        play.now_s += 10.0
    assert play.settle() == "a"


def test_the_documented_diagram_is_the_table() -> None:
    assert diagram() in (Path(__file__).parents[2] / "docs" / "engines.md").read_text()
