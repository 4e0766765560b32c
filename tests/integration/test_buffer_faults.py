"""A kill at every step of the writer, and I/O errors where they hurt: strace interrupts real system calls."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edged.buffer.reader import BufferReader
from edged.buffer.recovery import reopen
from edged.buffer.segment import Segment
from edged.buffer.shelf import Shelf
from edged.buffer.store import SegmentStore
from edged.domain import Kind, Receipt, Totals
from edged.errors import StoreError
from tests.support.buffer import entry, gaps_of, read_all, rows_of, store_settings, with_store
from tests.support.buffer_writer import small_settings
from tests.support.parts import require

ENTRIES = 300  # with 2 KB each eight segments; the cap makes some of them go
STEPS = "fsync,fdatasync,rename,unlink,ftruncate"  # what makes things durable, appear and go

RAW_COMMIT = """
import shutil, sqlite3, sys
path = sys.argv[1]
c = sqlite3.connect(path, isolation_level=None)
c.execute("pragma journal_mode=wal"); c.execute("pragma synchronous=full"); c.execute("create table t(x)")
try:
    c.execute("insert into t values(1)")
except sqlite3.OperationalError as error:
    print("failed:", error.sqlite_errorname)
print("visible:", c.execute("select count(*) from t").fetchone()[0])
for suffix in ("", "-wal"):  # what a kill at this moment leaves
    shutil.copy(path + suffix, path + "2" + suffix)
print("after a kill:", sqlite3.connect(path + "2").execute("select count(*) from t").fetchone()[0])
"""


def traced(inject: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python under strace with an injection. Only the calls that it names stop the process."""
    calls, _, what = inject.partition(":")
    filtered = [] if what.startswith("signal") else ["--seccomp-bpf"]  # with it strace 6.1 forgets to send a signal
    trace = ["strace", "-f", "-qq", "-o", "/dev/null", *filtered, "-e", f"trace={calls}", "-e", f"inject={inject}"]
    return subprocess.run([*trace, sys.executable, *command], capture_output=True, text=True, check=False, timeout=60)


def write_traced(directory: Path, inject: str) -> subprocess.CompletedProcess[str]:
    return traced(inject, "-m", "tests.support.buffer_writer", str(directory), str(ENTRIES))


def receipts_of(output: str) -> dict[str, tuple[str, int]]:
    """Key → (epoch, seq) of every complete line; a key has one receipt whoever asks."""
    receipts: dict[str, tuple[str, int]] = {}
    for line in output.rpartition("\n")[0].splitlines():
        epoch, *rest = line.split(" ")
        if epoch not in ("", "open", "error"):
            assert receipts.setdefault(rest[1], (epoch, int(rest[0]))) == (epoch, int(rest[0]))
    return receipts


def check(directory: Path, receipts: dict[str, tuple[str, int]], epochs: int = 1) -> None:
    """All frames were sent (again) by now: each ended in exactly one seq, and stands there or in a gap of the cap."""
    settings = small_settings(directory)

    async def look(store: SegmentStore) -> tuple[Totals, int]:
        return store.totals()["digits-spool"], store.facts().bytes

    totals, size_bytes = with_store(settings, look)
    assert len(BufferReader(settings.directory).epochs()) == epochs
    assert size_bytes <= settings.cap_bytes
    if epochs == 1:
        assert totals == Totals(received=ENTRIES, committed=ENTRIES)
    stored: dict[str, tuple[str, int]] = {}
    shed: list[tuple[str, int, int]] = []
    for epoch in BufferReader(settings.directory).epochs():
        items = read_all(settings.directory, epoch.id, "digits")
        for row in rows_of(items):
            assert row.key not in stored
            stored[row.key] = (epoch.id, row.seq)
        shed += [(epoch.id, gap.first, gap.last) for gap in gaps_of(items)]
        if epochs == 1:
            assert {gap.reason for gap in gaps_of(items)} <= {"cap"}
    for key, (epoch_id, seq) in receipts.items():
        kept = stored.get(key) == (epoch_id, seq)
        assert kept or any(of == epoch_id and first <= seq <= last for of, first, last in shed), key


def kill_at_step(directory: Path, step: int) -> bool:
    """Kill a writer at one step, let another finish its work, check. False when the first one had no such step."""
    killed = write_traced(directory, f"{STEPS}:signal=SIGKILL:when={step}")
    finished = write_traced(directory, "sync:error=EIO:when=1")  # a call that nobody makes: traced in the same way
    assert finished.returncode == 0, finished.stderr
    check(directory, receipts_of(killed.stdout.rpartition("\n")[0] + "\n" + finished.stdout))
    return killed.returncode != 0


