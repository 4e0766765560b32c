"""What the real units let the daemon see of the device: how hard pressed it is, and boards on a network it has not.

One machine with systemd as process 1 serves all tests of this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.edge import CONFIG, status
from tests.support.package import installed
from tests.support.parts import require
from tests.support.pid1 import Machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BOARD = """
[[board]]
name = "rack"
address = "10.9.9.9"
port = 2222
every_s = 0.3
"""
LISTEN = ("systemd-run", "--unit=rack", "/usr/bin/python3", "-m", "http.server", "2222", "--bind", "10.9.9.9")


@pytest.fixture(scope="module")
def edge() -> Iterator[Machine]:
    with installed() as booted:
        booted.run("ip", "address", "add", "10.9.9.9/32", "dev", "lo")
        booted.put(CONFIG, booted.run("cat", CONFIG).stdout + BOARD)
        booted.run("systemctl", "restart", "edged.service")
        yield booted


def rack(edge: Machine) -> str:
    """The state of the board, and why."""
    found = [f"{one['state']}: {one['reason']}" for one in status(edge).get("devices", ()) if one["link"] == "rack"]
    return found[0] if found else ""


def test_the_sandbox_hides_nothing_that_presses(edge: Machine) -> None:
    require("pressure stall information")
    pressure: dict[str, Any] = {}

    def looked() -> bool:
        pressure.update(status(edge).get("pressure") or {})
        return bool(pressure.get("measures"))

    edge.eventually(looked)
    measured = {(one["name"], one["where"]) for one in pressure["measures"]}
    assert {("memory used", "system"), ("memory stall", "system"), ("cpu stall", "system")} <= measured
    assert ("memory used", "service") in measured, "the unit has a MemoryMax"
    assert pressure["triggers"] >= 1, "an unprivileged process may have a trigger"


def test_a_board_is_asked_from_a_unit_of_its_own_and_lost_and_found(edge: Machine) -> None:
    edge.run(*LISTEN)
    edge.run("systemctl", "enable", "--now", "edged-boards.socket")
    edge.eventually(lambda: rack(edge).startswith("ready"))
    units = edge.run("systemctl", "list-units", "--plain", "--no-legend", "edged-boards@*").stdout
    assert units.startswith("edged-boards@") and " running " in units
    edge.run("systemctl", "stop", "rack.service")
    edge.eventually(lambda: rack(edge).startswith("lost: it no longer answers: 10.9.9.9 port 2222: "))
    edge.run(*LISTEN)
    edge.eventually(lambda: rack(edge).startswith("ready"))


def test_control_without_that_unit_the_daemon_cannot_ask_and_says_what_to_do(edge: Machine) -> None:
    edge.run("systemctl", "disable", "--now", "edged-boards.socket")
    edge.run("systemctl", "stop", "edged-boards@*")
    edge.run("systemctl", "restart", "edged.service")
    edge.eventually(lambda: rack(edge).startswith("unusable: ") and "enable edged-boards.socket" in rack(edge))
