"""Replay: plays recorded frames at a rate, the way a camera would; for rehearsals and load tests.

A directory is played file by file, a single ``.npy`` row by row (its first axis). Like a camera it does not wait: a
frame is due at its time, and the pipeline's policy decides what a full queue does. Each run has an identity of its own,
so a replay after a restart is new frames.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edged.domain import Frame, FrameId, Payload
from edged.errors import FrameRejected
from edged.ports import Ended, Intake
from edged.sources.decode import decode

log = logging.getLogger(__name__)


class ReplaySource:
    """Plays ``path`` at ``rate_hz`` as frames of the source ``name``. Implements the Source port."""

    def __init__(self, name: str, path: Path, rate_hz: float, *, loop: bool = False) -> None:
        self.name = name
        self._path = path
        self._period_s = 1 / rate_hz
        self._loop = loop

    async def run(self, intake: Intake) -> None:
        """Play until the end (or for ever when looping), then wait to be cancelled."""
        run = uuid.uuid4().hex[:8]
        due = time.monotonic()
        number = 0
        while number == 0 or self._loop:
            before = number
            for label, payload in self._payloads():
                number += 1
                due = max(due + self._period_s, time.monotonic() - 1.0)  # after a stall, catch up one second at most
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                received_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                identity = FrameId(self.name, f"{run}-{number:08d}-{label}")
                if isinstance(payload, str):
                    await intake.reject(identity, received_ns, payload, _ignore)
                else:
                    await intake.offer(Frame(identity, payload, received_ns), _ignore)
            if number == before:
                break
        log.info("replay has ended", extra={"source": self.name, "frames": number})
        await asyncio.Event().wait()

    def _payloads(self) -> Iterator[tuple[str, Payload | str]]:
        """Label and payload of each frame, or the reason why there is none."""
        if self._path.is_file() and self._path.suffix == ".npy":
            rows = _decoded(self._path)
            if isinstance(rows, np.ndarray) and rows.ndim > 1:
                for i, row in enumerate(rows):
                    yield str(i), row
            else:
                yield self._path.name, rows if isinstance(rows, str) else "a replayed .npy needs rows: two axes or more"
            return
        files = [self._path] if self._path.is_file() else sorted(f for f in self._path.iterdir() if f.is_file())
        for file in files:
            yield file.name, _decoded(file)


def _decoded(file: Path) -> Payload | str:
    try:
        return decode(file.name, file.read_bytes())
    except (FrameRejected, OSError) as error:
        return str(error)


def _ignore(_: Ended) -> None:
    """Nobody waits for a replayed frame."""
