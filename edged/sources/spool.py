"""The spool: a directory into which somebody moves finished files, one frame a file.

- A frame's identity is its name and a digest of its content: a file that is handed in again (its sender was unsure, or
  the daemon died between commit and removal) yields the first result, and a name used again for other content is a new
  frame. Senders use a new name for each frame.
- A file leaves the spool only after its result is committed. What cannot be inferred goes to ``rejected/`` with its
  reason.
- Names that begin with a dot or end in ``.part`` or ``.tmp`` are not looked at: write under such a name, then rename. A
  file that cannot be decoded and is younger than SETTLE_S may still be in writing and is looked at again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from edged.domain import Frame, FrameId, Kind, Payload
from edged.errors import ConfigError, FrameRejected
from edged.ports import Ended, Intake
from edged.sources.decode import MAX_BYTES, decode
from edged.sources.inotify import watching
from edged.sources.rejected import RejectedFolder

log = logging.getLogger(__name__)

SETTLE_S = 2.0
UNFINISHED = (".part", ".tmp")
LARGE_BYTES = 256 << 10  # above this, reading and decoding would hold up the event loop: a thread does it
REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class _Found:
    """A file that was read: its frame, or why there is none."""

    id: FrameId
    received_ns: int
    payload: Payload | None
    reason: str = ""


class SpoolSource:
    """Brings the files of ``path`` as frames of the source ``name``. Implements the Source port."""

    def __init__(self, name: str, path: Path, poll_s: float) -> None:
        self.name = name
        self._path = path
        self._poll_s = poll_s
        self._rejected = RejectedFolder(path / REJECTED)
        self._taken: set[str] = set()  # names that are on their way through the pipeline
        self._changed = asyncio.Event()

    async def run(self, intake: Intake) -> None:
        """Watch the directory until cancelled. Raises ConfigError when it cannot be used."""
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            os.scandir(self._path).close()
        except OSError as error:
            raise ConfigError(f"spool {self._path}: {error.strerror}", "check the path and its permissions") from None
        with watching(self._path, self._changed.set) as watched:
            if not watched:
                log.warning("spool is not watched, only polled", extra={"source": self.name, "path": str(self._path)})
            while True:
                self._changed.clear()
                for name in self._names():
                    await self._take(name, intake)
                await self._wait()

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._poll_s):
                await self._changed.wait()

    def _names(self) -> list[str]:
        """Files to take, by name: senders that number their frames get them inferred in order."""
        try:
            with os.scandir(self._path) as entries:
                return sorted(entry.name for entry in entries if self._wanted(entry))
        except OSError as error:
            log.warning("spool cannot be read", extra={"source": self.name, "reason": str(error)})
            return []

    def _wanted(self, entry: os.DirEntry[str]) -> bool:
        name = entry.name
        unfinished = name.startswith(".") or name.endswith(UNFINISHED)
        return not unfinished and name not in self._taken and not entry.is_dir(follow_symlinks=False)

    async def _take(self, name: str, intake: Intake) -> None:
        file = self._path / name
        try:
            found = await self._read(file)
        except FileNotFoundError:
            return  # its sender took it back
        except OSError as error:
            log.warning("file cannot be read", extra={"source": self.name, "key": name, "reason": str(error)})
            return
        if found is None:
            return
        self._taken.add(name)

        def ended(end: Ended) -> None:
            self._ended(file, end)

        if found.payload is None:
            await intake.reject(found.id, found.received_ns, found.reason, ended)
        else:
            await intake.offer(Frame(found.id, found.payload, found.received_ns), ended)

    async def _read(self, file: Path) -> _Found | None:
        """The file's frame; None while it may still be in writing."""
        info = file.lstat()
        received_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if not stat.S_ISREG(info.st_mode):
            return _Found(FrameId(self.name, f"{file.name}#{info.st_ino:x}"), received_ns, None, "not a regular file")
        if info.st_size > MAX_BYTES:
            reason = f"{info.st_size} bytes are more than a frame may have ({MAX_BYTES})"
            return _Found(FrameId(self.name, f"{file.name}#{info.st_ino:x}"), received_ns, None, reason)
        if info.st_size > LARGE_BYTES:
            found = await asyncio.to_thread(self._decode, file, received_ns)
        else:
            found = self._decode(file, received_ns)
        young = time.time() - info.st_mtime < SETTLE_S
        return None if found.payload is None and young else found

    def _decode(self, file: Path, received_ns: int) -> _Found:
        data = file.read_bytes()
        identity = FrameId(self.name, f"{file.name}#{hashlib.blake2b(data, digest_size=6).hexdigest()}")
        try:
            return _Found(identity, received_ns, decode(file.name, data))
        except FrameRejected as error:
            return _Found(identity, received_ns, None, str(error))

    def _ended(self, file: Path, end: Ended) -> None:
        try:
            if end.kind in (Kind.RESULT, Kind.DROPPED):
                file.unlink(missing_ok=True)
            elif end.receipt is not None:
                self._rejected.move(file, file.name, end.receipt)
        except OSError as error:
            log.error("file cannot be removed", extra={"source": self.name, "key": file.name, "reason": str(error)})
            return  # stays in _taken: it is not inferred again in this life, and its identity protects it in the next
        self._taken.discard(file.name)
