"""How far each stream is acknowledged and published, kept in two small files across restarts.

``ack.json`` is for the daemon: what stands in it may be unlinked. ``published.json`` is only needed where the centre
acknowledges: what the broker has, up to which an ack is honoured. Both may lag behind: then rows are sent twice, and
their numbers tell. A damaged file is no cursor.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cloud_sync.device.uplink import LaneKey
from edged.buffer.cursor import AckCursor, read_cursor, write_cursor
from edged.errors import StoreError

DIRECTORY_MODE = 0o2770  # setgid: the daemon's group reads


class Cursors:
    """The two files. They are written only when something has changed."""

    def __init__(self, directory: Path, *, central: bool) -> None:
        self._directory = directory
        self._central = central
        self._written: dict[str, dict[LaneKey, int]] = {}

    def read(self) -> tuple[dict[LaneKey, int], dict[LaneKey, int], str]:
        """What is acked, what is published, and what is wrong with the files ("" for nothing)."""
        problems: list[str] = []
        acked = self._read("ack.json", problems)
        published = self._read("published.json", problems) if self._central else acked
        return acked, published, "; ".join(problems)

    def write(self, acked: dict[LaneKey, int], published: Mapping[LaneKey, int]) -> str:
        """Replace what has changed. Returns what went wrong ("" for nothing); it is tried again at the next call."""
        try:
            if not self._directory.is_dir():
                self._directory.mkdir(parents=True)
                self._directory.chmod(DIRECTORY_MODE)  # mkdir's own mode passes through the umask
            if self._central:
                self._write("published.json", dict(published))
            self._write("ack.json", acked)
        except StoreError as error:
            return error.message
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        return ""

    def _read(self, name: str, problems: list[str]) -> dict[LaneKey, int]:
        try:
            cursor = read_cursor(self._directory / name)
        except StoreError as error:
            problems.append(error.message)
            return {}
        return {LaneKey(*place): seq for place, seq in cursor.acks.items()}

    def _write(self, name: str, acks: dict[LaneKey, int]) -> None:
        if self._written.get(name, {}) == acks:
            return
        write_cursor(self._directory / name, AckCursor({(key.epoch, key.stream): seq for key, seq in acks.items()}))
        self._written[name] = acks
