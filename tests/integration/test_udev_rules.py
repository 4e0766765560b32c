"""The table and the rules, read by udev's own tools: every device gets its kind, group, mode, links and tags."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.parts import optional, require
from tests.support.udev import GROUP_ID, HWDB, RULES, USB_PORT, apply, compile_hwdb, device, query, usb_device

IDS = {
    "1a6e:089a": ("accelerator", "coral"),
    "18d1:9302": ("accelerator", "coral"),
    "03e7:2485": ("accelerator", "ncs2"),
    "03e7:f63b": ("accelerator", "ncs2"),
    "8086:0b01": ("accelerator", "loihi"),
    "152a:8400": ("event-camera", "dvs128"),
    "152a:8419": ("event-camera", "dvxplorer"),
    "152a:841a": ("event-camera", "davis"),
    "152a:841b": ("event-camera", "davis"),
    "03fd:5832": ("event-camera", "evk2"),
    "04b4:00f4": ("event-camera", "evk3"),
    "04b4:00f5": ("event-camera", "evk4"),
}
ALIASES = {
    "pci:v00001E7Cd0000BCA1sv00001E7Csd00000001bc0Bsc40i00": ("accelerator", "akida"),
    "of:NgpuT(null)Cnvidia,ga10bCnvidia,gpu": ("gpu", "jetson-gpu"),
    "of:NgpuT(null)Cnvidia,gv11b": ("gpu", "jetson-gpu"),
    "pci:v000010DEd00002684sv000010DEsd000016F3bc03sc00i00": ("gpu", "nvidia-gpu"),
    "pci:v000010DEd00002330sv000010DEsd000016C1bc03sc02i00": ("gpu", "nvidia-gpu"),
    "edged:video4linux:video0": ("camera", "camera"),
    "edged:iio:iio:device3": ("sensor", "sensor"),
    "edged:tty:ttyUSB0": ("serial", "serial"),
    "edged:tty:ttyACM12": ("serial", "serial"),
}
STRANGERS = [
    "usb:v0403p6001:FT232R USB UART",
    "usb:v04B4p00F1:FX3",
    "usb:v152Ap0001:Something",
    "usb:v8086p0B02:Something",
    "pci:v000010DEd000022BAsv000010DEsd000016F3bc04sc03i00",  # the sound of a graphics card
    "edged:tty:ttyS0",
]
MISTAKE = re.compile(r"60-edged\.rules:\d+:? (Invalid|Unknown|Failed)|Unknown group")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("udev tools")
    root = tmp_path_factory.mktemp("hwdb")
    compile_hwdb(root, HWDB)
    return root


def usb_key(usb_id: str) -> str:
    vendor, product = usb_id.upper().split(":")
    return f"usb:v{vendor}p{product}:Any Name"


def kind_and_link(found: dict[str, str]) -> tuple[str, str]:
    return found["EDGED_KIND"], found["EDGED_LINK"]


@pytest.mark.parametrize(("usb_id", "expected"), IDS.items())
def test_the_table_knows_every_usb_id(compiled: Path, usb_id: str, expected: tuple[str, str]) -> None:
    assert kind_and_link(query(compiled, usb_key(usb_id))) == expected


@pytest.mark.parametrize(("alias", "expected"), ALIASES.items())
def test_the_table_knows_boards_and_classes(compiled: Path, alias: str, expected: tuple[str, str]) -> None:
    assert kind_and_link(query(compiled, alias)) == expected


@pytest.mark.parametrize("key", STRANGERS)
def test_the_table_claims_no_stranger_of_a_shared_vendor(compiled: Path, key: str) -> None:
    assert query(compiled, key) == {}


def test_whatever_becomes_something_else_becomes_something_of_the_table(compiled: Path) -> None:
    becoming = re.findall(r"EDGED_BECOMES=(\S+)", HWDB.read_text())
    assert len(becoming) == 2
    for usb_id in becoming:
        assert "EDGED_KIND" in query(compiled, usb_key(usb_id))


def test_an_error_in_the_table_would_be_found(tmp_path: Path) -> None:
    """The control: the strict reader refuses a property that has no key above it."""
    require("udev tools")
    broken = tmp_path / "60-broken.hwdb"
    broken.write_text(HWDB.read_text() + "\nusb:v1234p5678*\nEDGED_KIND=accelerator\n")
    with pytest.raises(AssertionError, match="60-broken"):
        compile_hwdb(tmp_path / "root", broken)


@pytest.mark.parametrize("usb_id", ["1a6e:089a", "18d1:9302", "8086:0b01", "04b4:00f5"])
def test_a_known_device_is_given_to_the_group_and_linked(tmp_path: Path, usb_id: str) -> None:
    vendor, product = usb_id.split(":")
    applied = apply(tmp_path, usb_device(vendor, product), USB_PORT)
    kind, link = IDS[usb_id]
    assert applied.ours["EDGED_KIND"] == kind
    assert (applied.access("GROUP"), applied.access("MODE")) == (str(GROUP_ID), "0660")
    assert applied.links == {f"/dev/edged/{link}", f"/dev/edged/{link}-1-2"}
    assert applied.tags >= {"edged", "systemd"}
    assert applied.properties["SYSTEMD_WANTS"] == "edged.service"
    assert not MISTAKE.search(applied.log)


def test_a_stranger_is_left_alone(tmp_path: Path) -> None:
    applied = apply(tmp_path, usb_device("0403", "6001"), USB_PORT)
    assert (applied.ours, applied.links, applied.access("GROUP")) == ({}, set(), "")
    assert "edged" not in applied.tags


def test_a_mistake_in_the_rules_would_be_found(tmp_path: Path) -> None:
    """The control: udev passes a rule over that it does not understand, and says so in its log only."""
    broken = RULES.read_text().replace('GROUP="edged"', 'GROUPE="edged"')
    applied = apply(tmp_path, usb_device("18d1", "9302"), USB_PORT, rules=broken)
    assert MISTAKE.search(applied.log), applied.log[:3000]
    assert applied.access("GROUP") == ""


def test_a_camera_that_captures_has_its_kind_and_keeps_its_group(tmp_path: Path) -> None:
    path = "/devices/virtual/video4linux/video0"
    camera = device(path, "video4linux", "ID_V4L_CAPABILITIES=:capture:", node="video0")
    applied = apply(tmp_path, camera, path)
    assert kind_and_link(applied.ours) == ("camera", "camera")
    assert (applied.access("GROUP"), applied.tags & {"edged", "systemd"}) == ("", {"edged"})
    assert applied.links == {"/dev/edged/camera", "/dev/edged/camera-video0"}


def test_a_camera_s_metadata_node_is_no_camera(tmp_path: Path) -> None:
    path = "/devices/virtual/video4linux/video1"
    applied = apply(tmp_path, device(path, "video4linux", "ID_V4L_CAPABILITIES=:", node="video1"), path)
    assert applied.ours == {}


def test_sensors_and_serial_ports_have_their_kind(tmp_path: Path) -> None:
    sensor = "/devices/virtual/iio/iio:device0"
    applied = apply(tmp_path / "iio", device(sensor, "iio", "DEVTYPE=iio_device", node="iio:device0"), sensor)
    assert kind_and_link(applied.ours) == ("sensor", "sensor")
    assert (applied.access("GROUP"), applied.access("MODE")) == (str(GROUP_ID), "0660")
    port = "/devices/virtual/tty/ttyACM0"
    applied = apply(tmp_path / "tty", device(port, "tty", node="ttyACM0"), port)
    assert kind_and_link(applied.ours) == ("serial", "serial")
    assert applied.access("GROUP") == ""


def test_pci_and_platform_devices_have_their_kind(tmp_path: Path) -> None:
    akida = "/devices/pci0000:00/0000:01:00.0"
    alias = next(alias for alias, (_, link) in ALIASES.items() if link == "akida")
    applied = apply(tmp_path / "pci", device(akida, "pci", f"MODALIAS={alias}"), akida)
    assert kind_and_link(applied.ours) == ("accelerator", "akida")
    assert applied.tags >= {"edged", "systemd"} and applied.links == set()  # its driver makes the node
    gpu = "/devices/platform/17000000.gpu"
    applied = apply(tmp_path / "of", device(gpu, "platform", "MODALIAS=of:NgpuT(null)Cnvidia,ga10b"), gpu)
    assert kind_and_link(applied.ours) == ("gpu", "jetson-gpu")


def test_nothing_is_done_on_removal(tmp_path: Path) -> None:
    applied = apply(tmp_path, usb_device("18d1", "9302"), USB_PORT, action="remove")
    assert (applied.access("GROUP"), applied.links) == ("", set())


def test_a_drop_in_adds_a_device_of_one_s_own(tmp_path: Path) -> None:
    own = tmp_path / "70-own.hwdb"
    documented = re.search(r"```hwdb\n(.*?)```", (HWDB.parents[1] / "docs/devices.md").read_text(), re.DOTALL)
    assert documented is not None
    own.write_text(documented[1])
    applied = apply(tmp_path, usb_device("1234", "5678", name="My Stick"), USB_PORT, tables=(HWDB, own))
    assert applied.ours["EDGED_NAME"] == "My own accelerator"
    assert applied.access("GROUP") == str(GROUP_ID)
    assert "/dev/edged/mine" in applied.links


def test_udevadm_verifies_the_rules() -> None:
    require("udev tools")
    version = subprocess.run(["udevadm", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.split()[0]) < 254:
        optional("udevadm verify", "it came with systemd 254; the log of udevadm test is searched above")
    done = subprocess.run(["udevadm", "verify", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
