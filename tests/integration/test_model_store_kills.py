"""kill -9 before every single change to the disk, in every move of a slot.

Whatever was cut: the record is the one before or the one after, every bundle that it names is whole, nothing else is
left, and what ran before can still run. The controls change the order of writing and acting, and must break that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from edged.bundle.store import files
from edged.bundle.store.record import ModelRefused, Record
from edged.bundle.store.states import WITH_FILES, State
from edged.bundle.store.store import ModelStore, read_store
from edged.bundle.store.trust import Trust
from edged.errors import BundleError
from tests.support.parts import require
from tests.support.store import NAME, record_of
from tests.support.store_acts import (
    activate,
    begin,
    damage,
    digest,
    install,
    make,
    opened,
    problem_now,
    prove_trial,
)
from tests.support.store_victim import Act, ActsFirst, NamesFirst, kills


@dataclass(frozen=True)
class Case:
    """A state that a device is in, and one move out of it."""

    prepare: tuple[Act, ...]
    act: Act
    daemon: bool = False


def active(*counters: int) -> tuple[Act, ...]:
    return tuple((lambda store, counter=counter: activate(store, counter)) for counter in counters)


def _started_to_the_last(store: ModelStore) -> None:
    for _ in range(2):
        store.close()
        store.open(daemon=True)


CASES: dict[str, Case] = {
    "install the first": Case((), install(1)),
    "install beside": Case(active(1), install(2)),
    "install over a staged one": Case((*active(1), install(2)), install(3)),
    "begin a trial": Case((*active(1), install(2)), begin),
    "start a trial": Case((*active(1), install(2), begin), lambda _: None, daemon=True),
    "start a trial once too often": Case(
        (*active(1), install(2), begin, _started_to_the_last), lambda _: None, daemon=True
    ),
    "stop in a trial": Case((*active(1), install(2), begin), lambda store: store.stop_trials()),
    "prove": Case((*active(1), install(2), begin), prove_trial),
    "commit the first": Case((install(1), begin, prove_trial), lambda store: store.commit(NAME)),
    "commit": Case((*active(1, 2), install(3), begin, prove_trial), lambda store: store.commit(NAME)),
    "roll a trial back": Case((*active(1), install(2), begin), lambda store: store.roll_back(NAME, "why")),
    "roll back": Case(active(1, 2), lambda store: store.roll_back(NAME, "why")),
    "roll back over a rolled back one": Case(
        (*active(1, 2), lambda store: store.roll_back(NAME, "why"), install(3), begin),
        lambda store: store.roll_back(NAME, "why"),
    ),
    "fail": Case((*active(1), install(2), begin), lambda store: store.fail(NAME, digest(store, State.TRIAL), "golden")),
    "lose the active one": Case(active(1, 2), lambda store: store.lose(NAME, digest(store, State.ACTIVE))),
    "remove": Case(active(1, 2), lambda store: store.discard(NAME, digest(store, State.PREVIOUS))),
    "remove all": Case(active(1, 2), lambda store: store.remove_all(NAME)),
}


def problem(state: Path, allowed: tuple[tuple[Record, ...], ...]) -> str:
    """What is wrong with what a cut left behind; empty when nothing is."""
    left, problems = read_store(state / "models")
    if problems:
        return f"records: {problems}"
    if left not in allowed:
        return f"the record is neither that before nor that after: {left}"
    store = opened(state)
    try:
        for record in store.records:
            for slot in record.slots:
                if slot.state in WITH_FILES:
                    store.verify(record.name, slot.digest)
            found = {path.name for path in (store.directory / record.name).iterdir()}
            if found - {files.COPY} != {files.STATE, *record.digests()}:
                return f"left behind: {found}"
        strange = {path.name for path in store.directory.iterdir()} - {"lock", files.SPARE, NAME}
        return f"left behind: {strange}" if strange else ""
    except BundleError as error:
        return f"not whole: {error}"
    finally:
        store.close()


@dataclass(frozen=True)
class Prepared:
    """A device in the state before a move, and the records before and after it."""

    base: Path
    before: tuple[Record, ...]
    after: tuple[Record, ...]


def prepared(case: Case, tars: Path, tmp_path: Path) -> Prepared:
    base = tmp_path / "base"
    base.mkdir()

    def bring_all() -> None:
        for tar in tars.glob("*.tar"):
            shutil.copy(tar, base)

    store = opened(base)
    for act in case.prepare:
        bring_all()
        act(store)
    bring_all()
    before = store.records
    store.close()
    done = tmp_path / "done"
    shutil.copytree(base, done)
    store = opened(done, daemon=case.daemon)
    case.act(store)
    after = store.records
    store.close()
    return Prepared(base, before, after)


@pytest.mark.parametrize("name", CASES)
def test_a_kill_anywhere_leaves_the_state_before_or_after_and_whole(name: str, tars: Path, tmp_path: Path) -> None:
    case = CASES[name]
    start = prepared(case, tars, tmp_path)
    count = 0
    for state in kills(make, start.base, tmp_path, case.act, daemon=case.daemon):
        count += 1
        found = problem(state, ((), start.before, start.after) if not start.before else (start.before, start.after))
        assert not found, f"killed before change {count}: {found}"
        after = opened(state)
        if any(record.of(State.ACTIVE) for record in start.before) and name != "remove all":
            assert record_of(after).of(State.ACTIVE) is not None
        after.close()
    assert count > 3, "the kills hit nothing"


@pytest.mark.slow
def test_a_kill_in_a_repair_leaves_what_another_repair_heals(tars: Path, tmp_path: Path) -> None:
    case = Case((*active(1), lambda store: damage(store, State.ACTIVE)), install(1))
    start = prepared(case, tars, tmp_path)
    for state in kills(make, start.base, tmp_path, case.act):
        shutil.copy(tars / "digits-1.tar", state)
        store = opened(state)
        assert store.records == start.before
        with contextlib.suppress(ModelRefused):  # it was whole already
            install(1)(store)
        assert not problem_now(store)
        store.close()


@pytest.mark.parametrize(("kind", "name"), [(ActsFirst, "commit"), (ActsFirst, "fail"), (NamesFirst, "install beside")])
def test_control_in_another_order_the_same_kills_break_it(
    kind: type[ModelStore], name: str, tars: Path, tmp_path: Path
) -> None:
    def make_careless(state: Path) -> ModelStore:
        return kind(state / "models", Trust(state / "trust", (), allow_unsigned=True))

    case = CASES[name]
    start = prepared(case, tars, tmp_path)
    broken = [
        found
        for state in kills(make_careless, start.base, tmp_path, case.act)
        if (found := problem(state, (start.before, start.after)))
    ]
    assert broken, "the kills prove nothing"


@pytest.mark.slow
def test_strace_kills_a_process_of_its_own_at_every_system_call_of_a_commit(tars: Path, tmp_path: Path) -> None:
    """The same from outside, without a hook: the kernel kills at the n-th rename, unlink, rmdir or fsync."""
    require("ptrace")
    case = CASES["commit"]
    start = prepared(case, tars, tmp_path)
    script = (
        "import sys; from pathlib import Path; from tests.support.store import make_store, NAME;"
        "s = make_store(Path(sys.argv[1]), allow_unsigned=True); s.open(); s.commit(NAME)"
    )
    for call in ("rename", "unlink,unlinkat", "rmdir", "fsync"):
        for number in range(1, 40):
            state = tmp_path / "victim"
            shutil.copytree(start.base, state)
            command = ["strace", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e"]
            command += [f"inject={call}:signal=SIGKILL:when={number}", sys.executable, "-c", script, str(state)]
            done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True)
            found = problem(state, (start.before, start.after))
            assert not found, f"killed at {call} {number}: {found}"
            shutil.rmtree(state)
            if done.returncode == 0:
                break
        else:
            raise AssertionError(f"{call} has no end")
        assert number > 1, f"no {call} was hit"
