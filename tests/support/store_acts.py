"""What moves a slot of an installed model, act by act, and what must hold whatever cut such a move short."""

from __future__ import annotations

from pathlib import Path

from edged.bundle.store import files
from edged.bundle.store.record import Proof
from edged.bundle.store.states import WITH_FILES, State
from edged.bundle.store.store import ModelStore
from tests.support.store import NAME, make_store, record_of
from tests.support.store_victim import Act


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


def prove_trial(store: ModelStore) -> None:
    prove(store, digest(store, State.TRIAL))


def on_trial(store: ModelStore) -> bool:
    return record_of(store).of(State.TRIAL) is not None


def problem_now(store: ModelStore) -> str:
    """What is not whole or left over in an open store; empty when nothing is."""
    for record in store.records:
        for slot in record.slots:
            if slot.state in WITH_FILES:
                store.verify(record.name, slot.digest)
        found = {path.name for path in (store.directory / record.name).iterdir()}
        if not found <= {files.STATE, files.COPY, *record.digests()}:
            return f"left behind: {found}"
    return ", ".join(path.name for path in store.directory.glob(".arriving*"))
