"""Every check of ``edged doctor`` finds the fault that was planted, and nothing without it."""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from edged import __version__
from edged.bundle.store import files
from edged.bundle.store.record import Record, Slot
from edged.bundle.store.states import State
from edged.check import Who
from edged.devices import udev
from edged.doctor import hardware, link, models, pressure, service
from edged.doctor.cli import conclude
from edged.doctor.findings import (
    DOES_NOT_RUN,
    MISCONFIGURED,
    WORKS,
    WORKS_IN_PART,
    Verdict,
    exit_code,
    failed,
    ok,
    show,
    warning,
)
from edged.doctor.machine import Answer, Machine
from edged.errors import ConfigError
from edged.status import DeviceFacts, EngineFacts, LinkFacts, StreamLinkFacts
from tests.support.doctor import Patient, ready, said, verdicts

OK, WARNING, FAILED, NOT_APPLICABLE = Verdict.OK, Verdict.WARNING, Verdict.FAILED, Verdict.NOT_APPLICABLE


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    return Patient(tmp_path)


def test_the_exit_code_says_whether_it_works() -> None:
    good, bad, so_so = ok("a", "fine"), failed("b", "broken", "mend it"), warning("c", "worn", "replace it")
    assert exit_code([good, so_so], configured=True, answers=True) == WORKS
    assert exit_code([good, bad], configured=True, answers=True) == WORKS_IN_PART
    assert exit_code([good], configured=True, answers=False) == DOES_NOT_RUN
    assert exit_code([bad], configured=False, answers=False) == MISCONFIGURED


def test_what_a_device_calls_itself_cannot_move_the_cursor() -> None:
    lines = list(show([warning("devices", "stick\x1b[2J\nwith a bad name", "unplug\rit")]))
    assert all(line.isprintable() for line in lines)
    assert "hint: unplug it" in lines[1]


# The services


@pytest.mark.parametrize(
    ("state", "verdict"),
    [("ready", OK), ("degraded", WARNING), ("starting", WARNING), ("failed", FAILED), ("stopping", FAILED)],
)
def test_the_daemon_is_as_well_as_it_says(patient: Patient, state: str, verdict: Verdict) -> None:
    case = patient.case(ready(state=state, version=__version__, reasons=("source spool: gone",)))
    assert verdicts(service.daemon, case) == {verdict, OK}


def test_a_daemon_that_is_down_and_one_that_hangs_are_told_apart(patient: Patient) -> None:
    down = patient.case(ready(pid=4711), silence="edged does not answer")
    assert down.pid is None
    patient.plant("proc/4711/cmdline", "/opt/edged/bin/python\0-m\0edged\0run\0")
    hangs = patient.case(ready(pid=4711), silence="edged does not answer")
    assert hangs.pid == 4711
    assert verdicts(service.daemon, down) == verdicts(service.daemon, hangs) == {FAILED}
    assert "process 4711 is there" in said(service.daemon, hangs)
    assert "process" not in said(service.daemon, down)


def test_safe_mode_is_no_running_daemon(patient: Patient) -> None:
    told = ready(state="safe-mode", pid=4711, reasons=("edged.toml: device.id is missing",))
    for case in (patient.case(told), patient.case(told, silence="no answer")):
        patient.plant("proc/4711/cmdline", "python\0-m\0edged.safe_mode\0")
        assert verdicts(service.daemon, case) == {FAILED}
        assert "device.id is missing" in said(service.daemon, case)
        assert conclude(case, []).code == DOES_NOT_RUN
        assert not case.is_written
    patient.plant("proc/4711/cmdline", "another\0")
    assert "safe mode" not in said(service.daemon, patient.case(told, silence="no answer"))


def test_an_upgrade_without_a_restart_is_noticed(patient: Patient) -> None:
    assert verdicts(service.daemon, patient.case(ready(version=__version__))) == {OK}
    assert verdicts(service.daemon, patient.case(ready(version="0.0.9"))) == {OK, WARNING}


