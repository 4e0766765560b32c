"""``edged doctor`` on a real buffer and a real daemon: healthy, damaged, killed, hanging; it never writes a thing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest

from edged.buffer import files
from edged.buffer.ledger import read_ledger, write_ledger
from edged.cli import main
from edged.doctor import models, store
from edged.doctor.findings import Verdict
from tests.support.buffer import Tell, commit, entries, fork_writer, store_settings
from tests.support.device import Device, children
from tests.support.doctor import Patient, ready, verdicts

OK, WARNING, FAILED, NOT_APPLICABLE = Verdict.OK, Verdict.WARNING, Verdict.FAILED, Verdict.NOT_APPLICABLE


def fingerprint(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in directory.rglob("*")
    }


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    """A device whose buffer holds some sealed segments."""
    patient = Patient(tmp_path)
    commit(store_settings(patient.state), *(entries(first, 500, size=900) for first in range(0, 2000, 500)))
    return patient


def damage(path: Path, at: int = 8 * 4096) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xa5" * 4096)


@pytest.mark.parametrize("thorough", [True, False])
def test_a_damaged_segment_is_found_and_nothing_is_written(patient: Patient, thorough: bool) -> None:
    case = patient.case(thorough=thorough)
    before = fingerprint(patient.state)
    assert verdicts(store.integrity, case) == {OK}
    assert fingerprint(patient.state) == before
    damage(next(patient.state.glob("buffer/segment-*.db")))
    before = fingerprint(patient.state)
    assert verdicts(store.integrity, case) == {FAILED}
    assert fingerprint(patient.state) == before


def test_a_flipped_bit_in_a_body_is_found_only_by_the_thorough_look(patient: Patient) -> None:
    segment = next(patient.state.glob("buffer/segment-*.db"))
    data = segment.read_bytes()
    at = data.index(b"xxxxxxxx", 20 * 4096)
    segment.write_bytes(data[:at] + b"y" + data[at + 1 :])
    assert verdicts(store.integrity, patient.case(thorough=False)) == {OK}
    assert verdicts(store.integrity, patient.case(thorough=True)) == {FAILED}


async def write_and_stop(writer: object, tell: Tell) -> None:
    await writer.commit(entries(0, 200))  # type: ignore[attr-defined]  # a SegmentStore; the fork gives no more
    tell("written")
    await asyncio.sleep(60)


def test_what_a_killed_daemon_left_is_read_from_a_copy(tmp_path: Path) -> None:
    patient = Patient(tmp_path)
    pid, reading = fork_writer(store_settings(patient.state), write_and_stop)
    assert os.read(reading, 20) == b"written\n"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reading)
    directory = patient.state / "buffer"
    log = next(directory.glob("*-wal"))
    before = fingerprint(directory)
    assert verdicts(store.integrity, patient.case()) == {OK}
    assert fingerprint(directory) == before
    data = bytearray(log.read_bytes())
    data[32 + 24 + 100] ^= 0xFF  # within the first frame's page: SQLite stops there without a word
    log.write_bytes(data)
    assert verdicts(store.integrity, patient.case()) == {FAILED}


def test_losses_and_what_was_put_aside_are_told(patient: Patient) -> None:
    damage(next(patient.state.glob("buffer/segment-*.db")), at=0)
    commit(store_settings(patient.state), entries(9000, 1))
    assert verdicts(store.integrity, patient.case()) == {WARNING}


def test_a_ledger_and_a_cursor_that_cannot_be_read_are_found(patient: Patient) -> None:
    assert verdicts(store.backlog, patient.case()) == {OK}
    (patient.state / "sync").mkdir()
    (patient.state / "sync/ack.json").write_text("{")
    assert verdicts(store.backlog, patient.case()) == {FAILED}
    (patient.state / "buffer" / files.LEDGER).write_text("{")
    assert verdicts(store.integrity, patient.case()) == {FAILED}


def test_a_buffer_that_is_full_or_fails_is_found(patient: Patient) -> None:
    healthy = ready()
    assert verdicts(store.buffer, patient.case(healthy)) == {OK}
    assert verdicts(store.buffer, patient.case()) == {OK}

    def with_buffer(**changes: object) -> set[Verdict]:
        assert healthy.buffer is not None
        buffer = msgspec.structs.replace(healthy.buffer, **changes)
        return verdicts(store.buffer, patient.case(msgspec.structs.replace(healthy, buffer=buffer)))

    assert with_buffer(state="full", reason="no space") == {FAILED}
    assert with_buffer(bytes=60 << 20) == {WARNING}


def test_a_clock_that_went_back_is_found(patient: Patient) -> None:
    assert "behind" not in next(store.clocks(patient.case())).seen
    directory = patient.state / "buffer"
    ledger = read_ledger(directory)
    assert ledger is not None
    write_ledger(directory, msgspec.structs.replace(ledger, floor_wall_ns=time.time_ns() + 3600 * 10**9))
    assert verdicts(store.clocks, patient.case()) == {WARNING}
    assert "behind" in next(store.clocks(patient.case())).seen


def test_each_engine_is_asked_for_a_golden_frame(tmp_path: Path) -> None:
    patient = Patient(tmp_path, pipeline='engines = ["onnxruntime"]\n')
    assert verdicts(models.engines, patient.case(thorough=False)) == {NOT_APPLICABLE}
    assert verdicts(models.engines, patient.case(thorough=True)) == {OK}
    other = Patient(tmp_path / "two", pipeline='engines = ["lava-loihi2", "onnxruntime"]\n')
    assert verdicts(models.engines, other.case(thorough=True)) == {OK, WARNING}
    alone = Patient(tmp_path / "one", pipeline='engines = ["lava-loihi2"]\n')
    assert verdicts(models.engines, alone.case(thorough=True)) == {FAILED}


def test_a_worker_leaves_nothing_in_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    monkeypatch.setenv("HOME", str(tmp_path))
    patient = Patient(tmp_path / "device")
    before = fingerprint(tmp_path)
    assert verdicts(models.engines, patient.case(thorough=True)) == {OK}
    assert fingerprint(tmp_path) == before


def doctor(config: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, str]]:
    code = main(["doctor", "--json", "--config", str(config), *arguments])
    examined = json.loads(capsys.readouterr().out)
    assert examined["code"] == code
    worst: dict[str, str] = {}
    for one in examined["findings"]:
        worst[one["check"]] = "failed" if "failed" in (one["verdict"], worst.get(one["check"])) else one["verdict"]
    return code, worst


def test_doctor_answers_whether_a_whole_device_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Device(tmp_path, 1) as device:
        device.config.write_text(device.config.read_text().partition("[sync]")[0])
        device.start("daemon")
        device.wait_ready()
        code, worst = doctor(device.config, capsys)
        assert (code, worst["daemon"], worst["engines"]) == (0, "ok", "ok"), worst
        pid = device.pid("daemon")
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            code, worst = doctor(device.config, capsys, "--quick")
            assert (code, worst["daemon"], worst["buffer integrity"]) == (3, "failed", "ok"), worst
        finally:
            os.kill(pid, signal.SIGCONT)
        workers = children(pid)
        device.kill("daemon")
        assert workers
        before = fingerprint(device.state / "buffer")
        code, worst = doctor(device.config, capsys, "--quick")
        assert (code, worst["daemon"], worst["buffer integrity"]) == (3, "failed", "ok"), worst
        assert fingerprint(device.state / "buffer") == before


def test_a_wrong_configuration_has_its_own_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "edged.toml").write_text('[device]\nid = "a b"\n')
    code, worst = doctor(tmp_path / "edged.toml", capsys)
    assert (code, worst) == (78, {"configuration": "failed"})
    assert main(["doctor", "--config", str(tmp_path / "edged.toml")]) == 78
    assert "device.id = 'a b'" in capsys.readouterr().out
