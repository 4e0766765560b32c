"""Measures how hard pressed the device is, from /proc and /sys: temperatures, memory, stalls, throttling, power mode.

Reads small files of the kernel and changes nothing. What a device does not have is named as missing and is no error: a
virtual machine has no thermal zones, an old kernel no pressure stall information (PSI). Blocks for as long as a sensor
takes: call it in a thread. Decides nothing (``edged.pressure`` does).

Sources: Documentation/driver-api/thermal/sysfs-api, accounting/psi and admin-guide/cgroup-v2 of the kernel; for
Raspberry Pi the file get_throttled of its firmware driver (linux#2397); for Jetson /var/lib/nvpmodel/status, which
nvpmodel writes (``pmode:0002``), /etc/nvpmodel.conf, and the event counters of the driver soctherm_oc.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from edged.pressure import Kind, Measure, Reading

CPU_CHIPS = ("coretemp", "k10temp", "zenpower")  # hwmon chips of CPUs that may have no thermal zone
ABSURD_C = 60.0  # a trip point below is switched off, or not about the end
MOST_C = 200  # a sensor that says more is broken
CEILINGS = ("critical", "hot")
# Bits of the firmware that say how it is now; the upper half is the past.
PI_FLAGS = {0: "under-voltage", 1: "the clock is capped", 2: "throttled", 3: "its soft temperature limit is reached"}
# soc/soc:firmware; where the node of the SoC is named with its address, both parts are
PI_FILES, PI_ALARM = "soc*/*firmware/get_throttled", ("rpi_volt", "in0_lcrit_alarm")
# oc3 counts peaks of microseconds, which are usual under load; the others are a weak supply.
JETSON_EVENTS = {"oc1": "under-voltage", "oc2": "over-current"}
STALLS = {"memory": Kind.MEMORY_STALL, "cpu": Kind.CPU_STALL, "io": Kind.IO_STALL}
RESCAN_S = 300.0  # sensors hardly ever come or go, and finding them costs more than reading them
UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number of this size


@dataclass(frozen=True, slots=True)
class _Group:
    """A cgroup that limits memory, and the names of its files."""

    usage: Path
    limit: Path
    stat: Path
    inactive: str

    def used_percent(self) -> float | None:
        """Of its limit, without what the kernel can drop at once; None where it has no limit."""
        limit, usage = _number(self.limit), _number(self.usage)
        if limit is None or usage is None or not 0 < limit < UNLIMITED:
            return None
        kept = re.search(rf"^{self.inactive} (\d+)$", _text(self.stat), re.MULTILINE)
        return 100 * max(0.0, usage - (int(kept[1]) if kept else 0)) / limit


@dataclass(frozen=True, slots=True)
class _Sensors:
    """The files of one device that may be read, found once for many looks."""

    zones: tuple[tuple[str, Path, float | None], ...]  # name, temperature, ceiling
    chips: tuple[tuple[str, tuple[Path, ...]], ...]  # name, temperatures
    events: tuple[tuple[str, Path], ...]  # what they count, and the counter
    clocks: tuple[tuple[Path, Path], ...]  # what may be used, and what there is
    flags: tuple[Path, ...]  # of a Raspberry Pi's firmware
    alarms: tuple[Path, ...]  # 1 while its voltage is too low

    @classmethod
    def found(cls, root: Path, ignore: Sequence[str]) -> _Sensors:
        """Look for all of them; ``ignore`` are patterns of names."""
        zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
        named = [(_text(zone / "type").strip() or zone.name, zone) for zone in zones]
        hwmon = [(_text(chip / "name").strip(), chip) for chip in sorted((root / "sys/class/hwmon").glob("hwmon*"))]
        cpus = [name for name, _ in hwmon if name in CPU_CHIPS and not _is_like(name, ignore)]
        cores = (root / "sys/devices/system/cpu/cpufreq").glob("policy*")
        return cls(
            tuple((name, zone / "temp", _ceiling(zone)) for name, zone in named if not _is_like(name, ignore)),
            tuple((name, tuple(sorted(chip.glob("temp*_input")))) for name, chip in hwmon if name in cpus),
            tuple(
                (flag, chip / f"{event}_event_cnt")
                for name, chip in hwmon
                if name == "soctherm_oc"
                for event, flag in JETSON_EVENTS.items()
            ),
            tuple((one / "scaling_max_freq", one / "cpuinfo_max_freq") for one in cores),
            tuple((root / "sys/devices/platform").glob(PI_FILES)),
            tuple(chip / PI_ALARM[1] for name, chip in hwmon if name == PI_ALARM[0]),
        )


class PressureReader:
    """Reads everything below ``root``. One for each daemon: it remembers the last counters."""

    def __init__(self, root: Path, ignore: Sequence[str] = ()) -> None:
        self._root = root
        self._ignore = tuple(ignore)
        self._stalled: dict[str, tuple[float, int]] = {}  # when, and microseconds until then
        self._events: dict[str, int] = {}
        self._sensors = _Sensors.found(root, self._ignore)
        self._scanned_s = time.monotonic()
        self._modes: dict[str, str] = {}  # Jetson's power modes by number
        groups = _own_groups(root)
        self._limits = tuple(_memory_limits(root, groups))
        self._own_stall = next(_own_stall_files(root, groups), None)

    def read(self) -> Reading:
        """Everything that this device has, now."""
        if time.monotonic() - self._scanned_s > RESCAN_S:
            self._sensors, self._scanned_s = _Sensors.found(self._root, self._ignore), time.monotonic()
        found = (
            ("temperature", [*self._zones(), *self._chips()]),
            ("memory in use", [*self._memory_used()]),
            ("pressure stall information", [*self._stalls()]),
        )
        flags = list(self._throttled())
        return Reading(
            measures=tuple(one for _, measures in found for one in measures)
            + tuple(Measure(Kind.THROTTLED, flag, 1.0) for flag in flags),
            missing=tuple(what for what, measures in found if not measures),
            power_mode=self._power_mode(),
            cpu_cap_percent=self._cpu_cap_percent(),
        )

    @property
    def trigger_files(self) -> tuple[Path, ...]:
        """The files whose stalls are worth being woken for, the nearest first."""
        return tuple(path for path in (self._own_stall, self._root / "proc/pressure/memory") if path is not None)

    # Temperature

    def _zones(self) -> Iterator[Measure]:
        for name, path, ceiling in self._sensors.zones:
            millidegrees = _number(path)
            if millidegrees is not None and millidegrees <= MOST_C * 1000:
                yield Measure(Kind.TEMPERATURE, name, millidegrees / 1000, ceiling)

    def _chips(self) -> Iterator[Measure]:
        for name, paths in self._sensors.chips:
            readings = [reading for path in paths if (reading := _number(path)) is not None]
            hottest = max((reading for reading in readings if reading <= MOST_C * 1000), default=None)
            if hottest is not None:
                yield Measure(Kind.TEMPERATURE, name, hottest / 1000)

    # Memory and stalls

    def _memory_used(self) -> Iterator[Measure]:
        facts = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+)", _text(self._root / "proc/meminfo"), re.MULTILINE))
        if {"MemTotal", "MemAvailable"} <= facts.keys() and int(facts["MemTotal"]):
            used = 100 * (1 - int(facts["MemAvailable"]) / int(facts["MemTotal"]))
            yield Measure(Kind.MEMORY_USED, "system", used)
        shares = [share for group in self._limits if (share := group.used_percent()) is not None]
        if shares:
            yield Measure(Kind.MEMORY_USED, "service", max(shares))

    def _stalls(self) -> Iterator[Measure]:
        for what, kind in STALLS.items():
            share = self._stalled_percent(self._root / "proc/pressure" / what)
            if share is not None:
                yield Measure(kind, "system", share)
        if self._own_stall is not None:
            share = self._stalled_percent(self._own_stall)
            if share is not None:
                yield Measure(Kind.MEMORY_STALL, "service", share)

    def _stalled_percent(self, path: Path) -> float | None:
        """Of the time since the last look, or of the last ten seconds if that is more; None without PSI."""
        match = re.match(r"some avg10=([\d.]+) .*total=(\d+)", _text(path))
        if match is None:
            return None
        now_s, total_us = time.monotonic(), int(match[2])
        before_s, before_us = self._stalled.get(str(path), (now_s, total_us))
        self._stalled[str(path)] = (now_s, total_us)
        passed_us = (now_s - before_s) * 1e6
        recent = 100 * (total_us - before_us) / passed_us if passed_us > 0 else 0.0
        return max(float(match[1]), min(100.0, recent))

    # What the hardware does by itself

    def _throttled(self) -> Iterator[str]:
        found = [_text(path).strip() for path in self._sensors.flags]
        bits = next((int(text, 16) for text in found if re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", text)), 0)
        if not bits and any(_number(path) == 1 for path in self._sensors.alarms):
            bits = 1
        yield from (flag for bit, flag in PI_FLAGS.items() if bits >> bit & 1)
        yield from (flag for flag, path in self._sensors.events if self._rose(path))

    def _rose(self, path: Path) -> bool:
        """Whether a counter is higher than at the last look."""
        count = _number(path) or 0
        before = self._events.get(str(path), count)
        self._events[str(path)] = count
        return count > before

    def _power_mode(self) -> str:
        """Jetson's power mode, by name where /etc/nvpmodel.conf has one; empty elsewhere."""
        mode = re.search(r"pmode:0*(\d+)", _text(self._root / "var/lib/nvpmodel/status"))
        if mode is None:
            return ""
        if mode[1] not in self._modes:
            names = _text(self._root / "etc/nvpmodel.conf")
            named = re.findall(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", names, re.MULTILINE)
            self._modes = {mode[1]: mode[1]} | dict(named)
        return self._modes[mode[1]]

    def _cpu_cap_percent(self) -> float | None:
        """How much of its highest clock the slowest group of cores may use."""
        pairs = [(_number(allowed), _number(highest)) for allowed, highest in self._sensors.clocks]
        shares = [100 * allowed / highest for allowed, highest in pairs if allowed and highest]
        return min(shares, default=None)


def _is_like(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _ceiling(zone: Path) -> float | None:
    """Where the kernel switches off, or asks for it, by the trip points of a zone."""
    trips = []
    for path in zone.glob("trip_point_*_type"):
        if _text(path).strip() in CEILINGS:
            reading = _number(path.with_name(path.name.replace("_type", "_temp")))
            trips += [reading / 1000] if reading is not None and reading / 1000 > ABSURD_C else []
    return min(trips, default=None)


def _own_groups(root: Path) -> dict[str, str]:
    """Our cgroup by controller; "" is that of version 2."""
    lines = [line.split(":", 2) for line in _text(root / "proc/self/cgroup").splitlines()]
    return {name: line[2] for line in lines if len(line) == 3 for name in line[1].split(",")}


def _memory_limits(root: Path, groups: dict[str, str]) -> Iterator[_Group]:
    """Our cgroup and those around it: any of them may be the one that the kernel kills for."""
    base = root / "sys/fs/cgroup"
    for directory in _upwards(base, groups.get("")):
        if (directory / "memory.max").exists():
            files = (directory / "memory.current", directory / "memory.max", directory / "memory.stat")
            yield _Group(*files, "inactive_file")
    for directory in _upwards(base / "memory", groups.get("memory")):
        if (directory / "memory.limit_in_bytes").exists():
            usage, limit = directory / "memory.usage_in_bytes", directory / "memory.limit_in_bytes"
            yield _Group(usage, limit, directory / "memory.stat", "total_inactive_file")


def _own_stall_files(root: Path, groups: dict[str, str]) -> Iterator[Path]:
    """The stalls of our own cgroup; that of the root is the system's, which is read already."""
    own = groups.get("", "/")
    if own != "/":
        for base in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
            path = root / base / own.lstrip("/") / "memory.pressure"
            if path.exists():
                yield path


def _upwards(base: Path, group: str | None) -> Iterator[Path]:
    if group is None:
        return
    directory = base / group.lstrip("/")
    while directory != base:
        yield directory
        directory = directory.parent


def _text(path: Path) -> str:
    """What a file says; empty where it is not there, or its sensor does not answer."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """The whole number that a file says; None where it says anything else."""
    text = _text(path).strip()
    return int(text) if re.fullmatch(r"-?\d{1,19}", text) else None
