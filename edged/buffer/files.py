"""Files that must survive a power cut: atomic replacement, directory sync, sizes.

Knows nothing of what the files mean. Readers of another user share the group, so every file is made 0660.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

FILE_MODE = 0o660  # writer and reader are two users of one group
DIRECTORY_MODE = 0o2770  # setgid: whatever is made inside belongs to the group

LEDGER = "ledger.json"
BALLAST, SPARE = "ballast", "spare"
LOCK = "lock"
QUARANTINE = "quarantine"
TEMPORARY = ".tmp"

_SEGMENT = re.compile(r"segment-(\d{8})\.db\Z")


def segment_path(directory: Path, number: int) -> Path:
    """Where segment ``number`` lies. Numbers count up and are never used again."""
    return directory / f"segment-{number:08d}.db"


def frames_path(directory: Path, number: int) -> Path:
    """Where the frame identities of a sealed segment lie. The file outlives its segment."""
    return directory / f"segment-{number:08d}.frames"


def segment_numbers(directory: Path) -> list[int]:
    """The numbers of all segment files, oldest first."""
    names = (_SEGMENT.match(path.name) for path in directory.iterdir())
    return sorted(int(match[1]) for match in names if match)


def companions(path: Path) -> tuple[Path, ...]:
    """A database and everything SQLite keeps beside it."""
    return (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal")))


def wal_path(path: Path) -> Path:
    """The write-ahead log of a database."""
    return path.with_name(path.name + "-wal")


def size_bytes(path: Path) -> int:
    """Size of a file; 0 when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def tree_bytes(directory: Path) -> int:
    """Size of every file below ``directory``. Files that vanish meanwhile count as nothing."""
    total = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as found:
        for item in found:
            with contextlib.suppress(FileNotFoundError):
                total += tree_bytes(Path(item.path)) if item.is_dir() else item.stat().st_size
    return total


def sync_directory(directory: Path) -> None:
    """Make renames and unlinks in ``directory`` durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file: after this either the old or the new content is there, whatever happens. Raises OSError."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
        try:
            os.fchmod(handle, FILE_MODE)
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def allocate(path: Path, size: int) -> None:
    """Make a file that really takes ``size`` bytes on the medium, or none. Raises OSError."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def make_directory(path: Path) -> None:
    """Create a directory that the group shares, unless it is there. Raises OSError."""
    if not path.is_dir():
        path.mkdir(parents=True)
        path.chmod(DIRECTORY_MODE)
