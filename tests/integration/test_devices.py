"""Devices come and go: the real pyudev and pyusb on devices that umockdev makes up."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from edged.devices.watch import Watch
from tests.support.device_scenarios import SCENARIOS
from tests.support.parts import require
from tests.support.tree import ROOT
from tests.support.umock import command

MARKS = {"leaks_nothing": pytest.mark.slow}


@pytest.mark.parametrize("scenario", [pytest.param(name, marks=MARKS.get(name, ())) for name in SCENARIOS])
def test_a_device(scenario: str, tmp_path: Path) -> None:
    require("umockdev", "udev tools")
    if scenario == "is_not_denied_to_root":
        require("root")
    done = subprocess.run(command(scenario, str(tmp_path)), cwd=ROOT, capture_output=True, text=True, timeout=100)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("package", ["pyudev", "usb"])
def test_without_a_package_the_daemon_goes_on_and_says_so(package: str, tmp_path: Path) -> None:
    """A None in sys.modules is how Python itself says that a module cannot be imported."""
    script = f"import sys; sys.modules[{package!r}] = None\nimport tests.integration.test_devices as t; t.say()"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = {
        "pyudev": "off: pyudev cannot be used: import of pyudev halted; None in sys.modules (pip install edged[dev",
        "usb": "not asked: pyusb cannot be used: ",
    }[package]
    assert expected in done.stdout


def say() -> None:
    """Print how devices are watched, and what comes of asking one."""
    from edged.devices import usb

    async def main() -> None:
        watch = Watch()
        running = asyncio.create_task(watch.run())
        async with asyncio.timeout(10):
            await watch.surveyed.wait()
        print(watch.discovery, watch.missing("coral"), usb.ask(1, 2).note, sep="\n")
        running.cancel()

    asyncio.run(main())
