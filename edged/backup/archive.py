"""The file of a backup: a gzipped ustar of plain files, and last the manifest with the SHA-256 of each.

Reading believes nothing: only plain files with safe names, each once, each as the manifest has it, and nothing more.
Everything is unpacked beside its target and verified there; until then nothing of the device has changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import io
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from edged.errors import EdgedError

FORMAT = 1
MANIFEST = "manifest.json"
CONFIGURATION = "config/edged.toml"
MANIFEST_BYTES = 64 << 20  # of some hundred thousand members
CHUNK = 1 << 20
MARGIN_BYTES = 64 << 20  # left free on the disk when all is unpacked
_NAME = re.compile(r"(?:state|config)(?:/(?!\.{1,2}(?:/|\Z))[^/\\\0\n]{1,255}){1,8}")


class BackupError(EdgedError):
    """A backup cannot be taken or used. Nothing was changed."""

    code = "backup"


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: its name begins with ``state/`` or ``config/``."""

    name: str
    size: int
    sha256: str
    mode: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The last member. ``left_out``: files that the configuration names and the backup does not hold."""

    format: int
    device: str
    version: str
    made: str  # RFC 3339, UTC; as good as the device's clock
    members: tuple[Member, ...]
    left_out: tuple[str, ...] = ()


class Writer:
    """An archive that is being written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._packed = gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0)
        self._tar = tarfile.TarFile(fileobj=self._packed, mode="w", format=tarfile.USTAR_FORMAT)
        self.members: list[Member] = []

    def add(self, name: str, path: Path, mode: int = 0o660) -> None:
        """Take a file that does not change meanwhile. Raises OSError (FileNotFoundError: nothing was added)."""
        with path.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            self._add(name, source, size, mode)

    def add_bytes(self, name: str, data: bytes, mode: int = 0o660) -> None:
        """Take a small file from memory."""
        self._add(name, io.BytesIO(data), len(data), mode)

    def close(self, manifest: Manifest) -> None:
        """End the archive."""
        data = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        info = tarfile.TarInfo(MANIFEST)
        info.size, info.mode = len(data), 0o600
        self._tar.addfile(info, io.BytesIO(data))
        self._tar.close()
        self._packed.close()

    def _add(self, name: str, source: IO[bytes], size: int, mode: int) -> None:
        if not _NAME.fullmatch(name):
            raise BackupError(f"{name!r} cannot stand in a backup", "rename the file")
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, mode
        hashed = _Hashed(source)
        self._tar.addfile(info, hashed)
        self.members.append(Member(name, size, hashed.sha256.hexdigest(), mode))


class _Hashed(io.RawIOBase):
    """Reads through, and hashes what it read."""

    def __init__(self, source: IO[bytes]) -> None:
        super().__init__()
        self._source = source
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.sha256.update(data)
        return data


def unpack(path: Path, folder: Path) -> Manifest:
    """Unpack a whole archive into an empty folder and verify it. Raises BackupError, naming what is wrong."""
    room = os.statvfs(folder)
    left = room.f_bavail * room.f_frsize - MARGIN_BYTES

    def take(name: str, size: int, content: IO[bytes]) -> tuple[int, str]:
        nonlocal left
        left -= size
        if left < 0:
            raise BackupError(f"there is no room for what {path} holds", f"free some space below {folder.parent}")
        return _write(folder / name, content)

    manifest = _read(path, take)
    for member in manifest.members:
        (folder / member.name).chmod(member.mode & 0o660)
    return manifest


def peek(path: Path) -> tuple[Manifest, bytes | None]:
    """Verify a whole archive without writing anything. Returns its manifest and its configuration.

    Raises BackupError, naming what is wrong.
    """
    configuration: bytes | None = None

    def take(name: str, size: int, content: IO[bytes]) -> tuple[int, str]:
        nonlocal configuration
        kept = name == CONFIGURATION and size <= CHUNK
        data = io.BytesIO()
        found = _copy(content, data if kept else None)
        configuration = data.getvalue() if kept else configuration
        return found

    return _read(path, take), configuration


