"""Plans that an engine has derived, kept on disk between starts: a cache, never trusted, never needed.

One directory per key (model, engine, version, device, options); in it ``NAME.onnx`` or whatever the engine writes, and
``NAME.json`` with the engine's notes and one SHA-256 for both. The record is renamed into place last, so a torn write,
a power cut or a flipped bit shows as a wrong hash, and the plan is built again. Whoever builds holds a lock on its
scratch directory; one that nobody holds was left by a worker that was killed, and the next build clears it away. A full
or read-only disk costs the cache, never the engine. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SCRATCH = ".building-"
KEPT = 16  # keys an engine keeps: a device runs a few models; updates must not fill the disk over the years


class CachedPlan(NamedTuple):
    """A plan on disk, its hash just checked, with what the engine noted when it built it."""

    path: Path
    notes: dict[str, Any]


class PlanCache:
    """The plans of one key below ``folder``. Every failure to read means: build it again."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._path = folder / key

    def find(self, name: str) -> CachedPlan | None:
        """The plan if it is there and undamaged."""
        path = self._path / name
        try:
            record = json.loads((self._path / f"{name}.json").read_text(encoding="utf-8"))
            if record["sha256"] == _seal(path, record["notes"]):
                return CachedPlan(path, record["notes"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path | None]:
        """A directory beside the plans to build in, gone afterwards; None where nothing can be written."""
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._clear()
            scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=str(self._path)))
            lock = _locked(scratch)
        except OSError as error:
            print(f"plans are not cached: {error}", flush=True)
            yield None
            return
        try:
            yield scratch
        finally:
            shutil.rmtree(str(scratch), ignore_errors=True)
            if lock is not None:
                os.close(lock)

    def _clear(self) -> None:
        """Take away what killed builds left."""
        for left in self._path.glob(f"{SCRATCH}*"):
            with contextlib.suppress(OSError):
                lock = _locked(left)
                if lock is not None:
                    shutil.rmtree(str(left), ignore_errors=True)
                    os.close(lock)

    def keep(self, name: str, built: Path, notes: dict[str, Any]) -> None:
        """Move a plan out of the scratch directory into its place, then its record, as far as the disk allows."""
        try:
            record = {"notes": notes, "sha256": _seal(built, notes)}
            built.replace(self._path / name)
            written = built.with_name(f"{name}.json")
            written.write_text(json.dumps(record, indent=1), encoding="utf-8")
            written.replace(self._path / f"{name}.json")
            self._prune()
        except OSError as error:
            print(f"plan {name} is not cached: {error}", flush=True)

    def _prune(self) -> None:
        keys = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in keys[KEPT:]:
            shutil.rmtree(str(old), ignore_errors=True)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the lock of a directory; None where another process does. Raises OSError."""
    descriptor = os.open(str(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def cache_key(*parts: object) -> str:
    """A name for everything that a plan depends on."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _seal(path: Path, notes: dict[str, Any]) -> str:
    """One hash for a plan and its notes."""
    return hashlib.sha256((file_digest(path) + json.dumps(notes, sort_keys=True)).encode()).hexdigest()


def cpu() -> str:
    """This CPU, as far as generated code depends on it: architecture, model and instruction sets."""
    wanted = ("model name", "flags", "CPU implementer", "CPU part", "Features")
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in wanted:
                found.setdefault(name.strip(), value.strip())
    return f"{platform.machine()} {found}"
