"""Restores a backup on a device that holds nothing yet. What is there stays; the store begins a new epoch.

The order: take the daemon's locks → unpack and verify beside the state → rename into place, the buffer last.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edged.backup.archive import BackupError, Manifest, peek, scratch, unpack
from edged.buffer.files import DIRECTORY_MODE, sync_directory
from edged.buffer.reader import BufferReader
from edged.bundle.store import files
from edged.config import Device
from edged.errors import EdgedError
from edged.settings import InvalidSettings, Problem, parse, read_toml

SYNC_USER = "edged-sync"  # of the package's units; the cursors are its own
SCRATCH = ".edged-restore-"


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done. ``kept``: files that were there before and stayed as they were."""

    manifest: Manifest
    state: Path
    kept: tuple[Path, ...]


def restore(archive: Path, path: Path) -> Restored:
    """Restore a backup to where the configuration at ``path`` says, or to where its own says if there is none.

    Raises EdgedError; then nothing was changed.
    """
    manifest, configuration = peek(archive)
    device = _device(path, archive, configuration)
    if manifest.device != device.id:
        raise BackupError(f"this is a backup of {manifest.device}, and {path} is that of {device.id}",
                          "set device.id to it: whoever receives the results knows the device by it")  # fmt: skip
    state = device.state_dir
    state.mkdir(parents=True, exist_ok=True)
    with _alone(state), scratch(state, SCRATCH) as fresh:
        _must_be_empty(device)
        unpack(archive, fresh)
        owner = state.stat()
        _own(fresh / "state", owner.st_uid, owner.st_gid)
        kept = [*_place_config(fresh / "config", path, owner.st_gid), *_place_state(fresh / "state", state)]
    return Restored(manifest, state, tuple(kept))


def _device(path: Path, archive: Path, configuration: bytes | None) -> Device:
    """Who the device is and where its state lies: the rest of its configuration may need what is restored first."""
    if path.exists():
        table = read_toml(path)
    elif configuration is not None:
        table = tomllib.loads(configuration.decode())
    else:
        raise BackupError(f"{archive} holds no configuration, and there is none at {path}", "write one first")
    problems: list[Problem] = []
    device = parse(Device, table.get("device"), problems, "device", base=path.resolve().parent)
    if device is None:
        raise InvalidSettings(str(path), problems)
    return device


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Hold the daemon's lock. Raises BackupError while a daemon runs."""
    try:
        lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
    except OSError as error:
        hint = "run it as root or as the daemon's user"
        raise BackupError(f"{error.filename}: {error.strerror}", hint) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise BackupError(f"a daemon holds {state}", "systemctl stop edged edged-sync") from None
    finally:
        os.close(lock)


def _must_be_empty(device: Device) -> None:
    """Raise BackupError when the device holds results or models that a backup would hide."""
    reader = BufferReader(device.buffer_dir)
    hint = f"move {device.state_dir} away first (its results were perhaps not delivered)"
    try:
        held = [each.stream for epoch in reader.epochs() for each in reader.streams(epoch.id)]
    except EdgedError as error:
        raise BackupError(f"there is a buffer that cannot be read: {error.message}", hint) from None
    if held:
        raise BackupError(f"this device holds results of {', '.join(sorted(set(held)))}", hint)
    installed = list(files.names(device.models_dir))
    if installed:
        raise BackupError(f"this device holds models: {', '.join(installed)}", hint)


def _own(folder: Path, uid: int, gid: int) -> None:
    """Give everything to whom the state belongs; the cursors to edged-sync."""
    for name, folders, names in os.walk(folder):
        here = Path(name)
        here.chmod(DIRECTORY_MODE if here.name in ("buffer", "sync") else 0o750)
        owner = _sync_user(uid) if here.name == "sync" else uid
        for path in (here, *(here / one for one in (*folders, *names))):
            if os.geteuid() == 0:
                os.chown(path, owner if path == here or path.is_file() else uid, gid)
        if here.name in ("buffer", "sync"):
            here.chmod(DIRECTORY_MODE)  # chown takes the setgid bit away


def _sync_user(otherwise: int) -> int:
    try:
        return pwd.getpwnam(SYNC_USER).pw_uid
    except KeyError:
        return otherwise


def _place_config(fresh: Path, path: Path, gid: int) -> Iterator[Path]:
    """Put the files of the configuration where none are. Yields those that stay as they are."""
    for found in sorted(one for one in fresh.rglob("*") if one.is_file()):
        name = found.relative_to(fresh)
        target = path if name == Path("edged.toml") else path.parent / name
        if target.exists():
            if target.read_bytes() != found.read_bytes():
                yield target
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(found, 0, gid)
        shutil.move(found, target)
        sync_directory(target.parent)


def _place_state(fresh: Path, state: Path) -> Iterator[Path]:
    """Put the state in place, the buffer last. Yields the keys that stay as they are."""
    for found in sorted((fresh / "trust").glob("*")) + sorted((fresh / "sync").glob("*")):
        target = state / found.parent.name / found.name
        if target.exists() and found.parent.name == "trust":
            if target.read_bytes() != found.read_bytes():
                yield target
            continue
        if not target.parent.is_dir():
            shutil.copytree(found.parent, target.parent, ignore=lambda _, names: names)
            shutil.copystat(found.parent, target.parent)
            if os.geteuid() == 0:
                os.chown(target.parent, found.parent.stat().st_uid, found.parent.stat().st_gid)
                target.parent.chmod(found.parent.stat().st_mode & 0o7777)
        found.rename(target)
        sync_directory(target.parent)
    for name in ("models", "buffer"):
        if not (fresh / name).is_dir():
            continue
        target = state / name
        if target.exists():
            target.rename(fresh / f"empty-{name}")  # nothing was in it; it goes with the temporary folder
        (fresh / name).rename(target)
    sync_directory(state)
