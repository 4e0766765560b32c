"""What it costs to know how hard pressed the device is: one look at the files of this kernel, and of a big device's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.admission import Admission
from edged.hardware_config import Pressure
from edged.host.pressure import PressureReader
from edged.pressure import PressurePolicy
from tests.support.kernel import Tree

LOOKS = 200


def median_us(act: Callable[[], object]) -> float:
    """The median time of a call, in microseconds."""
    act()
    times = []
    for _ in range(LOOKS):
        began = time.perf_counter()
        act()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def jetson(root: Path) -> Tree:
    """As many zones, chips and groups of cores as a large Jetson has."""
    tree = Tree(root)
    for number in range(10):
        tree.zone(number, f"zone-{number}", 50.0 + number, {"passive": 99.0, "hot": 103.0, "critical": 104.5})
    for chip in range(6):
        tree.write(f"sys/class/hwmon/hwmon{chip}/name", "soctherm_oc" if chip == 3 else "ina3221")
    for policy in (0, 4, 8):
        tree.write(f"sys/devices/system/cpu/cpufreq/policy{policy}/scaling_max_freq", "1500000")
        tree.write(f"sys/devices/system/cpu/cpufreq/policy{policy}/cpuinfo_max_freq", "2000000")
    for what in ("memory", "cpu", "io"):
        tree.stall(what, 1.0)
    tree.memory(total_kb=64_000_000, available_kb=32_000_000)
    tree.cgroup(2, "/system.slice/edged.service", usage=1, limit=1000, inactive=0)
    tree.write("var/lib/nvpmodel/status", "pmode:0002")
    return tree


@pytest.mark.bench
def test_a_look_is_cheap(tmp_path: Path) -> None:
    settings = Pressure()
    here, large = PressureReader(Path("/")), PressureReader(jetson(tmp_path).root)
    policy, admission = PressurePolicy(settings, 0.0), Admission()
    reading = large.read()
    rows = {
        "one look at this machine": median_us(here.read),
        "one look at a tree of a large Jetson's size (plain files)": median_us(large.read),
        "the policy, with its measures": median_us(lambda: policy.take(reading, time.monotonic())),
        "admitting a frame, normal": median_us(lambda: admission.admits("camera")),
    }
    admission.set(0.5, "hot")
    rows["admitting a frame, pressed"] = median_us(lambda: admission.admits("camera"))
    print()
    for what, us in rows.items():
        print(f"{what:62}{us:10.1f} µs")
    share = (rows["one look at this machine"] + rows["the policy, with its measures"]) / settings.look_every_s / 1e4
    print(f"{'of one core, at a look every 2 s':62}{share:10.4f} %")
