"""The units: systemd itself reads them without a complaint, they are locked down, each relaxation has its reason."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.parts import require

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNITS = sorted(unit for unit in SYSTEMD.glob("edged*.s*") if unit.suffix in (".service", ".socket"))
SERVICES = [unit.name for unit in UNITS if unit.suffix == ".service"]
EXPOSURE = 13  # tenths, as --threshold= counts
ENGINES = ("event", "lava", "onnxruntime", "tensorrt")
# What a unit may only do with a comment directly above it (or above the first of several such lines).
RELAXED = re.compile(
    r"^(?:\w+=no$|SupplementaryGroups=|DeviceAllow=|DevicePolicy=|RestrictAddressFamilies=|ReadWritePaths=|BindPaths=|"
    r"SystemCallFilter=[^@~]|UMask=0007|IPAddressAllow=|OOMScoreAdjust=-)"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root directory with the units as they are installed, and programs where they name them."""
    require("systemd-analyze")
    place = tmp_path / "usr/lib/systemd/system"
    shutil.copytree(SYSTEMD, place)
    for distribution in Path("/usr/lib/systemd/system").glob("*"):  # the targets and slices that ours belong to
        if distribution.suffix in (".target", ".slice") and distribution.is_file() and not distribution.is_symlink():
            shutil.copy(distribution, place)
    for program in set(re.findall(r"^Exec\w+=(/\S+)", "\n".join(unit.read_text() for unit in UNITS), re.MULTILINE)):
        there = tmp_path / program.lstrip("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text("#!/bin/sh\n")
        there.chmod(0o755)
    return tmp_path


def loadable(name: str) -> str:
    """A template is looked at through one instance."""
    return name.replace("@.", "@1-2-3.")


def analyze(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", f"--root={root}", *arguments], capture_output=True, text=True)


def complaints(root: Path) -> str:
    """What systemd says of our units; of the distribution's, which may name what is not in this root, nothing."""
    names = [loadable(unit.name) for unit in UNITS]
    done = analyze(root, "--man=no", "verify", *names)
    return "\n".join(line for line in done.stderr.splitlines() if "edged" in line)


def test_every_unit_of_the_design_is_there() -> None:
    names = {unit.name for unit in UNITS}
    workers = {f"edged-worker-{engine}{suffix}" for engine in ENGINES for suffix in (".socket", "@.service")}
    assert names >= {"edged.service", "edged.socket", "edged-lan.socket", "edged-sync.service", *workers}


def test_systemd_understands_every_line(root: Path) -> None:
    assert complaints(root) == ""


@pytest.mark.parametrize("name", ["edged.service", "edged-worker-@.service.d/10-edged.conf"])
def test_a_line_that_it_does_not_understand_would_be_found(root: Path, name: str) -> None:
    """The control of the test above: an unknown key is only a warning, with exit code 0."""
    unit = root / "usr/lib/systemd/system" / name
    unit.write_text(unit.read_text().replace("[Service]\n", "[Service]\nWatchDogSeconds=1\n"))
    assert "WatchDogSeconds" in complaints(root)


def exposure(root: Path, name: str) -> float:
    """As systemd sums it up, drop-ins included; the threshold is checked by systemd too."""
    done = analyze(root, "--offline=true", "security", f"--threshold={EXPOSURE}", loadable(name))
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert (done.returncode == 0) == (float(found[1]) <= EXPOSURE / 10)
    return float(found[1])


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_locked_down(root: Path, name: str) -> None:
    assert exposure(root, name) <= EXPOSURE / 10


@pytest.mark.parametrize("name", SERVICES)
def test_an_open_service_would_be_found(root: Path, name: str) -> None:
    """The control of the test above: without its user and its system calls it is no longer locked down."""
    override = root / f"etc/systemd/system/{name}.d/open.conf"
    override.parent.mkdir(parents=True)
    override.write_text("[Service]\nUser=root\nSystemCallFilter=\nCapabilityBoundingSet=~\nProtectSystem=no\n")
    assert exposure(root, name) > EXPOSURE / 10


def judged(root: Path, name: str) -> dict[str, bool]:
    """Whether each measure of protection is taken, as systemd reads the unit with all its drop-ins."""
    done = analyze(root, "--offline=true", "--json=short", "security", loadable(name))
    return {entry["json_field"]: bool(entry["set"]) for entry in json.loads(done.stdout)}


def test_an_engine_has_what_it_needs_beyond_the_others(root: Path) -> None:
    """The drop-in of all workers would take it back if it were read last."""
    for name, private in (("onnxruntime", True), ("tensorrt", False)):
        found = judged(root, f"edged-worker-{name}@.service")
        assert found["PrivateDevices"] is private, name
        assert found["MemoryDenyWriteExecute"] is private, name


@pytest.mark.parametrize("path", sorted(SYSTEMD.rglob("edged*.*")), ids=lambda path: str(path.name))
def test_every_relaxation_has_its_reason_beside_it(path: Path) -> None:
    if not path.is_file():
        return
    above = ""
    for line in path.read_text().splitlines():
        if RELAXED.match(line):
            kin = above.startswith("#") or RELAXED.match(above)
            assert kin, f"{path.name}: {line} has no reason above it"
        above = line


def test_the_daemon_has_no_ip_and_sync_no_devices(root: Path) -> None:
    """What the units promise by name; that the kernel keeps it is for the tests with systemd as process 1."""
    daemon, sync = ((SYSTEMD / name).read_text() for name in ("edged.service", "edged-sync.service"))
    assert "\nRestrictAddressFamilies=AF_UNIX AF_NETLINK\n" in daemon
    assert "\nIPAddressDeny=any\n" in daemon
    assert "IPAddressAllow" not in daemon
    assert "\nPrivateDevices=yes\n" in sync
    assert "DeviceAllow" not in sync


@pytest.mark.parametrize("with_preset", [True, False])
def test_a_first_boot_enables_nothing_that_an_operator_has_to_want(tmp_path: Path, with_preset: bool) -> None:
    """systemd's own presets enable all; the control leaves ours out."""
    require("systemd-analyze")
    shutil.copytree(SYSTEMD, tmp_path / "usr/lib/systemd/system")
    if with_preset:
        presets = tmp_path / "usr/lib/systemd/system-preset"
        presets.mkdir(parents=True)
        shutil.copy(SYSTEMD / "edged.preset", presets / "80-edged.preset")
    subprocess.run(["systemctl", f"--root={tmp_path}", "preset-all"], capture_output=True, check=True)
    wants = {path.name for path in (tmp_path / "etc/systemd/system").glob("*.wants/*")}
    assert {"edged.service", "edged.socket"} <= wants
    opt_in = {"edged-lan.socket", "edged-boards.socket", "edged-sync.service"}
    assert wants & opt_in == (set() if with_preset else opt_in)