def unit(name: str = "edged.service", **changes: str) -> str:
    facts = {"Id": name, "LoadState": "loaded", "ActiveState": "active", "SubState": "running",
             "UnitFileState": "enabled", "NRestarts": "0", "Result": "success", **changes}  # fmt: skip
    return "\n".join(f"{key}={value}" for key, value in facts.items())


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, OK),
        ({"UnitFileState": "disabled"}, WARNING),
        ({"NRestarts": "3"}, WARNING),
        ({"ActiveState": "failed", "Result": "watchdog"}, FAILED),
        ({"ActiveState": "inactive", "SubState": "dead"}, FAILED),
        ({"LoadState": "not-found", "ActiveState": "inactive"}, FAILED),
        ({"LoadState": "masked", "ActiveState": "inactive"}, FAILED),
    ],
)
def test_each_unit_must_be_there_active_and_enabled(
    patient: Patient, changes: dict[str, str], verdict: Verdict
) -> None:
    (patient.root / "run/systemd/system").mkdir(parents=True)
    patient.words["systemctl"] = Answer(0, f"{unit(**changes)}\n\n{unit('edged.socket')}\n")
    assert verdicts(service.units, patient.case(ready())) == {verdict, OK}


@pytest.mark.parametrize(("state", "verdict"), [("loaded", OK), ("not-found", WARNING)])
def test_a_worker_without_its_socket_is_told(patient: Patient, state: str, verdict: Verdict) -> None:
    (patient.root / "run/systemd/system").mkdir(parents=True)
    asked: list[str] = []

    def answer(command: Sequence[str]) -> Answer:
        asked.extend(command)
        return Answer(0, f"{unit()}\n\n{unit('edged-worker-onnxruntime.socket', LoadState=state)}\n")

    case = replace(patient.case(ready()), machine=Machine(patient.root, answer))
    assert verdicts(service.units, case) == {OK, verdict}
    assert "edged-worker-onnxruntime.socket" in asked


def test_a_systemd_that_hangs_is_a_finding_and_none_is_not_applicable(patient: Patient) -> None:
    assert verdicts(service.units, patient.case(ready())) == {NOT_APPLICABLE}
    (patient.root / "run/systemd/system").mkdir(parents=True)
    assert verdicts(service.units, patient.case(ready())) == {WARNING}


def test_a_state_that_we_may_not_read_is_said_once(patient: Patient) -> None:
    patient.plant("proc/4711/cmdline", "edged\0run\0")
    case = patient.case(ready(pid=4711))
    vars(case)["sees_all"] = True
    assert verdicts(service.users, case) == {OK}
    vars(case)["sees_all"] = False
    assert verdicts(service.users, case) == {WARNING}
    assert "may not ask" not in said(service.daemon, case), "it answered"
    silent = patient.case(silence="there is no address")
    assert "may not ask" not in said(service.daemon, silent)
    vars(silent)["sees_all"] = False
    assert "may not ask" in said(service.daemon, silent)


def test_a_directory_that_the_daemons_user_may_not_write_is_found(patient: Patient) -> None:
    case = patient.case(ready())
    vars(case)["who"] = Who(os.geteuid(), frozenset())
    assert verdicts(service.permissions, case) == {OK}
    (patient.state.parent / "spool").rmdir()
    (patient.state.parent / "spool").write_text("a file")
    assert verdicts(service.permissions, case) == {FAILED}
    assert "spool" in said(service.permissions, case)


def test_the_rights_of_another_user_are_those_of_owner_group_and_mode() -> None:
    with tempfile.TemporaryDirectory() as folder:  # not below pytest's own, which is for its owner alone
        above, there = Path(folder), Path(folder) / "there"
        there.mkdir()
        above.chmod(0o755)
        there.chmod(0o770)
        owner, group = there.stat().st_uid, there.stat().st_gid
        stranger = Who(owner + 4242, frozenset({group + 4242}))
        member = Who(owner + 4242, frozenset({group}))
        assert member.may(there, os.W_OK | os.X_OK)
        assert not stranger.may(there, os.W_OK)
        there.chmod(0o707)
        assert not member.may(there, os.W_OK)
        assert stranger.may(there, os.W_OK)
        above.chmod(0o700)
        assert not stranger.may(there, os.W_OK), "a directory above shuts it out"


def test_lost_workers_are_told(patient: Patient) -> None:
    engine = EngineFacts(name="onnxruntime", model="digits@1", state="ready")
    assert verdicts(service.workers, patient.case(ready(engines=(engine,)))) == {OK}
    restarted = msgspec.structs.replace(engine, restarts=2, reason="killed by SIGKILL")
    assert verdicts(service.workers, patient.case(ready(engines=(restarted,)))) == {WARNING}


