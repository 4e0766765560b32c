"""The sample units: systemd itself reads them without a complaint, and they stay locked down."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.parts import require

UNITS = sorted((Path(__file__).parents[2] / "systemd").glob("edged*.s*"))
EXPOSURE = 20  # tenths, as --threshold= counts; measured with systemd 252: 1.6 and 1.7


@pytest.fixture(autouse=True)
def systemd_analyze() -> None:
    require("systemd-analyze")


def verify(directory: Path, *, extra: str = "") -> str:
    """What systemd-analyze says of copies whose programs exist here; ``extra`` goes into each [Service]."""
    copies = []
    for unit in UNITS:
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
        copy = directory / unit.name
        copy.write_text(text.replace("[Service]\n", f"[Service]\n{extra}"))
        copies.append(str(copy))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *copies], capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if any(unit.stem in line for unit in UNITS)]
    return "\n".join(complaints) + ("" if done.returncode == 0 else f"\nexit code {done.returncode}: {done.stderr}")


def test_all_three_units_are_there() -> None:
    assert [unit.name for unit in UNITS] == ["edged-sync.service", "edged.service", "edged.socket"]


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    assert verify(tmp_path) == ""


def test_a_line_that_it_does_not_understand_would_be_found(tmp_path: Path) -> None:
    """The control of the test above: an unknown key is only a warning, with exit code 0."""
    assert "WatchDogSeconds" in verify(tmp_path, extra="WatchDogSeconds=1\n")


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit.suffix == ".service"], ids=lambda unit: str(unit.name))
def test_services_are_locked_down(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-400:] + done.stderr
    stricter = subprocess.run([*command[:3], "--threshold=1", str(unit)], capture_output=True)
    assert stricter.returncode != 0  # the threshold is heeded
