"""``edged results``: shows, follows and exports what the buffer holds, with the daemon up or down.

Only reads. ``--export`` merges every segment into one plain SQLite file and needs sqlite-utils (the extra "inspect").
"""

from __future__ import annotations

import argparse
import datetime
import heapq
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import msgspec

from edged.buffer.errors import store_error
from edged.buffer.reader import BufferReader, Gap, StoredRow
from edged.errors import StoreError

FOLLOW_S = 0.5  # how often --follow looks
PAGE = 200  # rows that one look at a stream brings
BATCH = 1000  # rows of one transaction of an export

Place = tuple[str, str]  # epoch and stream
Item = tuple[str, str, StoredRow | Gap]
Directory = Callable[[argparse.Namespace], Path]


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], buffer_directory: Directory) -> None:
    """Add ``results`` to a command line. Its ``func`` takes the arguments and returns the exit code."""
    parser = subparsers.add_parser("results", help="show, follow or export the stored results")
    parser.add_argument("--stream", help="only this stream")
    parser.add_argument("--limit", type=_count, default=20, metavar="N", help="newest of each stream (default 20)")
    parser.add_argument("--follow", action="store_true", help="go on with what arrives, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--export", type=Path, metavar="FILE.db", help="write everything into one plain SQLite file")
    parser.set_defaults(func=lambda arguments: _results(arguments, buffer_directory(arguments)))


def _results(arguments: argparse.Namespace, directory: Path) -> int:
    reader = BufferReader(directory)
    if not reader.epochs():
        raise store_error("absent", f"{directory}: there is no buffer here", "the daemon makes it at its first start")
    if arguments.export:
        rows = export(reader, arguments.export, arguments.stream)
        print(f"{arguments.export}: {rows} rows")
        return 0
    show = _show_json if arguments.json else _show_line
    positions: dict[Place, int] = {}
    for item in newest(reader, arguments.stream, arguments.limit, positions):
        show(item, sys.stdout)
    while arguments.follow:
        sys.stdout.flush()
        time.sleep(FOLLOW_S)
        for item in following(reader, arguments.stream, positions):
            show(item, sys.stdout)
    return 0


def newest(reader: BufferReader, stream: str | None, limit: int, positions: dict[Place, int]) -> list[Item]:
    """The newest rows and gaps of each stream of the newest epoch that has it, ordered by time.

    ``positions`` takes up where each stream ends.
    """
    items: list[Item] = []
    shown: set[str] = set()
    for epoch in reversed(reader.epochs()):
        for position in reader.streams(epoch.id):
            positions[epoch.id, position.stream] = position.last
            if stream not in (None, position.stream) or position.stream in shown:
                continue
            shown.add(position.stream)
            after = max(position.first - 1, position.last - limit)
            found = reader.read(epoch.id, position.stream, after, limit)
            items += [(epoch.id, position.stream, item) for item in found]
    return _by_time(items)


def following(reader: BufferReader, stream: str | None, positions: dict[Place, int]) -> list[Item]:
    """What came after ``positions``, which move on. Damage and a busy store are waited out."""
    items: list[Item] = []
    try:
        places = [(epoch.id, each.stream) for epoch in reader.epochs()[-2:] for each in reader.streams(epoch.id)]
        for place in (place for place in places if stream in (None, place[1])):
            found = reader.read(*place, positions.get(place, 0), PAGE)
            items += [(*place, item) for item in found]
            positions[place] = _end(found[-1]) if found else positions.get(place, 0)
    except StoreError as error:
        if error.code != "busy":
            raise
    return _by_time(items)


def export(reader: BufferReader, path: Path, stream: str | None) -> int:
    """Write all rows, gaps and epochs into a new SQLite file. Returns the number of rows. Raises StoreError."""
    try:
        import sqlite_utils  # 27 MiB and 130 ms: only for whoever exports
    except ImportError:
        raise store_error("absent", "sqlite-utils is not installed", "pip install 'edged[inspect]'") from None
    if path.exists():
        raise store_error("exists", f"{path} exists", "name a new file")
    database = sqlite_utils.Database(path)
    database.table("epochs").insert_all((_plain(epoch) for epoch in reader.epochs()), pk="id")
    gaps: list[dict[str, Any]] = []
    results = database.table("results")
    results.insert_all(_export_rows(reader, stream, gaps), pk=("epoch", "stream", "seq"), batch_size=BATCH)
    database.table("gaps").insert_all(gaps, pk=("epoch", "stream", "first"))
    rows = results.count if results.exists() else 0
    database.close()
    return int(rows)


def _export_rows(reader: BufferReader, stream: str | None, gaps: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for epoch in reader.epochs():
        for position in reader.streams(epoch.id):
            if stream not in (None, position.stream):
                continue
            after = 0
            while found := reader.read(epoch.id, position.stream, after, PAGE):
                for item in found:
                    record = {"epoch": epoch.id, "stream": position.stream, **_plain(item)}
                    if isinstance(item, Gap):
                        gaps.append(record)
                    else:
                        yield record
                after = _end(found[-1])


def _plain(value: object) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(value, builtin_types=(bytes,))
    return {key: item.decode() if isinstance(item, bytes) else item for key, item in plain.items()}


def _by_time(items: list[Item]) -> list[Item]:
    """Merge streams by the clock; within a stream the order is that of the numbers, whatever the clock did."""
    streams: dict[Place, list[tuple[int, int, Item]]] = {}
    wall_ns = 0
    for count, item in enumerate(items):
        wall_ns = item[2].wall_ns if isinstance(item[2], StoredRow) else wall_ns
        streams.setdefault(item[:2], []).append((wall_ns, count, item))
    return [item for _, _, item in heapq.merge(*streams.values())]


def _end(item: StoredRow | Gap) -> int:
    return item.seq if isinstance(item, StoredRow) else item.last


def _show_json(item: Item, out: TextIO) -> None:
    epoch, stream, found = item
    if isinstance(found, Gap):
        record: dict[str, Any] = {"epoch": epoch, "stream": stream, "gap": _plain(found)}
    else:
        record = {"epoch": epoch, "stream": stream, **_plain(found), "body": msgspec.Raw(found.body)}
    out.write(msgspec.json.encode(record).decode() + "\n")


def _show_line(item: Item, out: TextIO) -> None:
    _, stream, found = item
    if isinstance(found, Gap):
        bound = "at most " if found.upper_bound else ""
        out.write(f"{stream} {found.first}..{bound}{found.last}: no rows ({found.reason})\n")
        return
    wall = datetime.datetime.fromtimestamp(found.wall_ns / 1e9, datetime.UTC).isoformat(timespec="milliseconds")
    latency = f"{found.latency_ns / 1e6:.2f} ms"
    count = f" x{found.count}" if found.count != 1 else ""
    body = found.body.decode("utf-8", "replace")
    out.write(f"{wall} {stream} {found.seq} {found.kind.value}{count} {found.source}/{found.key} {latency} {body}\n")


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count
