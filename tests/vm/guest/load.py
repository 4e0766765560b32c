"""Runs in a guest as the daemon's user: looks the store through, fills the spool, then tells every row as it is stored.

``load.py BUFFER`` prints the audit as one JSON value: the result of SQLite's integrity check for each segment, what
lies in quarantine, all rows and gaps of every stream. ``load.py BUFFER SPOOL FRAMES PREFIX COUNT`` prints on further
lines how many files it put into the spool, which then holds COUNT; the rows that were stored before these files were
flushed, and all else with them; and from then on a row a line. A row that a reader sees is committed, and was fsynced
before: so it must be there after every power cut.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import sys
import time
from pathlib import Path

from edged.buffer.files import QUARANTINE, segment_numbers, segment_path
from edged.buffer.reader import BufferReader, Gap, StoredRow
from edged.buffer.segment import open_reading
from edged.errors import StoreError

Ends = dict[tuple[str, str], int]  # (epoch, stream) → seq
PAGE = 500
POLL_S = 0.02


def audit(buffer: Path) -> Ends:
    """Tell of all that is stored; returns where it ends."""
    rows, ends = _rows(BufferReader(buffer), {})
    quarantine = buffer / QUARANTINE
    tell(
        {
            "integrity": [_integrity(segment_path(buffer, number)) for number in segment_numbers(buffer)],
            "quarantine": sorted(path.name for path in quarantine.iterdir()) if quarantine.exists() else [],
            "rows": rows,
        }
    )
    return ends


def load(buffer: Path, ends: Ends, feed: tuple[Path, Path, str, int]) -> None:
    """Feed, and tell of what is stored beyond ``ends`` until the power goes."""
    reader = BufferReader(buffer)
    tell(_feed(*feed))
    rows, ends = _rows(reader, ends)
    tell(rows)
    while True:
        with contextlib.suppress(StoreError):  # busy: at the next look
            rows, ends = _rows(reader, ends)
            for row in rows:
                tell(row)
        time.sleep(POLL_S)


def tell(message: object) -> None:
    """One line, at once."""
    print(json.dumps(message), flush=True)


def _integrity(path: Path) -> str:
    with contextlib.closing(open_reading(path)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


def _rows(reader: BufferReader, ends: Ends) -> tuple[list[list[object]], Ends]:
    """Rows and gaps beyond ``ends``: [epoch, stream, seq, key, kind, digest of the body]."""
    found: list[list[object]] = []
    ends = dict(ends)
    for epoch in reader.epochs():
        for position in reader.streams(epoch.id):
            place = (epoch.id, position.stream)
            while items := reader.read(*place, ends.get(place, 0), PAGE):
                found += [[*place, *_plain(item)] for item in items]
                ends[place] = items[-1].last if isinstance(items[-1], Gap) else items[-1].seq
    return found, ends


def _plain(item: StoredRow | Gap) -> list[object]:
    if isinstance(item, Gap):
        return [item.first, "", f"gap to {item.last}: {item.reason}", ""]
    return [item.seq, item.key, item.kind.value, hashlib.sha256(item.body).hexdigest()[:16]]


def _feed(spool: Path, frames: Path, prefix: str, count: int) -> int:
    """Files that are on the disk before anybody looks for them: one that is torn would not be the store's fault."""
    contents = itertools.cycle([path.read_bytes() for path in sorted(frames.iterdir())])
    missing = count - sum(path.suffix == ".npy" for path in spool.iterdir())
    names = [f"{prefix}-{number:05d}.npy" for number in range(missing)]
    for name, content in zip(names, contents, strict=False):
        (spool / f".{name}").write_bytes(content)
    os.sync()
    for name in names:
        (spool / f".{name}").rename(spool / name)
    os.sync()
    return len(names)


if __name__ == "__main__":
    seen = audit(Path(sys.argv[1]))
    if len(sys.argv) > 2:
        load(Path(sys.argv[1]), seen, (Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5])))
