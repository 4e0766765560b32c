"""What the kernel says of a GPU that is part of the chip, in the layouts of different boards."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.host.gpu import GpuReader
from edged.status import INTEGRATED, GpuFacts
from tests.support.kernel import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def devfreq(tree: Tree, entry: str, device: str, chip: str) -> None:
    """A device of devfreq as the kernel has it: a link from the class, and one from there to the device."""
    home = f"sys/devices/platform/{device}"
    tree.write(f"{home}/devfreq/{entry}/cur_freq", "918000000\n")
    tree.write(f"{home}/of_node/name", f"{chip}\0")
    (tree.root / home / "devfreq" / entry / "device").symlink_to(tree.root / home)
    listed = tree.root / "sys/class/devfreq"
    listed.mkdir(parents=True, exist_ok=True)
    (listed / entry).symlink_to(tree.root / home / "devfreq" / entry)


@pytest.mark.parametrize(
    ("device", "chip"),
    [("17000000.gv11b", "gv11b"), ("17000000.ga10b", "ga10b"), ("bus@0/17000000.gpu", "gpu")],
    ids=["Xavier", "Orin, JetPack 5", "Orin, JetPack 6"],
)
def test_a_jetson_tells_load_and_clock(tree: Tree, device: str, chip: str) -> None:
    devfreq(tree, "bwmgr", "emc", "external-memory")  # another device of devfreq, before it in the alphabet's order
    devfreq(tree, Path(device).name, device, chip)
    tree.write(f"sys/devices/platform/{device}/load", "345\n")
    reader = GpuReader(tree.root)
    expected = GpuFacts(id=INTEGRATED, name=chip, told_by="kernel", load_percent=34.5, clock_mhz=918.0)
    assert reader.read() == expected
    tree.write(f"sys/devices/platform/{device}/load", "1000\n")
    found = reader.read()
    assert found is not None
    assert found.load_percent == 100


@pytest.mark.parametrize("device", ["sys/devices/gpu.0", "sys/devices/platform/gpu.0"])
def test_older_links_are_found_too(tree: Tree, device: str) -> None:
    tree.write(f"{device}/load", "7\n")
    assert GpuReader(tree.root).read() == GpuFacts(id=INTEGRATED, name="gpu.0", told_by="kernel", load_percent=0.7)


def test_a_thor_without_a_load_tells_its_clock(tree: Tree) -> None:
    tree.write("sys/class/devfreq/gpu-gpc-0/cur_freq", "1575000000\n")
    found = GpuReader(tree.root).read()
    assert found == GpuFacts(id=INTEGRATED, name="gpu-gpc-0", told_by="kernel", clock_mhz=1575.0)


@pytest.mark.parametrize("text", ["", "busy\n", "-1\n", "9" * 40])
def test_a_load_that_is_no_number_is_none(tree: Tree, text: str) -> None:
    tree.write("sys/devices/gpu.0/load", text)
    assert GpuReader(tree.root).read() is None


def test_a_machine_without_such_a_gpu_tells_nothing(tree: Tree) -> None:
    tree.write("sys/class/devfreq/soc-mali/load", "50@1000000Hz")
    assert GpuReader(tree.root).read() is None
