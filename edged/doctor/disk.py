"""The medium of the device's state: its room, its mount, its wear. A worn card is the most frequent end of a device.

Figures: mmc-dev-attrs (life_time, pre_eol_info of eMMC 5.0; a plain SD card has neither), ext4's and f2fs's own count
of kilobytes written in their lifetime, the block layer's count since the boot, and smartctl(8) where it is installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edged.doctor.case import Case
from edged.doctor.findings import Finding, failed, not_applicable, ok, warning
from edged.doctor.machine import Mount, number_of, text_of

SECTOR_BYTES = 512  # /sys/block/*/stat counts in these whatever the disk's own are
RESERVE_BYTES = 64 << 20  # left over when the buffer is at its cap: models, logs, the journal
LOST_AT_BOOT = ("tmpfs", "ramfs")
NO_OWNERS = ("vfat", "exfat", "msdos")
NO_LOCKS = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs")
WORN, WORN_OUT = 9, 11  # of life_time: 80 to 90 % used; more than its estimated life
SMART_WORN, SMART_WORN_OUT = 80, 100  # per cent used
PRE_EOL = {2: "80 % of its reserve is used", 3: "90 % of its reserve is used"}
HINT_WORN = "back up (edged backup), and replace the medium; [buffer] and the journal write the most"


class _Smart(msgspec.Struct):
    passed: bool = True


class _Nvme(msgspec.Struct):
    percentage_used: int = 0
    critical_warning: int = 0
    media_errors: int = 0


class _SmartReport(msgspec.Struct):
    """What we need of ``smartctl --json``."""

    smart_status: _Smart | None = None
    nvme_smart_health_information_log: _Nvme | None = None


def space(case: Case) -> Iterator[Finding]:
    """Whether the buffer can grow to its cap, and whether files can still be made."""
    state = case.config.device.state_dir
    there = next(parent for parent in (state, *state.parents) if parent.exists())
    room = os.statvfs(there)
    free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    cap, held = case.config.buffer.cap_mb << 20, case.buffer_bytes
    seen = f"{_mib(free)} of {_mib(total)} MiB free; the buffer has {_mib(held)} of {_mib(cap)} MiB"
    if free < RESERVE_BYTES:
        yield failed("disk space", seen, f"free some: du -xsh {there}/* /var/log")
    elif cap > held + free - RESERVE_BYTES:
        hint = f"lower buffer.cap_mb to {max(8, (held + free - RESERVE_BYTES) * 9 // 10 >> 20)}, or free some space"
        yield warning("disk space", f"{seen}; the disk is full before the cap is reached", hint)
    elif room.f_files and room.f_favail < 1000:
        yield warning(
            "disk space", f"{room.f_favail} files can still be made", f"find what fills {there} with small files"
        )
    else:
        yield ok("disk space", seen)


def mount(case: Case) -> Iterator[Finding]:
    """Whether the file system keeps what is written to it."""
    found = case.machine.mount_of(case.config.device.state_dir)
    if found is None:
        yield not_applicable("mount", "the kernel does not say what is mounted")
        return
    seen = f"{found.kind} on {found.point} from {found.source}"
    if "ro" in found.options:
        hint = "dmesg says why: after an error the kernel mounts it read-only; fsck it, or replace the medium"
        yield failed("mount", f"{seen} is read-only", hint)
    elif found.kind in LOST_AT_BOOT:
        yield failed("mount", f"{seen}: every result is lost at the next boot", "set device.state_dir to a disk")
    elif found.kind in NO_OWNERS:
        yield failed("mount", f"{seen} has neither owners nor modes", "use ext4 for device.state_dir")
    elif found.kind in NO_LOCKS:
        yield warning("mount", f"{seen}: locks and fsync of a network are not to be relied on", "use a local disk")
    elif found.options & {"nobarrier", "barrier=0", "data=writeback"}:
        yield warning("mount", f"{seen} is mounted without barriers: a power cut may take stored results",
                      "mount it with the defaults")  # fmt: skip
    else:
        yield ok("mount", seen)


def wear(case: Case) -> Iterator[Finding]:
    """How much of its life the medium has left, and what was written to it."""
    found = case.machine.mount_of(case.config.device.state_dir)
    disk = case.machine.disk_of(found) if found is not None else None
    if found is None or disk is None:
        yield not_applicable("wear", "the state lies on no disk that can be told")
        return
    written = f"{disk.name}: {_written(case, found, disk)}"
    errors = number_of(case.machine.sys / "fs/ext4" / Path(found.source).name / "errors_count")
    if errors:
        yield failed("wear", f"{written}; the file system counts {errors} errors", f"fsck it; {HINT_WORN}")
    looked = [*_emmc(disk, written), *_smart(case, disk, written)]
    yield from looked
    if not looked and not errors:
        what = "an SD card does not tell its wear" if _is_card(disk) else "its wear cannot be read"
        hint = " (smartmontools would)" if not _is_card(disk) else ""
        yield not_applicable("wear", f"{written}; {what}{hint}")


def _emmc(disk: Path, written: str) -> Iterator[Finding]:
    """eMMC: two estimates in steps of 10 %, for its two kinds of memory, and how much of the reserve is used."""
    lives = [int(word, 16) for word in text_of(disk / "device/life_time").split() if word.startswith("0x")]
    if not lives:
        return
    reserve = PRE_EOL.get(number_of(disk / "device/pre_eol_info") or 0, "")
    steps = max(lives)
    used = f"about {min(steps, 10) * 10} % of its life is used" if steps else "it does not tell how much is used"
    seen = f"{written}; {used}" + (f"; {reserve}" if reserve else "")
    if steps >= WORN_OUT or reserve == PRE_EOL[3]:
        yield failed("wear", seen, HINT_WORN)
    elif steps >= WORN or reserve:
        yield warning("wear", seen, HINT_WORN)
    else:
        yield ok("wear", seen)


def _smart(case: Case, disk: Path, written: str) -> Iterator[Finding]:
    """NVMe and SATA, by smartctl, which needs root; its exit code has a bit for every bad sign, so it is not asked."""
    if _is_card(disk):
        return
    answer = case.machine.ask(["smartctl", "--json", "-H", "-A", f"/dev/{disk.name}"])
    try:
        report = msgspec.json.decode(answer.said, type=_SmartReport)
    except msgspec.MsgspecError:
        return
    health, nvme = report.smart_status, report.nvme_smart_health_information_log or _Nvme()
    if health is None:
        return
    seen = f"{written}; {nvme.percentage_used} % of its life is used, {nvme.media_errors} errors of the medium"
    if not health.passed or nvme.critical_warning or nvme.percentage_used >= SMART_WORN_OUT:
        yield failed("wear", seen, HINT_WORN)
    elif nvme.percentage_used >= SMART_WORN or nvme.media_errors:
        yield warning("wear", seen, HINT_WORN)
    else:
        yield ok("wear", seen)


def _written(case: Case, found: Mount, disk: Path) -> str:
    """What was written: in the file system's life, and to the disk since the boot."""
    counts = [
        case.machine.sys / "fs" / kind / Path(found.source).name / "lifetime_write_kbytes" for kind in ("ext4", "f2fs")
    ]
    lifetime = next((kib for path in counts if (kib := number_of(path)) is not None), None)
    fields = text_of(disk / "stat").split()
    since = int(fields[6]) * SECTOR_BYTES if len(fields) > 6 and fields[6].isdecimal() else 0
    told = [f"{lifetime / (1 << 20):.1f} GiB written in the file system's life"] if lifetime is not None else []
    return ", ".join([*told, f"{since / (1 << 30):.1f} GiB since the boot"])


def _is_card(disk: Path) -> bool:
    return disk.name.startswith("mmcblk")


def _mib(size: int) -> int:
    return size >> 20
