"""What a device says of itself: a Raspberry Pi, a Jetson, a PC, and a machine that has nothing to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.host.pressure import PressureReader
from edged.pressure import Kind, Measure, Reading
from tests.support.kernel import Tree

PSI = "some avg10={share:.2f} avg60=0.00 avg300=0.00 total={total}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def of(reading: Reading, kind: Kind) -> dict[str, float]:
    return {one.where: one.value for one in reading.measures if one.kind is kind}


def test_a_machine_that_has_nothing_says_what_is_missing(tree: Tree) -> None:
    reading = PressureReader(tree.root).read()
    assert reading == Reading(missing=("temperature", "memory in use", "pressure stall information"))


def test_zones_are_read_with_their_ceiling_and_the_ones_to_ignore_are_not(tree: Tree) -> None:
    tree.zone(0, "cpu-thermal", 61.5, {"passive": 85.0, "hot": 100.0, "critical": 104.5})
    tree.zone(1, "PMIC-Die", 100.0)
    tree.zone(2, "gpu-thermal", 58.0, {"critical": -274.0})
    tree.write("sys/class/thermal/thermal_zone3/type", "soc-thermal")  # its sensor does not answer
    tree.write("sys/class/hwmon/hwmon0/name", "k10temp")
    tree.write("sys/class/hwmon/hwmon0/temp1_input", "70125")
    tree.write("sys/class/hwmon/hwmon1/name", "nvme")
    tree.write("sys/class/hwmon/hwmon1/temp1_input", "99000")
    reading = PressureReader(tree.root, ["PMIC*"]).read()
    assert [one for one in reading.measures if one.kind is Kind.TEMPERATURE] == [
        Measure(Kind.TEMPERATURE, "cpu-thermal", 61.5, 100.0),
        Measure(Kind.TEMPERATURE, "gpu-thermal", 58.0),
        Measure(Kind.TEMPERATURE, "k10temp", 70.125),
    ]
    assert "PMIC-Die" in of(PressureReader(tree.root).read(), Kind.TEMPERATURE)


def test_memory_in_use_is_what_is_not_available(tree: Tree) -> None:
    tree.memory(total_kb=1000, available_kb=250)
    assert of(PressureReader(tree.root).read(), Kind.MEMORY_USED) == {"system": 75.0}


@pytest.mark.parametrize("version", [1, 2])
def test_the_service_is_as_full_as_the_fullest_cgroup_around_it(tree: Tree, version: int) -> None:
    """What the kernel can drop at once does not count; a group without a limit does not either."""
    tree.cgroup(version, "/system.slice/edged.service", usage=800, limit=1000, inactive=300)
    tree.cgroup(version, "/system.slice", usage=900, limit=1000, inactive=0)
    assert of(PressureReader(tree.root).read(), Kind.MEMORY_USED) == {"service": 90.0}
    tree.cgroup(version, "/system.slice", usage=900, limit=None, inactive=0)
    assert of(PressureReader(tree.root).read(), Kind.MEMORY_USED) == {"service": 50.0}


def test_stalls_are_those_of_the_last_seconds_or_since_the_last_look(tree: Tree) -> None:
    for what in ("memory", "cpu", "io"):
        tree.write(f"proc/pressure/{what}", PSI.format(share=3.5, total=1000))
    tree.cgroup(2, "/edged.service", usage=1, limit=2, inactive=0)
    tree.write("sys/fs/cgroup/edged.service/memory.pressure", PSI.format(share=0.5, total=0))
    reader = PressureReader(tree.root)
    first = reader.read()
    assert of(first, Kind.MEMORY_STALL) == {"system": 3.5, "service": 0.5}
    assert of(first, Kind.CPU_STALL) == of(first, Kind.IO_STALL) == {"system": 3.5}
    tree.write("proc/pressure/memory", PSI.format(share=3.5, total=10**12))
    assert of(reader.read(), Kind.MEMORY_STALL)["system"] == 100.0
    assert of(reader.read(), Kind.MEMORY_STALL)["system"] == 3.5
    assert [path.name for path in reader.trigger_files] == ["memory.pressure", "memory"]


def test_a_raspberry_pi_says_what_it_is_throttled_by_and_its_past_does_not_count(tree: Tree) -> None:
    tree.write("sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n")
    flags = of(PressureReader(tree.root).read(), Kind.THROTTLED)
    assert flags == {"under-voltage": 1.0, "throttled": 1.0}
    tree.write("sys/devices/platform/soc/soc:firmware/get_throttled", "50000\n")
    assert of(PressureReader(tree.root).read(), Kind.THROTTLED) == {}


def test_a_newer_raspberry_pi_keeps_its_flags_elsewhere_and_a_plain_kernel_has_only_the_alarm(tmp_path: Path) -> None:
    newer, plain = Tree(tmp_path / "newer"), Tree(tmp_path / "plain")
    newer.write("sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled", "8\n")
    plain.write("sys/class/hwmon/hwmon1/name", "rpi_volt")
    plain.write("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1")
    assert of(PressureReader(newer.root).read(), Kind.THROTTLED) == {"its soft temperature limit is reached": 1.0}
    assert of(PressureReader(plain.root).read(), Kind.THROTTLED) == {"under-voltage": 1.0}
    plain.write("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "0")
    assert of(PressureReader(plain.root).read(), Kind.THROTTLED) == {}


def test_a_jetson_says_its_power_mode_and_when_its_supply_is_weak(tree: Tree) -> None:
    tree.write("var/lib/nvpmodel/status", "pmode:0002")
    tree.write(
        "etc/nvpmodel.conf", "# x\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
    )
    tree.write("sys/class/hwmon/hwmon3/name", "soctherm_oc")
    for name, count in (("oc1", 4), ("oc2", 15), ("oc3", 27390)):
        tree.write(f"sys/class/hwmon/hwmon3/{name}_event_cnt", str(count))
    reader = PressureReader(tree.root)
    assert reader.read().power_mode == "MAXN_SUPER"
    tree.write("sys/class/hwmon/hwmon3/oc3_event_cnt", "27999")
    assert of(reader.read(), Kind.THROTTLED) == {}
    tree.write("sys/class/hwmon/hwmon3/oc2_event_cnt", "16")
    assert of(reader.read(), Kind.THROTTLED) == {"over-current": 1.0}
    assert of(reader.read(), Kind.THROTTLED) == {}
    tree.write("var/lib/nvpmodel/status", "pmode:0007")
    assert reader.read().power_mode == "7"


def test_the_cap_of_the_cpu_is_that_of_its_slowest_cores(tree: Tree) -> None:
    for policy, allowed in ((0, 1_500_000), (4, 500_000)):
        tree.write(f"sys/devices/system/cpu/cpufreq/policy{policy}/scaling_max_freq", str(allowed))
        tree.write(f"sys/devices/system/cpu/cpufreq/policy{policy}/cpuinfo_max_freq", "2000000")
    assert PressureReader(tree.root).read().cpu_cap_percent == 25.0


@pytest.mark.parametrize("text", ["", "\n", "not a number", "\xff\xfe", "9" * 400, "-1", "nan"])
def test_nonsense_in_any_file_is_no_failure(tree: Tree, text: str) -> None:
    tree.zone(0, "cpu-thermal", 61.5, {"critical": 104.5})
    tree.memory(total_kb=1000, available_kb=250)
    tree.cgroup(1, "/x", usage=1, limit=2, inactive=0)
    tree.cgroup(2, "/y", usage=1, limit=2, inactive=0)
    tree.write("proc/pressure/memory", PSI.format(share=3.5, total=1000))
    tree.write("sys/devices/platform/soc/soc:firmware/get_throttled", "0")
    tree.write("var/lib/nvpmodel/status", "pmode:0002")
    tree.write("sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq", "1")
    tree.write("sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq", "2")
    for path in [path for path in tree.root.rglob("*") if path.is_file()]:
        before = path.read_text()
        path.write_bytes(text.encode("latin-1"))
        reading = PressureReader(tree.root).read()
        assert all(one.value == one.value and abs(one.value) < 1e9 for one in reading.measures), path
        path.write_text(before)
