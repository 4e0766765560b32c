"""The buffer: its state, its backlog, its files, and how far they are to be believed. Writes nothing, not even a lock.

While a daemon writes, files are read as edged-sync reads them. Without one, a segment whose log was left behind is
copied and the copy is looked at: opening the original would make files beside it.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from edged.buffer import clock, files
from edged.buffer.cursor import AckCursor, read_cursor
from edged.buffer.errors import cause
from edged.buffer.ledger import read_ledger
from edged.buffer.reader import BufferReader
from edged.buffer.retention import ACKED
from edged.buffer.salvage import log_hides_commits
from edged.buffer.segment import is_intact, open_reading, read_head, read_summary
from edged.doctor.case import Case
from edged.doctor.findings import Finding, failed, not_applicable, ok, warning
from edged.errors import StoreError

NEARLY_FULL = 0.9  # of the cap; above it the oldest results of the lowest priority go soon
EXPECTED = (ACKED, "gone")  # reasons of a gap that cost nobody anything
DAMAGED = "the daemon puts it aside and keeps what can be read; edged results --export saves the rest now"


def buffer(case: Case) -> Iterator[Finding]:
    """State and fill, as the daemon says or as the files tell."""
    directory, cap = case.config.device.buffer_dir, case.config.buffer.cap_mb << 20
    facts = case.status.buffer if case.status is not None else None
    if facts is not None and facts.state != "ok":
        yield failed("buffer", f"{facts.state}: {facts.reason}", "make room on the disk, or look at it with dmesg")
        return
    if not directory.is_dir():
        yield not_applicable("buffer", f"there is none in {directory} yet; the daemon makes it at its first start")
        return
    seen = f"{case.buffer_bytes >> 20} of {cap >> 20} MiB"
    if facts is not None:
        seen += f", {facts.rows} rows, {facts.unsent_rows} not acknowledged"
    if case.buffer_bytes >= NEARLY_FULL * cap:
        hint = "edged-sync must deliver, or raise buffer.cap_mb: at the cap the oldest results go"
        yield warning("buffer", seen, hint)
    else:
        yield ok("buffer", seen)


def integrity(case: Case) -> Iterator[Finding]:
    """Every segment, page by page; with ``thorough`` every checksum of the sealed ones too."""
    directory = case.config.device.buffer_dir
    if not directory.is_dir():
        yield not_applicable("buffer integrity", "there is no buffer yet")
        return
    bad = []
    numbers = files.segment_numbers(directory)
    for number in numbers:
        problem = _problem(files.segment_path(directory, number), live=case.is_written, thorough=case.thorough)
        if problem:
            bad.append(number)
            yield failed("buffer integrity", f"segment {number}: {problem}", DAMAGED)
    try:
        ledger = read_ledger(directory)
    except StoreError as error:
        yield failed("buffer integrity", str(error), "the daemon writes it anew at its next start")
        return
    aside = sorted((directory / files.QUARANTINE).glob("*"))
    if aside:
        hint = f"what could be read was kept; look at {directory / files.QUARANTINE}, then remove it"
        yield warning("buffer integrity", f"{len(aside)} damaged files were put aside", hint)
    lost = [f"{each.stream} {gap.first}..{gap.last} ({gap.reason})" for each in (ledger.gaps if ledger else ())
            for gap in each.gaps if gap.reason not in EXPECTED]  # fmt: skip
    if lost:
        yield warning("buffer integrity", f"results are missing, and the stream says so: {'; '.join(lost[-3:])}",
                      "the medium lost them, or the cap was reached: see disk, wear and link")  # fmt: skip
    if not bad and not aside and not lost:
        yield ok("buffer integrity", f"{len(numbers)} segments read whole")


def backlog(case: Case) -> Iterator[Finding]:
    """How much waits to be acknowledged, and whether the cursor can be read."""
    device = case.config.device
    try:
        cursor = read_cursor(device.sync_dir / "ack.json")
        waiting = _waiting(BufferReader(device.buffer_dir), cursor)
    except StoreError as error:
        if error.code == "busy":
            yield not_applicable("backlog", error.message)
        else:
            yield failed("backlog", error.message, error.hint or "edged-sync writes the cursor anew")
        return
    if not case.delivers:
        yield not_applicable("backlog", f"{sum(waiting.values())} rows; nothing is delivered: there is no [sync]")
        return
    seen = ", ".join(f"{stream}: {count}" for stream, count in sorted(waiting.items()) if count)
    yield ok("backlog", f"not acknowledged yet: {seen}" if seen else "everything is acknowledged")


def clocks(case: Case) -> Iterator[Finding]:
    """How far the wall clock is to be believed: what every result carries as its clock_quality."""
    floor_ns = 0
    with contextlib.suppress(StoreError, OSError):
        ledger = read_ledger(case.config.device.buffer_dir)
        floor_ns = ledger.floor_wall_ns if ledger is not None else 0
    quality = clock.clock_quality(time.time_ns(), floor_ns)
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if quality == "floor":
        yield warning("clock", f"{now} is behind a time that has passed already",
                      "timedatectl; a board without a clock needs NTP or an RTC: TLS fails until then")  # fmt: skip
    elif quality == "synchronized":
        yield ok("clock", f"{now}, synchronized")
    elif quality == "unsynchronized":
        hint = "timedatectl set-ntp true; results stay in order all the same"
        yield warning("clock", f"{now}, nobody keeps it in step", hint)
    else:
        yield not_applicable("clock", f"{now}; the kernel does not say how good it is")


def _problem(path: Path, *, live: bool, thorough: bool) -> str:
    """What is wrong with a segment, or nothing."""
    try:
        if live or not files.wal_path(path).exists():
            return _damage(path, thorough=thorough)
        if log_hides_commits(path):
            return "its log is damaged"
        with tempfile.TemporaryDirectory(prefix="edged-doctor-") as folder:
            for each in (path, files.wal_path(path)):
                shutil.copy2(each, folder)
            return _damage(Path(folder) / path.name, thorough=thorough)
    except FileNotFoundError:
        return ""  # acknowledged and gone meanwhile
    except (sqlite3.Error, StoreError) as error:
        if not path.exists() or cause(error) == "busy":
            return ""
        return str(error)
    except OSError as error:
        return str(error)


def _damage(path: Path, *, thorough: bool) -> str:
    with contextlib.closing(open_reading(path)) as connection:
        read_head(connection, path)
        summary = read_summary(connection, path)
    sealed = summary is not None
    whole = is_intact(path, summary.rows if summary is not None else 0, thorough=thorough and sealed)
    return "" if whole else "it is damaged"


def _waiting(reader: BufferReader, cursor: AckCursor) -> dict[str, int]:
    """Rows of each stream that are not acknowledged; a gap counts as the numbers that it stands for."""
    waiting: dict[str, int] = {}
    for epoch in reader.epochs():
        for at in reader.streams(epoch.id):
            count = max(0, at.last - max(at.first - 1, cursor.of(epoch.id, at.stream)))
            waiting[at.stream] = waiting.get(at.stream, 0) + count
    return waiting
