"""Durable writing of files and directories that must appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from edged.errors import BundleError


def write_durably(path: Path, data: bytes) -> None:
    """Create a new file and bring its bytes to the medium."""
    write_chunks(path, [data])


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    """The same for bytes that arrive piece by piece."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Bring a directory's entries to the medium."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_durably(path: Path, data: bytes) -> None:
    """Put a file in place whole: readers and cuts never see half of it. Raises OSError; then nothing was replaced."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextlib.contextmanager
def appearing(dest: Path) -> Iterator[Path]:
    """A new directory beside ``dest`` to fill; renamed to ``dest`` at the end, removed when anything fails.

    Raises BundleError when ``dest`` exists or cannot be made.
    """
    if os.path.lexists(dest):
        raise BundleError(f"{dest} exists", "name a directory that does not exist yet")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
    except OSError as error:
        raise BundleError(f"{dest} cannot be made: {error.strerror}") from None
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it private
        sync_directory(temporary)
        os.rename(temporary, dest)  # noqa: PTH104 - os.replace would hide that a directory must not exist
        sync_directory(dest.parent)
    except OSError as error:
        raise BundleError(f"{dest} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
