"""kill -9 before every single change to the disk, in every move of a slot; a disk that is full; random commands.

Whatever was cut: the record is the one before or the one after, every bundle that it names is whole, nothing else is
left, and what ran before can still run. The controls change the order of writing and acting, and must break that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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

from edged.bundle.store import files
from edged.bundle.store.record import ModelRefused, Proof, Record
from edged.bundle.store.states import WITH_FILES, State
from edged.bundle.store.store import ModelStore, ModelStoreError, read_store
from edged.bundle.store.trust import Trust
from edged.errors import BundleError
from tests.support.parts import missing, require
from tests.support.store import NAME, make_store, packed, record_of
from tests.support.store_victim import Act, ActsFirst, NamesFirst, killed_at, kills


def make(state: Path) -> ModelStore:
    return make_store(state, allow_unsigned=True)  # signatures have their own tests, and a process of their own


def opened(state: Path, *, daemon: bool = False) -> ModelStore:
    store = make(state)
    store.open(daemon=daemon)
    return store


def digest(store: ModelStore, state: State) -> str:
    slot = record_of(store).of(state)
    assert slot is not None, state
    return slot.digest


def prove(store: ModelStore, digest: str) -> None:
    store.prove(NAME, Proof(digest=digest, engine="event", engine_version="1", device="board"))


def install(counter: int) -> Act:
    return lambda store: store.install(store.directory.parent / f"digits-{counter}.tar")


def activate(store: ModelStore, counter: int) -> None:
    install(counter)(store)
    begin(store)
    prove(store, digest(store, State.TRIAL))
    store.commit(NAME)


def begin(store: ModelStore) -> None:
    store.begin_trial(NAME, running=True)


def damage(store: ModelStore, state: State) -> None:
    (store.path(NAME, digest(store, state)) / "golden.npz").write_bytes(b"GOLDEN")


@dataclass(frozen=True)
class Case:
    """A state that a device is in, and one move out of it."""

    prepare: tuple[Act, ...]
    act: Act
    daemon: bool = False


def active(*counters: int) -> tuple[Act, ...]:
    return tuple((lambda store, counter=counter: activate(store, counter)) for counter in counters)


def _prove_trial(store: ModelStore) -> None:
    prove(store, digest(store, State.TRIAL))


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
    "prove": Case((*active(1), install(2), begin), _prove_trial),
    "commit the first": Case((install(1), begin, _prove_trial), lambda store: store.commit(NAME)),
    "commit": Case((*active(1, 2), install(3), begin, _prove_trial), lambda store: store.commit(NAME)),
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


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    for counter in (1, 2, 3):
        packed(folder, None, counter)
    return folder


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


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MB."""
    require("root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        missing("mount", mounted.stderr.decode())
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> None:
    """Somebody else takes every byte that is free."""
    with (disk / "somebody-elses").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


def test_on_a_full_disk_nothing_is_half_installed_and_every_way_back_is_open(tars: Path, small_disk: Path) -> None:
    state = small_disk / "state"
    state.mkdir()
    store = opened(state)
    for counter in (1, 2):
        shutil.copy(tars / f"digits-{counter}.tar", state)
        activate(store, counter)
    shutil.copy(tars / "digits-3.tar", state)
    fill(small_disk)
    with pytest.raises(ModelStoreError, match="no room"):
        install(3)(store)
    assert not problem_now(store)
    now = store.roll_back(NAME, "by command")  # the spare makes room for the record
    assert now is not None and now.release_counter == 1
    fill(small_disk)
    store.discard(NAME, digest(store, State.ROLLED_BACK))  # frees what the next record needs
    assert not problem_now(store)
    store.close()
    store.open(daemon=True)
    assert [slot.state for slot in record_of(store).slots] == [State.ACTIVE]
    store.close()


def test_a_disk_that_fills_while_it_is_unpacked_leaves_nothing(tmp_path: Path, small_disk: Path) -> None:
    state = small_disk / "state"
    state.mkdir()
    store = opened(state)
    packed(tmp_path, None, 1).rename(tmp_path / "digits-1.tar")
    shutil.copy(tmp_path / "digits-1.tar", state)
    activate(store, 1)
    big = packed(tmp_path, None, 2, size=1_300_000)  # its archive fits, and promises to; what is unpacked does not
    shutil.copy(big, state)
    with (small_disk / "somebody-elses").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(small_disk).f_bavail * 4096 - 1_000_000)
    original = shutil.disk_usage
    shutil.disk_usage = lambda path: original(path)._replace(free=1 << 40)  # somebody else was faster
    try:
        with pytest.raises(BundleError, match="No space left"):
            install(2)(store)
    finally:
        shutil.disk_usage = original
    assert not problem_now(store)
    assert [slot.state for slot in record_of(store).slots] == [State.ACTIVE]
    store.close()


