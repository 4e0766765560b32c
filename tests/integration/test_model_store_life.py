"""A device's life: commands, failures, restarts and kills in any order. The last model that can run is never lost."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edged.bundle.store.record import ModelRefused
from edged.bundle.store.states import State
from edged.bundle.store.store import ModelStore, read_store
from edged.errors import BundleError
from tests.support.store import NAME, record_of
from tests.support.store_acts import (
    begin,
    damage,
    digest,
    install,
    make,
    on_trial,
    opened,
    problem_now,
    prove_trial,
)
from tests.support.store_victim import Act, killed_at


class Life(RuleBasedStateMachine):
    """A device's life: commands, failures, restarts and kills in any order."""

    tars: Path
    root: Path

    @initialize()
    def begin(self) -> None:
        self.state = self.root / "state"
        shutil.rmtree(self.state, ignore_errors=True)
        self.state.mkdir(parents=True)
        self.store = opened(self.state)
        self.had_active = False

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()

    def do(self, act: Callable[[ModelStore], object]) -> None:
        with contextlib.suppress(ModelRefused, BundleError):  # then nothing changed: the invariants look
            act(self.store)

    def bring(self, counter: int) -> None:
        shutil.copy(self.tars / f"digits-{counter}.tar", self.state)

    @rule(counter=st.integers(1, 3))
    def install(self, counter: int) -> None:
        self.bring(counter)
        self.do(install(counter))

    @rule()
    def trial(self) -> None:
        self.do(begin)

    @precondition(lambda self: on_trial(self.store))
    @rule()
    def prove(self) -> None:
        self.do(prove_trial)

    @rule()
    def commit(self) -> None:
        self.do(lambda store: store.commit(NAME))

    @rule()
    def roll_back(self) -> None:
        self.do(lambda store: store.roll_back(NAME, "why"))

    @rule()
    def fail(self) -> None:
        self.do(lambda store: store.fail(NAME, digest(store, State.TRIAL), "golden") if on_trial(store) else None)

    @rule(number=st.integers(0, 4))
    def discard(self, number: int) -> None:
        slots = record_of(self.store).slots
        if number < len(slots):
            self.do(lambda store: store.discard(NAME, slots[number].digest))

    @precondition(lambda self: on_trial(self.store) or record_of(self.store).of(State.PREVIOUS) is not None)
    @rule()
    def damage(self) -> None:
        """The one that runs loses a bit; the one beside it is whole."""
        current = self.store.current(NAME)
        if current is not None and current.state in (State.TRIAL, State.ACTIVE):
            damage(self.store, current.state)
            self.do(lambda store: store.lose(NAME, current.digest))

    @rule(daemon=st.booleans())
    def restart(self, daemon: bool) -> None:
        self.store.close()
        self.store.open(daemon=daemon)

    @rule(
        number=st.integers(1, 40),
        act=st.sampled_from(["install", "begin", "commit", "roll_back", "fail", "start"]),
        counter=st.integers(1, 3),
    )
    def kill(self, number: int, act: str, counter: int) -> None:
        self.bring(counter)
        self.store.close()
        acts: dict[str, Act] = {
            "install": install(counter),
            "begin": begin,
            "commit": lambda store: store.commit(NAME),
            "roll_back": lambda store: store.roll_back(NAME, "why"),
            "fail": lambda store: store.fail(NAME, digest(store, State.TRIAL), "golden") if on_trial(store) else None,
            "start": lambda _: None,
        }
        cut(number, self.state, acts[act], daemon=act == "start")
        self.store = opened(self.state)

    @invariant()
    def is_whole(self) -> None:
        if not hasattr(self, "store"):
            return
        assert not problem_now(self.store)
        active = record_of(self.store).of(State.ACTIVE)
        assert active is not None or not self.had_active, "there was a model that could run"
        self.had_active = active is not None
        assert self.store.records == read_store(self.store.directory)[0]
        assert all(record.floor >= (slot.release_counter if slot.state is State.ACTIVE else 0)
                   for record in self.store.records for slot in record.slots)  # fmt: skip


def cut(number: int, state: Path, act: Act, *, daemon: bool) -> None:
    """As ``killed_at``, but the act may be refused."""

    def tolerant(store: ModelStore) -> None:
        try:
            act(store)
        except (ModelRefused, BundleError):
            return

    killed_at(number, make, state, tolerant, daemon=daemon)


@pytest.mark.slow
def test_no_order_of_commands_and_kills_takes_the_last_model_away(tars: Path, tmp_path: Path) -> None:
    Life.tars, Life.root = tars, tmp_path
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
