"""What a device knows of one model: its slots, the release floor, failed digests, and proofs. Pure decisions, no files.

Every function takes a record and returns the next one, or raises ModelRefused and nothing changed. Rules:

- at most one slot in each state (any number of failed ones, of which the oldest are forgotten first);
- only a committed model raises the floor of release counters; a lower one needs a signature that allows it;
- a digest is remembered as failed only for a failure that is the model's own; a cut or a full disk is none;
- a model whose trial was started ``TRIAL_STARTS`` times without an end is rolled back, not failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from edged.bundle.manifest import Name, Sha256
from edged.bundle.store.states import ALONE, WITH_FILES, Event, State, after
from edged.errors import EdgedError

TRIAL_STARTS = 3  # of the daemon; a model that took the device down each time must not keep it down
FAILED_KEPT = 64  # digests; a fleet retries a few, and each takes some 300 bytes of every write
PROOFS_KEPT = 64

Count = Annotated[int, msgspec.Meta(ge=0)]


class ModelRefused(EdgedError):
    """The store does not do what was asked; the message says why, and nothing was changed."""

    code = "refused"


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle of a model. ``signer`` is the name of the key, empty for an unsigned one."""

    digest: Sha256
    version: str
    release_counter: Count
    state: State
    signer: str = ""
    downgrade_from: Count | None = None
    trial_starts: Count = 0
    reason: str = ""  # why it was rolled back, or failed


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """A full self-test that was passed: never to be repeated while all of this stays the same."""

    digest: str
    engine: str
    engine_version: str
    device: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one model, as it is persisted. ``floor`` is the highest release counter ever committed."""

    name: Name
    floor: Count = 0
    slots: tuple[Slot, ...] = ()
    proofs: tuple[Proof, ...] = ()

    def slot(self, digest: str) -> Slot | None:
        """The slot of a digest."""
        return next((slot for slot in self.slots if slot.digest == digest), None)

    def of(self, state: State) -> Slot | None:
        """The slot in a state that at most one has."""
        return next((slot for slot in self.slots if slot.state is state), None)

    @property
    def current(self) -> Slot | None:
        """What runs: the one on trial, else the active one."""
        return self.of(State.TRIAL) or self.of(State.ACTIVE)

    def digests(self) -> set[str]:
        """Bundles whose files must be there."""
        return {slot.digest for slot in self.slots if slot.state in WITH_FILES}


def install(record: Record, slot: Slot) -> Record:
    """Stage a verified bundle; what was staged before goes."""
    known = record.slot(slot.digest)
    if known is not None and known.state is State.FAILED:
        hint = f"edged model remove {record.name} --digest {slot.digest[:12]} forgets that"
        raise ModelRefused(f"{_called(record, slot)} failed on this device before: {known.reason}", hint)
    if known is not None:
        raise ModelRefused(f"{_called(record, slot)} is installed already: {known.state.value}")
    check_floor(record, slot)
    record = _without(record, State.STAGED)
    staged = msgspec.structs.replace(slot, state=after(State.ABSENT, Event.INSTALL))
    return _replace(record, slots=(*record.slots, staged))


def check_floor(record: Record, slot: Slot) -> None:
    """Raise ModelRefused for an older release than one that was committed, unless its signature allows that."""
    allowed = slot.downgrade_from is not None and record.floor <= slot.downgrade_from
    if slot.release_counter < record.floor and not allowed:
        raise ModelRefused(
            f"{_called(record, slot)} has release counter {slot.release_counter}, {record.floor} was committed before",
            f"an older release must be signed with --allow-downgrade {record.floor}",
        )


def begin_trial(record: Record, digest: str = "", *, starts: int = 0) -> Record:
    """Put the staged bundle on trial, or the named one. ``starts``: 1 when it starts at once."""
    if record.of(State.TRIAL) is not None:
        hint = "commit it or roll it back first"
        raise ModelRefused(f"{_called(record, record.of(State.TRIAL))} is on trial already", hint)
    slot = record.slot(digest) if digest else record.of(State.STAGED) or record.of(State.ROLLED_BACK)
    if slot is None or slot.state not in (State.STAGED, State.ROLLED_BACK):
        what = f"is {slot.state.value}" if slot is not None else "has nothing staged"
        raise ModelRefused(f"{record.name} {what}", "edged model install stages a bundle")
    check_floor(record, slot)
    return _moved(record, slot, Event.TRY, trial_starts=starts, reason="")


def start_trial(record: Record) -> Record:
    """The daemon starts: count it for the bundle on trial, or roll that back after too many starts."""
    slot = record.of(State.TRIAL)
    if slot is None:
        return record
    if slot.trial_starts >= TRIAL_STARTS:
        return roll_back(record, f"its trial was started {slot.trial_starts} times and never came to an end")
    return _replace(record, slots=_changed(record, slot, trial_starts=slot.trial_starts + 1))


def stop_trial(record: Record) -> Record:
    """The daemon stops in order: a start that came to such an end is not counted."""
    slot = record.of(State.TRIAL)
    if slot is None or not slot.trial_starts:
        return record
    return _replace(record, slots=_changed(record, slot, trial_starts=slot.trial_starts - 1))


def commit(record: Record) -> Record:
    """Make the bundle on trial the active one; the active one becomes the previous one, the previous one goes."""
    slot = record.of(State.TRIAL)
    if slot is None:
        raise ModelRefused(f"{record.name} has nothing on trial", f"edged model trial {record.name} begins one")
    if not any(proof.digest == slot.digest for proof in record.proofs):
        raise ModelRefused(f"{_called(record, slot)} has not proved itself on this device yet", "its trial goes on")
    active = record.of(State.ACTIVE)
    if active is not None:
        record = _moved(_without(record, State.PREVIOUS), active, Event.SUPERSEDE)
    floor = max(record.floor, slot.release_counter)
    return _replace(_moved(record, slot, Event.COMMIT, trial_starts=0), floor=floor)


def roll_back(record: Record, reason: str) -> Record:
    """End the trial, or return from the active bundle to the previous one."""
    trial, active, previous = (record.of(state) for state in (State.TRIAL, State.ACTIVE, State.PREVIOUS))
    if trial is not None:
        return _moved(_without(record, State.ROLLED_BACK), trial, Event.ROLL_BACK, reason=reason)
    if active is None or previous is None:
        raise ModelRefused(f"{record.name} has no previous version to return to")
    record = _moved(_without(record, State.ROLLED_BACK), active, Event.ROLL_BACK, reason=reason)
    return _moved(record, previous, Event.RETURN)


def fail(record: Record, digest: str, reason: str) -> Record:
    """The bundle on trial failed by itself: remember that."""
    slot = record.slot(digest)
    if slot is None or slot.state is not State.TRIAL:
        raise ModelRefused(f"{record.name} {digest[:12]} is not on trial")
    failed = [one for one in record.slots if one.state is State.FAILED]
    forgotten = failed[: max(0, len(failed) + 1 - FAILED_KEPT)]
    record = _replace(record, slots=tuple(one for one in record.slots if one not in forgotten))
    return _moved(record, slot, Event.FAIL, reason=reason)


def discard(record: Record, digest: str) -> Record:
    """Remove one bundle, or forget a failed one. The active one stays: it can only be replaced, or all removed."""
    slot = record.slot(digest)
    if slot is None:
        raise ModelRefused(f"{record.name} has no bundle {digest[:12]}", "edged model list shows them")
    if slot.state in (State.ACTIVE, State.TRIAL):
        hint = f"edged model rollback {record.name} first"
        raise ModelRefused(f"{_called(record, slot)} is {slot.state.value}", hint)
    return _dropped(record, slot)


def lose(record: Record, digest: str) -> Record:
    """A bundle's files are damaged: it goes; from an active one to the previous one, which must be there."""
    slot = record.slot(digest)
    assert slot is not None
    if slot.state is State.ACTIVE:
        previous = record.of(State.PREVIOUS)
        if previous is None:
            raise ModelRefused(f"{_called(record, slot)} is damaged and there is no other", "install it again")
        return _moved(_dropped(record, slot), previous, Event.RETURN)
    return _dropped(record, slot)