def test_control_without_the_spare_a_full_disk_locks_the_store(
    tars: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "keep_spare", lambda _: None)
    state = small_disk / "state"
    state.mkdir()
    store = opened(state)
    for counter in (1, 2):
        shutil.copy(tars / f"digits-{counter}.tar", state)
        activate(store, counter)
    fill(small_disk)
    with pytest.raises(ModelStoreError, match="No space left"):
        store.roll_back(NAME, "by command")
    assert [slot.state for slot in record_of(store).slots] == [State.PREVIOUS, State.ACTIVE]
    assert not problem_now(store)
    store.close()


def test_a_trial_whose_failure_cannot_be_written_down_ends_all_the_same(
    tars: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "keep_spare", lambda _: None)
    state = small_disk / "state"
    state.mkdir()
    store = opened(state)
    for counter in (1, 2):
        shutil.copy(tars / f"digits-{counter}.tar", state)
    activate(store, 1)
    install(2)(store)
    begin(store)
    fill(small_disk)
    now = store.fail(NAME, digest(store, State.TRIAL), "golden")
    assert now is not None and now.release_counter == 1
    assert store.current(NAME) == now
    store.close()
    store.open(daemon=True)  # still full: the start of the trial cannot be counted, so it does not start
    current = store.current(NAME)
    assert current is not None and current.release_counter == 1
    store.close()


def problem_now(store: ModelStore) -> str:
    """As ``problem``, for a store that is open."""
    for record in store.records:
        for slot in record.slots:
            if slot.state in WITH_FILES:
                store.verify(record.name, slot.digest)
        found = {path.name for path in (store.directory / record.name).iterdir()}
        if not found <= {files.STATE, files.COPY, *record.digests()}:
            return f"left behind: {found}"
    return ", ".join(path.name for path in store.directory.glob(".arriving*"))


# Random commands and kills


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

    @precondition(lambda self: _on_trial(self.store))
    @rule()
    def prove(self) -> None:
        self.do(_prove_trial)

    @rule()
    def commit(self) -> None:
        self.do(lambda store: store.commit(NAME))

    @rule()
    def roll_back(self) -> None:
        self.do(lambda store: store.roll_back(NAME, "why"))

    @rule()
    def fail(self) -> None:
        self.do(lambda store: store.fail(NAME, digest(store, State.TRIAL), "golden") if _on_trial(store) else None)

    @rule(number=st.integers(0, 4))
    def discard(self, number: int) -> None:
        slots = record_of(self.store).slots
        if number < len(slots):
            self.do(lambda store: store.discard(NAME, slots[number].digest))

    @precondition(lambda self: _on_trial(self.store) or record_of(self.store).of(State.PREVIOUS) is not None)
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
            "fail": lambda store: store.fail(NAME, digest(store, State.TRIAL), "golden") if _on_trial(store) else None,
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


def _on_trial(store: ModelStore) -> bool:
    return record_of(store).of(State.TRIAL) is not None


def cut(number: int, state: Path, act: Act, *, daemon: bool) -> None:
    """As ``killed_at``, but the act may be refused."""

    def tolerant(store: ModelStore) -> None:
        try:
            act(store)
        except (ModelRefused, BundleError):
            return

    killed_at(number, make, state, tolerant, daemon=daemon)


def test_no_order_of_commands_and_kills_takes_the_last_model_away(tars: Path, tmp_path: Path) -> None:
    Life.tars, Life.root = tars, tmp_path
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