def _read(path: Path, take: Callable[[str, int, IO[bytes]], tuple[int, str]]) -> Manifest:
    """Hand every member to ``take``, which returns its size and SHA-256, and compare them with the manifest."""
    try:
        with path.open("rb") as file, gzip.GzipFile(fileobj=file) as packed:
            with tarfile.TarFile(fileobj=packed, mode="r") as tar:
                found, manifest = _members(path, tar, take)
            _end(path, packed)
    except (tarfile.ReadError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BackupError(
            f"{path} is no backup of edged, or damaged or truncated: {error}", "take another one"
        ) from None
    except OSError as error:
        raise BackupError(f"{error.filename or path}: {error.strerror}") from None
    told = {member.name: member for member in manifest.members}
    for name in sorted(told.keys() ^ found.keys()):
        raise BackupError(
            f"{path}: {name} is {'missing' if name in told else 'not in the manifest'}", "take another one"
        )
    for name, (size, sha256) in found.items():
        if (size, sha256) != (told[name].size, told[name].sha256):
            raise BackupError(f"{path}: {name} is not what was backed up", "the file is damaged; take another one")
    return manifest


def _members(
    path: Path, tar: tarfile.TarFile, take: Callable[[str, int, IO[bytes]], tuple[int, str]]
) -> tuple[dict[str, tuple[int, str]], Manifest]:
    found: dict[str, tuple[int, str]] = {}
    manifest: Manifest | None = None
    for member in tar:
        if manifest is not None:
            raise BackupError(f"{path} goes on after its manifest", "edged did not write it")
        if member.type != tarfile.REGTYPE or member.pax_headers or member.linkname:
            raise BackupError(f"{path}: {member.name!r} is no plain file", "edged did not write it")
        content = tar.extractfile(member)
        assert content is not None
        if member.name == MANIFEST:
            manifest = _manifest(path, content.read(MANIFEST_BYTES))
            continue
        if not _NAME.fullmatch(member.name) or member.name in found:
            raise BackupError(f"{path}: the name {member.name!r} is unsafe or there twice", "edged did not write it")
        found[member.name] = take(member.name, member.size, content)
    if manifest is None:
        raise BackupError(f"{path} is no backup of edged: it has no manifest", "name a file that edged backup wrote")
    return found, manifest


def _end(path: Path, packed: gzip.GzipFile) -> None:
    """Read to the end, where the checksum stands. Raises BackupError when there is more than padding."""
    while chunk := packed.read(CHUNK):
        if any(chunk):
            raise BackupError(f"{path} goes on after its manifest", "edged did not write it")


def _manifest(path: Path, data: bytes) -> Manifest:
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as error:
        raise BackupError(f"{path}: its manifest cannot be read: {error}", "edged did not write it") from None
    if manifest.format != FORMAT:
        raise BackupError(f"{path} has format {manifest.format}, which is not known here", "upgrade edged")
    return manifest


def _write(target: Path, content: IO[bytes]) -> tuple[int, str]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        found = _copy(content, out)
        out.flush()
        os.fsync(out.fileno())
    return found


def _copy(content: IO[bytes], out: IO[bytes] | None) -> tuple[int, str]:
    sha256, size = hashlib.sha256(), 0
    while chunk := content.read(CHUNK):
        if out is not None:
            out.write(chunk)
        sha256.update(chunk)
        size += len(chunk)
    return size, sha256.hexdigest()


def appear(folder: Path, name: str) -> tuple[IO[bytes], Path]:
    """A temporary file beside where an archive is to appear. Raises BackupError."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    except OSError as error:
        hint = "name a directory that is there: is the medium mounted?"
        raise BackupError(f"{folder} cannot be written: {error.strerror}", hint) from None
    return os.fdopen(handle, "wb"), Path(temporary)


@contextlib.contextmanager
def scratch(folder: Path, prefix: str) -> Iterator[Path]:
    """A temporary directory. Those that a killed process left behind are removed: nobody holds their lock any more."""
    for left in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as made, _locked(Path(made)):
        yield Path(made)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def total_bytes(members: Iterable[Member]) -> int:
    """What the members take when they are unpacked."""
    return sum(member.size for member in members)