# What is plugged in


def test_rules_that_are_missing_and_a_table_that_is_not_built_are_found(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verdicts(hardware.rules, patient.case(ready())) == {NOT_APPLICABLE}
    (patient.root / "run/udev").mkdir(parents=True)
    monkeypatch.setattr(udev, "RULE_FOLDERS", (str(patient.root),))
    assert verdicts(hardware.rules, patient.case(ready())) == {FAILED}
    patient.plant(udev.RULES, "")
    patient.words["systemd-hwdb"] = Answer(0, "")
    assert verdicts(hardware.rules, patient.case(ready())) == {FAILED}
    patient.words["systemd-hwdb"] = Answer(0, "EDGED_KIND=accelerator\n")
    assert verdicts(hardware.rules, patient.case(ready())) == {OK}


def test_devices_are_as_the_daemon_says(patient: Patient) -> None:
    stick = DeviceFacts(name="Coral", kind="accelerator", state="ready", link="coral-1-2")
    assert verdicts(hardware.devices, patient.case(ready())) == {NOT_APPLICABLE}
    assert verdicts(hardware.devices, patient.case(ready(devices=(stick,)))) == {OK}
    shut = msgspec.structs.replace(stick, state="unusable", reason="permission denied")
    assert verdicts(hardware.devices, patient.case(ready(devices=(shut,)))) == {WARNING}
    assert verdicts(hardware.devices, patient.case(ready(discovery="off: no pyudev"))) == {WARNING}


@pytest.mark.parametrize("answers", [True, False])
def test_an_engine_whose_device_is_gone_is_found_with_and_without_a_daemon(tmp_path: Path, answers: bool) -> None:
    patient = Patient(tmp_path, tables='[engines.onnxruntime]\ndevice = "coral"\n')
    engine = EngineFacts(name="onnxruntime", model="digits@1", state="", placement="absent", reason="no device coral")
    status = ready(engines=(engine,)) if answers else None
    assert FAILED in verdicts(hardware.devices, patient.case(status))
    assert "engine onnxruntime" in said(hardware.devices, patient.case(status))
    here = msgspec.structs.replace(engine, state="ready", placement="serving")
    assert FAILED not in verdicts(hardware.devices, patient.case(ready(engines=(here,))))


# How hard pressed it is


def test_heat_and_want_of_memory_are_found(patient: Patient) -> None:
    assert verdicts(pressure.pressure, patient.case(ready())) == {NOT_APPLICABLE}
    zone = "sys/class/thermal/thermal_zone0"
    patient.plant(f"{zone}/type", "cpu-thermal")
    for millidegrees, verdict in ((52_000, OK), (88_000, WARNING), (97_000, FAILED)):
        patient.plant(f"{zone}/temp", str(millidegrees))
        assert verdicts(pressure.pressure, patient.case(ready())) == {verdict}
    patient.plant(f"{zone}/temp", "52000")
    patient.plant("proc/meminfo", "MemTotal:  1000000 kB\nMemAvailable:  700000 kB\n")
    assert verdicts(pressure.pressure, patient.case(ready())) == {OK}
    patient.plant("proc/meminfo", "MemTotal:  1000000 kB\nMemAvailable:  20000 kB\n")
    assert verdicts(pressure.pressure, patient.case(ready())) == {FAILED}


def test_a_weak_supply_is_found(patient: Patient) -> None:
    bits = "sys/devices/platform/soc/soc:firmware/get_throttled"
    patient.plant("proc/meminfo", "MemTotal:  1000000 kB\nMemAvailable:  700000 kB\n")
    patient.plant(bits, "0")
    assert verdicts(pressure.pressure, patient.case(ready())) == {OK}
    patient.plant(bits, "1")
    assert verdicts(pressure.pressure, patient.case(ready())) == {WARNING}


# The link


def plant_link(patient: Patient, **changes: object) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat()
    facts = {"state": "connected", "broker": "mqtt://b", "wall_time": now, **changes}
    (patient.state / "sync").mkdir(exist_ok=True)
    (patient.state / "sync" / "status.json").write_bytes(msgspec.json.encode(msgspec.convert(facts, LinkFacts)))


def test_the_link_is_judged_by_what_edged_sync_last_said(patient: Patient) -> None:
    assert verdicts(link.link, patient.case(ready())) == {FAILED}, "it never ran"
    plant_link(patient)
    assert verdicts(link.link, patient.case(ready())) == {OK}
    plant_link(patient, state="waiting", reason="no route to host")
    assert verdicts(link.link, patient.case(ready())) == {WARNING}, "offline is no fault of the device"
    plant_link(patient, wall_time="2026-01-01T00:00:00Z")
    assert verdicts(link.link, patient.case(ready())) == {FAILED}, "it died"
    held = StreamLinkFacts(epoch="e", stream="digits", acked_seq=0, published_seq=0, stored_seq=9, state="held")
    plant_link(patient, streams=(held,))
    assert verdicts(link.link, patient.case(ready())) == {WARNING}


def test_without_sync_nothing_is_asked_of_the_link(tmp_path: Path) -> None:
    case = Patient(tmp_path, sync=False).case(ready())
    assert verdicts(link.link, case) == verdicts(link.configured, case) == {NOT_APPLICABLE}


def test_edged_sync_judges_its_own_settings(patient: Patient) -> None:
    patient.words |= {name: Answer(0, "delivers") for name in ("edged-sync", "python", "python3")}
    assert verdicts(link.configured, patient.case(ready())) == {OK}
    patient.words |= {name: Answer(78, "sync.broker: bad") for name in ("edged-sync", "python", "python3")}
    assert verdicts(link.configured, patient.case(ready())) == {FAILED}


# The models


def test_a_model_that_a_pipeline_names_must_be_installed(tmp_path: Path) -> None:
    patient = Patient(tmp_path, pipeline='model = "digits"\n')
    assert verdicts(models.slots, patient.case(ready())) == {FAILED}
    assert verdicts(models.slots, Patient(tmp_path / "other").case(ready())) == {NOT_APPLICABLE}


def plant_record(patient: Patient, *slots: Slot) -> None:
    folder = patient.state / "models"
    folder.mkdir(exist_ok=True)
    files.write_record(folder, Record(name="digits", floor=1, slots=slots))


def test_a_release_that_was_taken_back_and_a_trial_that_never_ends_are_told(tmp_path: Path) -> None:
    patient = Patient(tmp_path, pipeline='model = "digits"\n')
    active = Slot(digest="a" * 64, version="1.0", release_counter=1, state=State.ACTIVE)
    plant_record(patient, active)
    assert verdicts(models.slots, patient.case(ready())) == {OK}
    bad = Slot(digest="b" * 64, version="1.1", release_counter=2, state=State.FAILED, reason="golden frames differ")
    plant_record(patient, active, bad)
    assert verdicts(models.slots, patient.case(ready())) == {WARNING}
    assert "golden frames differ" in said(models.slots, patient.case(ready()))
    trial = Slot(digest="c" * 64, version="1.2", release_counter=3, state=State.TRIAL, trial_starts=1)
    plant_record(patient, active, trial)
    assert verdicts(models.slots, patient.case(ready())) == {OK}
    plant_record(patient, active, msgspec.structs.replace(trial, trial_starts=2))
    assert verdicts(models.slots, patient.case(ready())) == {WARNING}


def test_a_record_that_cannot_be_read_is_found(tmp_path: Path) -> None:
    patient = Patient(tmp_path, pipeline='model = "digits"\n')
    plant_record(patient, Slot(digest="a" * 64, version="1.0", release_counter=1, state=State.ACTIVE))
    (patient.state / "models/digits" / files.STATE).write_text("{")
    assert verdicts(models.slots, patient.case(ready())) == {FAILED}


def test_a_development_setting_left_on_is_told(tmp_path: Path) -> None:
    patient = Patient(tmp_path, tables="[models]\nallow_unsigned = true\n")
    assert WARNING in verdicts(models.slots, patient.case(ready()))


def test_a_configuration_with_mistakes_is_a_case_for_edged_check(patient: Patient) -> None:
    patient.path.write_text("[device]\n")
    with pytest.raises(ConfigError):
        patient.case(ready())