def remove_all(record: Record) -> Record:
    """Remove every bundle. What failed and the floor stay known: neither may be got around by removing."""
    for slot in record.slots:
        if slot.state is not State.FAILED:
            record = _dropped(record, slot)
    return record


def proved(record: Record, proof: Proof) -> Record:
    """Remember a passed self-test."""
    if proof in record.proofs:
        return record
    return _replace(record, proofs=(*record.proofs, proof)[-PROOFS_KEPT:])


def check(record: Record) -> None:
    """Raise ValueError for a record that no sequence of moves can lead to."""
    states = [slot.state for slot in record.slots]
    if len({slot.digest for slot in record.slots}) != len(states):
        raise ValueError("a digest has two slots")
    for state in ALONE:
        if states.count(state) > 1:
            raise ValueError(f"{states.count(state)} bundles are {state.value}")
    if State.ABSENT in states:
        raise ValueError("a slot is absent")


def _called(record: Record, slot: Slot | None) -> str:
    assert slot is not None
    return f"{record.name}@{slot.version}"


def _moved(record: Record, slot: Slot, event: Event, **changes: object) -> Record:
    return _replace(record, slots=_changed(record, slot, state=after(slot.state, event), **changes))


def _changed(record: Record, slot: Slot, **changes: object) -> tuple[Slot, ...]:
    return tuple(msgspec.structs.replace(one, **changes) if one == slot else one for one in record.slots)


def _dropped(record: Record, slot: Slot) -> Record:
    assert after(slot.state, Event.REMOVE) is State.ABSENT
    proofs = tuple(proof for proof in record.proofs if proof.digest != slot.digest)
    return _replace(record, slots=tuple(one for one in record.slots if one != slot), proofs=proofs)


def _without(record: Record, state: State) -> Record:
    slot = record.of(state)
    return record if slot is None else _dropped(record, slot)


_replace: Callable[..., Record] = msgspec.structs.replace
