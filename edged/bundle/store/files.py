"""The files of the model store: records that are replaced whole and durably, and the space to do that on a full disk.

``<models>/NAME/state.json`` is the record of a model with its sha256 inside, ``state.copy.json`` the same again for a
medium that loses a block; ``<models>/NAME/DIGEST/`` are bundles. Whatever else lies there is garbage of a cut. Raises
OSError; decides nothing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edged.bundle.files import replace_durably, sync_directory
from edged.bundle.store.record import Record, check

STATE = "state.json"
COPY = "state.copy.json"
LOCK = "lock"
SPARE = ".spare"
SPARE_BYTES = 256 << 10  # two copies of the largest record (64 failed digests, 64 proofs) and the blocks around them
FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class _File(msgspec.Struct, frozen=True):
    format: int
    sha256: str
    record: msgspec.Raw


class DamagedRecord(Exception):
    """A record that cannot be read, nor its copy."""


def lock(models: Path, timeout_s: float) -> int:
    """Take the store for oneself, until the returned descriptor is closed. Raises TimeoutError, OSError."""
    fd = os.open(models / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise TimeoutError from None
            time.sleep(0.05)


def read_record(folder: Path) -> Record | None:
    """The record in a model's folder, from the copy where the first is damaged. None where there is none at all.

    Raises DamagedRecord.
    """
    problems = []
    for name in (STATE, COPY):
        try:
            return _decoded((folder / name).read_bytes(), folder.name)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            problems.append(f"{folder / name}: {error}")
    if problems:
        raise DamagedRecord("; ".join(problems))
    return None


def names(models: Path) -> Iterator[str]:
    """The models that have a folder."""
    try:
        with os.scandir(models) as entries:
            yield from sorted(e.name for e in entries if _NAME.fullmatch(e.name) and e.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return


def write_record(models: Path, record: Record) -> None:
    """Replace a record durably; a full disk gives up the spare for it. Raises OSError; then nothing was replaced."""
    folder = models / record.name
    raw = msgspec.json.encode(record)
    data = msgspec.json.encode(_File(FORMAT, hashlib.sha256(raw).hexdigest(), msgspec.Raw(raw)))
    try:
        _write(models, folder, data)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        (models / SPARE).unlink(missing_ok=True)
        _write(models, folder, data)


def write_copy(models: Path, record: Record) -> None:
    """Replace the copy with what the record's file holds. Raises OSError."""
    folder = models / record.name
    replace_durably(folder / COPY, (folder / STATE).read_bytes())


def keep_spare(models: Path) -> None:
    """Hold some space back for the next record. Raises OSError when there is none."""
    spare = models / SPARE
    if spare.exists() and spare.stat().st_size == SPARE_BYTES:
        return
    fd = os.open(spare, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, SPARE_BYTES)
    except OSError:
        spare.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _write(models: Path, folder: Path, data: bytes) -> None:
    if not folder.is_dir():
        folder.mkdir(mode=0o750)
        sync_directory(models)
    replace_durably(folder / STATE, data)


def _decoded(data: bytes, name: str) -> Record:
    file = msgspec.json.decode(data, type=_File)
    if file.format != FORMAT:
        raise ValueError(f"format {file.format} is not known here")
    if hashlib.sha256(file.record).hexdigest() != file.sha256:
        raise ValueError("its sha256 differs")
    record = msgspec.json.decode(file.record, type=Record)
    if record.name != name:
        raise ValueError(f"it is the record of {record.name}")
    check(record)
    return record
