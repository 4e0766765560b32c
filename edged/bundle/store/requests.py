"""What may be asked of the store by a command, and how it is done: the same with and without a running daemon.

A request names a file in ``incoming``, never a path of the caller's: the daemon reads nothing else on anybody's behalf.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import msgspec

from edged.bundle.manifest import Name
from edged.bundle.store.record import ModelRefused, Record
from edged.bundle.store.store import ModelStore

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{0,64}\Z")]  # the first digits of one; empty: what is usual


class Install(msgspec.Struct, frozen=True, tag="install"):
    """Stage the packed bundle ``file`` of ``incoming``, and put it on trial at once if ``trial``."""

    file: str
    trial: bool = False


class Trial(msgspec.Struct, frozen=True, tag="trial"):
    """Put the staged bundle on trial, or the one that was rolled back, or the named one."""

    name: Name
    digest: Digest = ""


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    """End the trial well, before its time."""

    name: Name


class Rollback(msgspec.Struct, frozen=True, tag="rollback"):
    """End the trial, or return to the previous version."""

    name: Name


class Remove(msgspec.Struct, frozen=True, tag="remove"):
    """Remove one bundle (or forget that it failed); without ``digest`` the whole model."""

    name: Name
    digest: Digest = ""


Request = Install | Trial | Commit | Rollback | Remove


class Done(msgspec.Struct, frozen=True, tag="done"):
    """It was done; one line for a person."""

    message: str


class Refusal(msgspec.Struct, frozen=True, tag="refusal"):
    """It was not done, and why."""

    message: str
    hint: str = ""


Answer = Done | Refusal


def perform(store: ModelStore, request: Request, incoming: Path, *, used: Collection[str], running: bool) -> Done:
    """Do it. ``used``: models that pipelines name; ``running``: a daemon starts trials at once. Raises EdgedError."""
    match request:
        case Install():
            return _install(store, request, incoming, running=running)
        case Trial(name=name):
            slot = store.begin_trial(name, _digest(store, name, request.digest), running=running)
            return Done(f"{name}@{slot.version} is on trial")
        case Commit(name=name):
            return Done(f"{name}@{store.commit(name).version} is active")
        case Rollback(name=name):
            now = store.roll_back(name, "by command")
            return Done(f"{name}@{now.version} runs again" if now else f"{name} was taken off trial; there is no other")
        case Remove(name=name):
            return _remove(store, request, used)


def _install(store: ModelStore, request: Install, incoming: Path, *, running: bool) -> Done:
    if request.file != os.path.basename(request.file):  # noqa: PTH119  # Path.name would make "a/.." look harmless
        raise ModelRefused(f"{request.file!r} is not the name of a file in {incoming}")
    name, slot = store.install(incoming / request.file)
    signed = f"signed with {slot.signer}" if slot.signer else "NOT signed"
    message = f"{name}@{slot.version} is installed, {signed}; digest {slot.digest}"
    if request.trial:
        store.begin_trial(name, slot.digest, running=running)
        message += "; it is on trial"
    return Done(message)


def _remove(store: ModelStore, request: Remove, used: Collection[str]) -> Done:
    name = request.name
    if request.digest:
        digest = _digest(store, name, request.digest)
        store.discard(name, digest)
        return Done(f"{name} {digest[:12]} is removed")
    if name in used:
        raise ModelRefused(f"{name} is used by a pipeline", "take it out of the configuration and restart the daemon")
    store.remove_all(name)
    return Done(f"{name} is removed")


def _digest(store: ModelStore, name: str, start: str) -> str:
    """The whole digest that begins like this. Raises ModelRefused unless there is exactly one."""
    if not start:
        return ""
    record = next((one for one in store.records if one.name == name), Record(name=name))
    found = [slot.digest for slot in record.slots if slot.digest.startswith(start)]
    if len(found) != 1:
        many = f"{len(found)} bundles" if found else "no bundle"
        raise ModelRefused(f"{name} has {many} with a digest {start}…", "edged model list shows them")
    return found[0]
