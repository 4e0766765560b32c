"""``edged doctor`` finds a medium that is full, keeps nothing, or is worn, and says nothing without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edged.doctor import disk
from edged.doctor.findings import Verdict
from edged.doctor.machine import Answer
from tests.support.doctor import Patient, ready, said, verdicts

OK, WARNING, FAILED, NOT_APPLICABLE = Verdict.OK, Verdict.WARNING, Verdict.FAILED, Verdict.NOT_APPLICABLE
MMC = "sys/devices/mmc/block/mmcblk0"


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    return Patient(tmp_path)


def test_a_disk_that_fills_before_the_cap_is_reached_is_found(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def room(free_mib: int) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 1 << 20, free_mib << 8, free_mib << 8, 1 << 20, 1 << 19, 1 << 19, 0, 255))

    for free_mib, verdict in ((4096, OK), (100, WARNING), (10, FAILED)):
        monkeypatch.setattr(os, "statvfs", lambda _, free_mib=free_mib: room(free_mib))
        assert verdicts(disk.space, patient.case(ready())) == {verdict}


@pytest.mark.parametrize(
    ("kind", "options", "verdict"),
    [
        ("ext4", "rw,noatime", OK),
        ("f2fs", "rw", OK),
        ("ext4", "ro,relatime", FAILED),
        ("tmpfs", "rw", FAILED),
        ("vfat", "rw", FAILED),
        ("nfs4", "rw", WARNING),
        ("ext4", "rw,nobarrier", WARNING),
    ],
)
def test_a_file_system_that_keeps_nothing_is_found(patient: Patient, kind: str, options: str, verdict: Verdict) -> None:
    patient.mounts(kind, options)
    assert verdicts(disk.mount, patient.case(ready())) == {verdict}


def test_the_nearest_mount_counts(patient: Patient) -> None:
    card = "22 1 8:1 / / rw - ext4 /dev/mmcblk0p2 rw\n"
    patient.plant("proc/self/mountinfo", card + f"23 22 0:9 / {patient.state} rw - tmpfs none rw\n")
    assert verdicts(disk.mount, patient.case(ready())) == {FAILED}


def plant_card(patient: Patient, **files: str) -> None:
    """A disk with one partition that holds the whole machine."""
    patient.mounts("ext4")
    stat = "  100 0 800 1 200 0 4194304 1 0 1 1"
    for name, text in {"stat": stat, **files}.items():
        patient.plant(f"{MMC}/{name.replace('__', '/')}", text)
    patient.plant(f"{MMC}/mmcblk0p2/partition", "2")
    (patient.root / "sys/dev/block").mkdir(parents=True)
    (patient.root / "sys/dev/block/8:1").symlink_to(patient.root / MMC / "mmcblk0p2")


@pytest.mark.parametrize(
    ("life", "reserve", "verdict"),
    [
        ("0x01 0x02", "0x01", OK),
        ("0x02 0x09", "0x01", WARNING),
        ("0x01 0x01", "0x02", WARNING),
        ("0x0b 0x01", "0x01", FAILED),
        ("0x01 0x01", "0x03", FAILED),
        ("0x00 0x00", "0x00", OK),
    ],
)
def test_a_worn_emmc_is_found(patient: Patient, life: str, reserve: str, verdict: Verdict) -> None:
    plant_card(patient, device__life_time=life, device__pre_eol_info=reserve)
    patient.plant("sys/fs/ext4/mmcblk0p2/lifetime_write_kbytes", "3145728")
    assert verdicts(disk.wear, patient.case(ready())) == {verdict}
    assert "3.0 GiB written in the file system's life, 2.0 GiB since the boot" in said(disk.wear, patient.case(ready()))


def test_a_plain_sd_card_does_not_tell_its_wear_but_its_file_system_tells_its_errors(patient: Patient) -> None:
    plant_card(patient)
    assert verdicts(disk.wear, patient.case(ready())) == {NOT_APPLICABLE}
    patient.plant("sys/fs/ext4/mmcblk0p2/errors_count", "3")
    assert verdicts(disk.wear, patient.case(ready())) == {FAILED}


@pytest.mark.parametrize(
    ("used", "passed", "verdict"), [(3, "true", OK), (85, "true", WARNING), (101, "true", FAILED), (3, "false", FAILED)]
)
def test_a_worn_nvme_is_found(patient: Patient, used: int, passed: str, verdict: Verdict) -> None:
    patient.mounts("ext4", device="259:1")
    patient.plant("sys/devices/nvme0n1/stat", "1 0 8 1 2 0 16 1 0 1 1")
    (patient.root / "sys/dev/block").mkdir(parents=True)
    (patient.root / "sys/dev/block/259:1").symlink_to(patient.root / "sys/devices/nvme0n1")
    assert verdicts(disk.wear, patient.case(ready())) == {NOT_APPLICABLE}
    health = f'"nvme_smart_health_information_log": {{"percentage_used": {used}, "critical_warning": 0}}'
    patient.words["smartctl"] = Answer(64, f'{{"smart_status": {{"passed": {passed}}}, {health}}}')
    assert verdicts(disk.wear, patient.case(ready())) == {verdict}