@pytest.mark.parametrize("step", [23, 47, 96])
def test_a_kill_at_any_step_loses_nothing_that_was_answered(tmp_path: Path, step: int) -> None:
    require("ptrace")
    assert kill_at_step(tmp_path, step)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_at_every_step(tmp_path: Path) -> None:
    require("ptrace")
    steps, killed, cores = 0, [True], os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        while all(killed):
            batch = range(steps + 1, steps + 1 + 2 * cores)
            killed = list(pool.map(lambda step: kill_at_step(tmp_path / str(step), step), batch))
            steps += sum(killed)
    print(f"killed at each of {steps} steps")
    assert steps >= 100


@pytest.mark.parametrize("when", ["5", "20+15"])
def test_an_error_of_fsync_is_reconciled(tmp_path: Path, when: str) -> None:
    require("ptrace")
    run = write_traced(tmp_path, f"fdatasync:error=EIO:when={when}")
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr
    check(tmp_path, receipts_of(run.stdout))


def test_control_sqlite_alone_brings_a_failed_commit_back(tmp_path: Path) -> None:
    """Why an error at the commit is indeterminate: the row was refused, cannot be seen, and is there after a kill."""
    require("ptrace")
    plain = traced("sync:error=EIO:when=1", "-c", RAW_COMMIT, str(tmp_path / "plain.db"))
    assert plain.stdout.splitlines() == ["visible: 1", "after a kill: 1"]
    outcomes = set()
    for when in range(5, 11):
        run = traced(f"fdatasync:error=EIO:when={when}", "-c", RAW_COMMIT, str(tmp_path / f"{when}.db"))
        outcomes.add(tuple(line.rpartition(" ")[2] for line in run.stdout.splitlines()))
    assert ("SQLITE_IOERR_FSYNC", "0", "1") in outcomes, outcomes


@pytest.mark.slow
def test_while_every_fsync_fails_commits_say_so_and_nothing_is_believed(tmp_path: Path) -> None:
    require("ptrace")
    run = write_traced(tmp_path, "fdatasync:error=EIO:when=8+")
    assert "error io" in run.stdout
    healed = write_traced(tmp_path, "sync:error=EIO:when=1")
    assert healed.returncode == 0, healed.stderr
    check(tmp_path, receipts_of(run.stdout.rpartition("\n")[0] + "\n" + healed.stdout))


@pytest.mark.parametrize("took_place", [True, False])
@pytest.mark.parametrize("identity", [True, False])
def test_what_is_handed_in_again_after_two_errors_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took_place: bool, identity: bool
) -> None:
    """The commit fails and perhaps took place, and so does the look whether it did; then the caller tries again."""
    commit_rows, broken = Segment.commit, OSError(errno.EIO, "the medium")
    failures = ["commit", "read"]

    def failing_commit(segment: Segment, rows: Sequence[tuple[Any, ...]]) -> None:
        if "commit" not in failures or not rows:
            commit_rows(segment, rows)
            return
        failures.remove("commit")
        if took_place:
            commit_rows(segment, rows)
        raise broken

    def failing_read(shelf: Shelf, path: Path) -> Segment:
        if "read" in failures:
            failures.remove("read")
            raise broken
        return reopen(shelf, path)

    group = [entry("a"), entry("", kind=Kind.DROPPED, count=3), entry("b"), entry("", kind=Kind.DROPPED, count=5)]
    settings = store_settings(tmp_path, frame_identity=identity)

    async def act(store: SegmentStore) -> tuple[list[Receipt], list[Receipt], Totals]:
        before = await store.commit([entry("before")])
        monkeypatch.setattr(Segment, "commit", failing_commit)
        monkeypatch.setattr("edged.buffer.journal.reopen", failing_read)
        with pytest.raises(StoreError):
            await store.commit(group)
        assert failures == []
        again = await store.commit(group)
        control = await store.commit([entry("", kind=Kind.DROPPED, count=7)])  # another one, however alike
        return again, before + again + control, store.totals()["digits-spool"]

    again, receipts, totals = with_store(settings, act)
    assert not any(receipt.duplicate for receipt in again)
    assert [receipt.seq for receipt in receipts] == [1, 2, 3, 4, 5, 6]
    assert totals == Totals(received=3 + 15, committed=3, dropped=15)
    (epoch,) = BufferReader(settings.directory).epochs()
    assert [row.seq for row in rows_of(read_all(settings.directory, epoch.id, "digits"))] == [1, 2, 3, 4, 5, 6]
