"""From a bare Debian to a first result: the package installs in a running machine, and nothing else is done to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import Machines
from tests.vm.machine import Guest
from tests.vm.service import SPOOL, Service

INSTALL_S = 600.0  # measured, emulated: 60 s on two idle cores


@pytest.fixture
def bare(machines: Machines) -> Iterator[Guest]:
    with machines.boot(machines.bare_disk()) as guest:
        yield guest


def test_the_package_installs_starts_and_gives_a_first_result(bare: Guest, package: Path) -> None:
    started = time.monotonic()
    bare.copy(package, "/srv/edged.deb")
    bare.run("dpkg", "--install", "/srv/edged.deb", timeout_s=INSTALL_S)
    installed_s = time.monotonic() - started
    service = Service(bare)
    ready_s = service.wait(lambda: service.status().get("state") == "ready")
    bare.shell(
        f"install -o edged -g edged /usr/share/edged/examples/seven.npy {SPOOL}/.part; mv {SPOOL}/.part {SPOOL}/7.npy"
    )
    service.wait(lambda: service.account("spool")["committed"] == 1)
    [row] = service.results()
    assert (row["kind"], row["body"]["label"]) == ("result", "7")
    assert bare.run("systemctl", "--failed", "--no-legend") == ""
    assert bare.shell("systemctl is-enabled edged.service edged.socket") == "enabled\nenabled\n"
    assert bare.start("systemctl", "is-enabled", "edged-lan.socket").wait(60).out == "disabled\n"
    print(f"\ninstalled in {installed_s:.0f} s, ready {ready_s:.0f} s later")
