"""How far the results have been acknowledged: a small file that edged-sync replaces and the daemon reads.

The file is JSON: {"format": 1, "acks": [{"epoch": …, "stream": …, "seq": …}, …]}. Whoever reads it treats a damaged
file as no acknowledgement: rows then stay longer, never shorter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import msgspec

from edged.buffer.errors import store_error
from edged.buffer.files import write_durably


class AckCursor(msgspec.Struct, frozen=True):
    """(epoch, stream) → the highest seq that is acknowledged; everything up to it may go."""

    acks: Mapping[tuple[str, str], int] = MappingProxyType({})

    def of(self, epoch: str, stream: str) -> int:
        """The acknowledged seq of a stream; 0 when there is none."""
        return self.acks.get((epoch, stream), 0)


class _Ack(msgspec.Struct, frozen=True):
    epoch: str
    stream: str
    seq: Annotated[int, msgspec.Meta(ge=0)]


class _File(msgspec.Struct, frozen=True):
    format: int
    acks: tuple[_Ack, ...]


FORMAT = 1


def read_cursor(path: Path) -> AckCursor:
    """Read a cursor; an absent file is an empty one. Raises StoreError (code "cursor") when the file is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return AckCursor()
    except OSError as error:
        raise store_error("cursor", f"{path}: {error.strerror}", "results are kept until it can be read") from error
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise store_error("cursor", f"{path}: {error}", "results are kept until it is written anew") from None
    if file.format != FORMAT:
        raise store_error("cursor", f"{path}: format {file.format} is not known here", "upgrade the daemon")
    return AckCursor({(ack.epoch, ack.stream): ack.seq for ack in file.acks})


def write_cursor(path: Path, cursor: AckCursor) -> None:
    """Replace the cursor durably and atomically. Raises StoreError (code "io" or "full")."""
    acks = tuple(_Ack(epoch, stream, seq) for (epoch, stream), seq in sorted(cursor.acks.items()))
    try:
        write_durably(path, msgspec.json.encode(_File(FORMAT, acks)))
    except OSError as error:
        raise store_error("io", f"{path}: {error.strerror}", "check the directory and its medium") from error
