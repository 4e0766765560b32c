"""Takes what edged-sync leaves in ``incoming``: each packed bundle is verified from scratch and staged, or thrown away.

A file is complete when it has its name: it is moved there. Names that begin with a dot are somebody's unfinished work,
or a command's. Nothing that arrives here runs by itself: a trial begins by a command.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from pathlib import Path

from edged.bundle.store.store import ModelStore, ModelStoreError
from edged.errors import EdgedError

log = logging.getLogger(__name__)

POLL_S = 2.0  # a download took minutes; inotify would not be worth its file
PAUSE_S = 60.0  # after the disk refused: room does not appear faster
COMMAND_PREFIX = ".command-"


async def watch(store: ModelStore, directory: Path) -> None:
    """Stage what arrives, until cancelled."""
    await asyncio.to_thread(prepare, directory)
    while True:
        pause_s = await asyncio.to_thread(sweep, store, directory)
        await asyncio.sleep(pause_s)


def make(directory: Path) -> None:
    """Make the directory, for its group to write too, as belongs to whom the state belongs. Raises ModelStoreError."""
    if directory.is_dir():
        return
    there = next(parent for parent in directory.parents if parent.exists())
    owner = there.stat()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for made in (directory, *directory.parents):
            if made == there:
                break
            os.chown(made, owner.st_uid, owner.st_gid)
            made.chmod(0o2770)
    except OSError as error:
        raise ModelStoreError(f"{error.filename or directory}: {error.strerror}") from None


def prepare(directory: Path) -> None:
    """Make the directory; what killed commands left behind goes. A living one holds a lock on its file."""
    try:
        make(directory)
        for file in directory.glob(f"{COMMAND_PREFIX}*"):
            with contextlib.suppress(BlockingIOError, FileNotFoundError), file.open("rb") as left:
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink(missing_ok=True)
    except (OSError, ModelStoreError) as error:
        log.warning("incoming cannot be used", extra={"path": str(directory), "reason": str(error)})


def sweep(store: ModelStore, directory: Path) -> float:
    """Take every file that is there. Returns in how many seconds to look again."""
    for file in _files(directory):
        try:
            name, slot = store.install(file)
            log.info("model staged", extra={"model": f"{name}@{slot.version}", "digest": slot.digest})
        except ModelStoreError as error:
            log.warning("model waits", extra={"file": file.name, "reason": str(error)})
            return PAUSE_S
        except EdgedError as error:
            log.warning("model refused", extra={"file": file.name, "reason": str(error)})
            _throw_away(file)
    return POLL_S


def _files(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as entries:
            return sorted(directory / e.name for e in entries if not e.name.startswith("."))
    except OSError:
        return []


def _throw_away(file: Path) -> None:
    """What is refused, unless the store took it already; folders are nobody's bundle and stay."""
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("file cannot be removed", extra={"file": file.name, "reason": error.strerror})
