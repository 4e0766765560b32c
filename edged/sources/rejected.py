"""The folder in which frames are kept that could not be inferred, each beside a file that says why.

Bounded: the oldest make room, because a device is left alone for years. Never raises because of a full disk: what
cannot be kept is logged, and the buffer holds its REJECTED or ERROR entry in any case.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from edged.domain import Receipt

log = logging.getLogger(__name__)

KEEP = 1000  # files; enough to see a pattern, small enough for any card


class RejectedFolder:
    """``path`` is made when the first frame is kept. At most ``keep`` frames stay."""

    def __init__(self, path: Path, keep: int = KEEP) -> None:
        self.path = path
        self._keep = keep

    def move(self, file: Path, name: str, receipt: Receipt) -> None:
        """Keep a file, moved here as ``name``, with its reason in ``name.reason.json``."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._explain(name, receipt)
            os.replace(file, self.path / name)  # noqa: PTH105 - Path.replace loses the errno of a rename across devices
            self._trim()
        except OSError as error:
            log.error("rejected frame could not be kept", extra={"key": name, "reason": str(error)})

    def write(self, data: bytes, name: str, receipt: Receipt) -> None:
        """Keep the bytes of a frame that never was a file."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._explain(name, receipt)
            (self.path / name).write_bytes(data)
            self._trim()
        except OSError as error:
            log.error("rejected frame could not be kept", extra={"key": name, "reason": str(error)})

    def _explain(self, name: str, receipt: Receipt) -> None:
        reason = {
            "kind": receipt.kind.value,
            "epoch": receipt.epoch,
            "stream": receipt.stream,
            "seq": receipt.seq,
            "reason": msgspec.Raw(receipt.body),
        }
        (self.path / f"{name}.reason.json").write_bytes(msgspec.json.encode(reason) + b"\n")

    def _trim(self) -> None:
        frames = [entry for entry in os.scandir(self.path) if not entry.name.endswith(".reason.json")]
        excess = len(frames) - self._keep
        if excess <= 0:
            return
        for entry in sorted(frames, key=lambda entry: entry.stat().st_mtime_ns)[:excess]:
            Path(entry.path).unlink(missing_ok=True)
            Path(f"{entry.path}.reason.json").unlink(missing_ok=True)
