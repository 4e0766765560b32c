"""Backup under load and restore: every committed row is there, no number is given out twice, the books close."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud_sync.contract.accounting import StreamAccount
from cloud_sync.contract.messages import Predecessor
from edged import config
from edged.backup import archive
from edged.backup.archive import BackupError
from edged.backup.restore import restore
from edged.backup.take import backups, take
from edged.buffer.reader import BufferReader
from edged.buffer.store import SegmentStore
from edged.bundle.store.record import Proof
from edged.bundle.store.states import State
from edged.bundle.store.store import ModelStore
from edged.bundle.store.trust import Trust
from tests.support.backup import save
from tests.support.buffer import (
    Tell,
    commit,
    entries,
    entry,
    fork_writer,
    gaps_of,
    read_everything,
    rows_of,
    store_settings,
)
from tests.support.device import Device, wait_until
from tests.support.doctor import Patient
from tests.support.store import packed

Bodies = dict[tuple[str, str, int], bytes]


def bodies(directory: Path) -> Bodies:
    return {(epoch, stream, row.seq): row.body for (epoch, stream), items in read_everything(directory).items()
            for row in rows_of(items)}  # fmt: skip


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    return Patient(tmp_path / "old", sync=False)


@pytest.fixture
def fresh(tmp_path: Path) -> Patient:
    """An empty device that is to take its place."""
    return Patient(tmp_path / "new", sync=False)


# Under load


async def write_for_ever(store: SegmentStore, tell: Tell) -> None:
    for first in range(0, 1 << 30, 20):
        receipts = await store.commit(entries(first, 20, size=2000))
        tell(str(receipts[-1].seq))
        await asyncio.sleep(0.002)


@contextlib.contextmanager
def written(patient: Patient) -> Iterator[Callable[[], int]]:
    """A process that commits without end; ask it how far it has come."""
    pid, reading = fork_writer(store_settings(patient.state, cap_bytes=256 << 20), write_for_ever)
    os.set_blocking(reading, False)
    told = [0]

    def last() -> int:
        with contextlib.suppress(BlockingIOError):
            told[0] = int(os.read(reading, 1 << 20).split()[-1])
        return told[0]

    try:
        yield last
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)


def test_every_row_committed_before_a_backup_under_load_is_in_it(
    patient: Patient, fresh: Patient, tmp_path: Path
) -> None:
    with written(patient) as last:
        wait_until(lambda: last() > 1500, 30)  # some segments are sealed by then
        before = last()
        made = save(patient, tmp_path / "stick")
        after = last()
    assert after > before, "it was written meanwhile"
    restore(made, fresh.path)
    commit(store_settings(fresh.state), entries(10**6, 3))
    (old, items), (new, later) = sorted(read_everything(fresh.state / "buffer").items(), key=lambda each: len(each[1]),
                                        reverse=True)  # fmt: skip
    rows = rows_of(items)
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    assert before <= len(rows)
    assert old[0] != new[0]
    assert [row.seq for row in rows_of(later)] == [1, 2, 3]
    bound = gaps_of(items)[-1]
    assert (bound.first, bound.reason, bound.upper_bound) == (len(rows) + 1, "restored", True)
    source = bodies(patient.state / "buffer")
    assert all(source[place] == body for place, body in bodies(fresh.state / "buffer").items() if place[0] == old[0])


def test_the_books_of_a_subscriber_close_though_the_device_went_on_after_the_backup(
    patient: Patient, fresh: Patient, tmp_path: Path
) -> None:
    original, copy = store_settings(patient.state), store_settings(fresh.state)
    commit(original, entries(0, 50))
    made = save(patient, tmp_path / "stick")
    commit(original, entries(50, 30))
    account = StreamAccount("digits")
    seen: Bodies = {}
    deliver(patient.state / "buffer", account, seen)  # then the device dies, and all that was delivered is known
    restore(made, fresh.path)
    commit(copy, entries(500, 10))
    deliver(fresh.state / "buffer", account, seen)
    assert account.complete
    assert [list(one.delivered) for one in account.report()] == [[(1, 80)], [(1, 10)]]
    assert len(seen) == 90


def test_what_the_device_stored_after_the_backup_and_never_delivered_is_no_silent_loss(
    patient: Patient, fresh: Patient, tmp_path: Path
) -> None:
    commit(store_settings(patient.state), entries(0, 50))
    made = save(patient, tmp_path / "stick")
    account = StreamAccount("digits")
    account.feed("", "digits", 1, 1, [1])  # an epoch of its own, so that the account is not empty
    epoch = BufferReader(patient.state / "buffer").epochs()[0].id
    account.feed(epoch, "digits", 1, 60, range(1, 61))  # 61 to 80 died with the device
    restore(made, fresh.path)
    commit(store_settings(fresh.state), entries(500, 10))
    deliver(fresh.state / "buffer", account, {})
    report = account.report()[1]
    assert report.complete
    assert 61 in report.gaps
    assert 80 in report.gaps


def test_a_plain_copy_of_a_store_gives_numbers_out_twice(patient: Patient, fresh: Patient, tmp_path: Path) -> None:
    """The control: what ``cp`` makes is no copy but a second original."""
    original, copy = store_settings(patient.state), store_settings(fresh.state)
    commit(original, entries(0, 50))
    shutil.copytree(patient.state / "buffer", fresh.state / "buffer")
    commit(original, [entry("a", size=50)])
    commit(copy, [entry("b", size=70)])
    ours, theirs = bodies(patient.state / "buffer"), bodies(fresh.state / "buffer")
    assert [place for place in ours.keys() & theirs.keys() if ours[place] != theirs[place]], "one number, two results"
    shutil.rmtree(fresh.state / "buffer")
    restore(save(patient, tmp_path / "stick"), fresh.path)
    commit(original, [entry("c", size=50)])
    commit(copy, [entry("d", size=70)])
    ours, theirs = bodies(patient.state / "buffer"), bodies(fresh.state / "buffer")
    assert not [place for place in ours.keys() & theirs.keys() if ours[place] != theirs[place]]


def deliver(directory: Path, account: StreamAccount, seen: Bodies) -> None:
    """Feed a subscriber with everything that a store holds; the same number must never come with another body."""
    reader = BufferReader(directory)
    for epoch in reader.epochs():
        for at in reader.streams(epoch.id):
            items = read_everything(directory)[(epoch.id, at.stream)]
            rows, gaps = rows_of(items), gaps_of(items)
            before = None
            if epoch.predecessor is not None:
                last = epoch.predecessor_last.get(at.stream, 0)
                before = Predecessor(epoch=epoch.predecessor, last=last, reason=epoch.reason)
            account.feed(epoch.id, at.stream, at.first, at.last, [row.seq for row in rows],
                         [(gap.first, gap.last) for gap in gaps], before)  # fmt: skip
            for row in rows:
                assert seen.setdefault((epoch.id, at.stream, row.seq), row.body) == row.body


def test_a_backup_of_what_a_killed_daemon_left_holds_everything(
    patient: Patient, fresh: Patient, tmp_path: Path
) -> None:
    with written(patient) as last:
        wait_until(lambda: last() > 100, 30)
        committed = last()
    assert list((patient.state / "buffer").glob("*-wal"))
    restore(save(patient, tmp_path / "stick"), fresh.path)
    (items,) = read_everything(fresh.state / "buffer").values()
    assert len(rows_of(items)) >= committed


# The rest of the state


def test_models_keys_cursors_and_configuration_travel_with_the_results(tmp_path: Path) -> None:
    old = Patient(tmp_path / "old")
    (old.path.parent / "broker.password").write_text("s3cret")
    (tmp_path / "elsewhere.pem").write_text("a certificate")
    old.path.write_text(
        old.path.read_text()
        .replace(str(old.state), "state")
        .replace('[sync]\nbroker = "mqtt://localhost"', '[sync]\nbroker = "mqtts://localhost"\nusername = "u"\n'
                 f'password_file = "broker.password"\nca = "{tmp_path / "elsewhere.pem"}"')
    )  # fmt: skip
    models = ModelStore(old.state / "models", Trust(old.state / "trust", (), allow_unsigned=True))
    models.open()
    name, slot = models.install(packed(tmp_path, None))
    models.begin_trial(name, running=False)
    models.prove(name, Proof(digest=slot.digest, engine="onnxruntime", engine_version="1", device="test"))
    models.commit(name)
    models.close()
    (old.state / "trust").mkdir()
    (old.state / "trust/release.pem").write_text("a key")
    (old.state / "sync").mkdir()
    (old.state / "sync/ack.json").write_text('{"format":1,"acks":[]}')
    (tmp_path / "stick").mkdir()
    taken = take(config.load(old.path), old.path, tmp_path / "stick", 7)
    assert taken.manifest.left_out == (str(tmp_path / "elsewhere.pem"),)
    assert taken.path.stat().st_mode & 0o777 == 0o600, "it holds the device's secrets"
    target = tmp_path / "new/etc/edged.toml"
    target.parent.mkdir(parents=True)
    done = restore(taken.path, target)
    state = target.parent / "state"
    assert done.state == state
    assert target.read_bytes() == old.path.read_bytes()
    assert (target.parent / "broker.password").read_text() == "s3cret"
    assert (state / "trust/release.pem").read_text() == "a key"
    assert (state / "sync/ack.json").exists()
    again = ModelStore(state / "models", Trust(state / "trust", (), allow_unsigned=True))
    again.open()
    current = again.current(name)
    again.close()
    assert current is not None
    assert (current.digest, current.state) == (slot.digest, State.ACTIVE)
    again.verify(name, slot.digest)
    assert not list(state.glob(".edged-*"))
    assert not list(old.state.glob(".edged-*"))


def test_what_is_there_stays_as_it_is(patient: Patient, fresh: Patient, tmp_path: Path) -> None:
    (patient.state / "trust").mkdir()
    (patient.state / "trust/a.pem").write_text("old")
    commit(store_settings(patient.state), entries(0, 5))
    made = save(patient, tmp_path / "stick")
    (fresh.state / "trust").mkdir()
    (fresh.state / "trust/a.pem").write_text("new")
    commit(store_settings(fresh.state))  # a daemon that ran once, and saw no frame
    before = fresh.path.read_bytes()
    assert fresh.path in restore(made, fresh.path).kept
    assert (fresh.state / "trust/a.pem").read_text() == "new"
    assert fresh.path.read_bytes() == before
    assert len(bodies(fresh.state / "buffer")) == 5


# Retention, and what goes wrong


def test_the_newest_are_kept_whatever_the_clock_says(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stick"
    folder.mkdir()
    strangers = [folder / "edged-edge-2-000001-20200101T000000Z.tar.gz", folder / "edged-notes.txt"]
    for stranger in strangers:
        stranger.write_text("")
    for year in (2031, 2030, 1970, 2029):
        monkeypatch.setattr(time, "gmtime", lambda year=year: time.struct_time((year, 1, 1, 0, 0, 0, 0, 1, 0)))
        save(patient, folder, keep=2)
    assert [path.name.rsplit("-", 2)[1:] for path in backups(folder, "edge-1")] == [
        ["000003", "19700101T000000Z.tar.gz"],
        ["000004", "20290101T000000Z.tar.gz"],
    ]
    assert all(stranger.exists() for stranger in strangers)


def test_a_backup_that_fails_leaves_the_older_ones_and_nothing_of_itself(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stick"
    first = save(patient, folder, keep=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive.Writer, "close", full)
    with pytest.raises(BackupError, match="No space left"):
        save(patient, folder, keep=1)
    assert list(folder.iterdir()) == [first]
    assert not list(patient.state.glob(".edged-*"))
    with pytest.raises(BackupError, match="cannot be written"):
        take(config.load(patient.path), patient.path, tmp_path / "not mounted", 1)


def test_what_a_killed_backup_left_is_cleared_by_the_next_and_a_living_one_is_left_alone(
    patient: Patient, tmp_path: Path
) -> None:
    left = patient.state / ".edged-backup-abc"
    left.mkdir()
    (left / "segment-00000001.db").write_text("x")
    with archive.scratch(patient.state, ".edged-other-") as living:
        save(patient, tmp_path / "stick")
        assert living.is_dir()
    assert not left.exists()


@pytest.mark.slow
def test_a_running_device_is_saved_and_restored_by_its_commands(tmp_path: Path) -> None:
    def edged(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edged", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    (tmp_path / "stick").mkdir()
    with Device(tmp_path / "one", 1) as device:
        device.start("daemon")
        device.wait_ready()
        saved = edged("backup", str(tmp_path / "stick"), "--config", str(device.config))
        assert saved.returncode == 0, saved.stderr
        (file,) = (tmp_path / "stick").iterdir()
        refused = edged("restore", str(file), "--config", str(device.config))
        assert refused.returncode == 1
        assert "a daemon holds" in refused.stderr
    with Device(tmp_path / "two", 1) as other:
        done = edged("restore", str(file), "--config", str(other.config))
        assert done.returncode == 0, done.stderr
        assert "begin a new epoch" in done.stdout
        other.start("daemon")
        other.wait_ready()
