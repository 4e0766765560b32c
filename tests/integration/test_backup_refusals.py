"""A backup that is damaged, foreign or evil is refused by name, and nothing of the device has changed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import msgspec
import pytest

from edged.backup import archive
from edged.backup.archive import MANIFEST, BackupError, Manifest
from edged.backup.restore import restore
from tests.support.backup import fingerprint, save
from tests.support.buffer import commit, entries, store_settings
from tests.support.doctor import Patient

HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
    "print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    return Patient(tmp_path / "old", sync=False)


@pytest.fixture
def fresh(tmp_path: Path) -> Patient:
    """An empty device that is to take its place."""
    return Patient(tmp_path / "new", sync=False)


def forged(path: Path, *members: tuple[tarfile.TarInfo, bytes], manifest: bytes | None = None) -> Path:
    """An archive with whatever members; the manifest tells of all of them."""
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
        told = [archive.Member(info.name, len(data), hashlib.sha256(data).hexdigest(), 0o660) for info, data in members]
        data = manifest if manifest is not None else msgspec.json.encode(
            Manifest(format=1, device="edge-1", version="0", made="", members=tuple(told)))  # fmt: skip
        info = tarfile.TarInfo(MANIFEST)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return path


def link(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("state/buffer/ledger.json")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


EVIL: dict[str, tuple[tarfile.TarInfo, str]] = {
    "traversal": (tarfile.TarInfo("state/../../evil"), "unsafe"),
    "hidden traversal": (tarfile.TarInfo("state/buffer/.."), "unsafe"),
    "an absolute path": (tarfile.TarInfo("/etc/evil"), "unsafe"),
    "another top": (tarfile.TarInfo("etc/evil"), "unsafe"),
    "a backslash": (tarfile.TarInfo("state\\..\\evil"), "unsafe"),
    "a symbolic link": (link(tarfile.SYMTYPE), "no plain file"),
    "a hard link": (link(tarfile.LNKTYPE), "no plain file"),
    "a device": (link(tarfile.CHRTYPE), "no plain file"),
    "a folder": (link(tarfile.DIRTYPE), "no plain file"),
    "a pipe": (link(tarfile.FIFOTYPE), "no plain file"),
    "a sparse file": (link(tarfile.GNUTYPE_SPARSE), "no plain file"),
}


@pytest.mark.parametrize("what", EVIL)
def test_an_archive_with_an_unsafe_member_is_refused(fresh: Patient, tmp_path: Path, what: str) -> None:
    info, words = EVIL[what]
    before = fingerprint(tmp_path)
    with pytest.raises(BackupError, match=words):
        restore(forged(tmp_path / "evil.tar.gz", (info, b"x" * 600)), fresh.path)
    (tmp_path / "evil.tar.gz").unlink()
    (fresh.state / "lock").unlink(missing_ok=True)
    assert fingerprint(tmp_path) == before


def test_the_forger_of_these_tests_can_make_an_archive_that_is_taken(fresh: Patient, tmp_path: Path) -> None:
    restore(forged(tmp_path / "good.tar.gz", (tarfile.TarInfo("state/trust/a.pem"), b"x")), fresh.path)
    assert (fresh.state / "trust/a.pem").read_bytes() == b"x"


def test_damaged_truncated_and_foreign_files_are_refused_by_name(
    patient: Patient, fresh: Patient, tmp_path: Path
) -> None:
    commit(store_settings(patient.state), entries(0, 200))
    data = save(patient, tmp_path / "stick").read_bytes()
    before = fingerprint(fresh.path.parent)
    plain = gzip.decompress(data)
    at = plain.index(b'"label":"7"')
    foreign = io.BytesIO()
    with tarfile.open(fileobj=foreign, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("readme"))
    two = tarfile.TarInfo("state/trust/a.pem")
    bad = {
        "truncated": (data[: len(data) // 2], "truncated"),
        "cut by one byte": (data[:-1], "truncated"),
        "with a flipped bit": (data[:900] + bytes([data[900] ^ 1]) + data[901:], "no backup of edged"),
        "with another body": (gzip.compress(plain[:at] + b'"label":"8"' + plain[at + 11 :]), "not what was backed up"),
        "of another program": (foreign.getvalue(), "unsafe"),
        "of an empty tar": (gzip.compress(bytes(10240)), "no manifest|no backup"),
        "no archive at all": (b"hello", "no backup of edged"),
        "empty": (b"", "no backup of edged"),
        "from the future": (forged(tmp_path / "f", manifest=json.dumps(
            {"format": 9, "device": "", "version": "", "made": "", "members": []}).encode()).read_bytes(), "format 9"),
        "with a name twice": (forged(tmp_path / "f", (two, b"x"), (two, b"x")).read_bytes(), "twice"),
    }  # fmt: skip
    for what, (content, words) in bad.items():
        (tmp_path / "bad.tar.gz").write_bytes(content)
        with pytest.raises(BackupError, match=words):
            restore(tmp_path / "bad.tar.gz", fresh.path)
        (fresh.state / "lock").unlink(missing_ok=True)
        assert fingerprint(fresh.path.parent) == before, what
    with pytest.raises(BackupError, match="No such file"):
        restore(tmp_path / "nothing.tar.gz", fresh.path)


def test_a_device_that_holds_something_runs_or_is_another_is_left_alone(
    patient: Patient, fresh: Patient, tmp_path: Path
) -> None:
    commit(store_settings(patient.state), entries(0, 5))
    made = save(patient, tmp_path / "stick")
    commit(store_settings(fresh.state), entries(7, 1))
    before = fingerprint(fresh.state / "buffer")
    with pytest.raises(BackupError, match="holds results of digits"):
        restore(made, fresh.path)
    assert fingerprint(fresh.state / "buffer") == before
    with pytest.raises(BackupError, match="this is a backup of edge-1"):
        other = Patient(tmp_path / "other")
        other.path.write_text(other.path.read_text().replace("edge-1", "edge-2"))
        restore(made, other.path)
    busy = Patient(tmp_path / "busy", sync=False)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(busy.state / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(BackupError, match="a daemon holds"):
            restore(made, busy.path)
        assert holder.stdin is not None
        holder.stdin.close()
    restore(made, busy.path)
