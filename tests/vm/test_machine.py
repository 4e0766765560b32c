"""The machine itself, which every other test of this rung stands on, and what only its kernel shows of the units.

That is their filter of IP packets (IPAddressDeny=), a BPF program on the unit's cgroup. In the real units other walls
stand before it: no address family but the local ones, no network in workers. A drop-in takes those away, so that what
is refused is refused by the filter alone; the control takes the filter away too.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.machine import Guest, GuestFailed

REACH = "/usr/bin/python3 -I /srv/tree/tests/vm/guest/reach.py"
PORT = 4711
LOOPBACK, PRIVATE, PUBLIC = ADDRESSES = ("127.0.0.1", "10.9.8.7", "198.51.100.7")  # all the machine's own, so near
MAY_REACH = {
    "edged.service": (),
    "edged-worker-onnxruntime@probe.service": (),
    "edged-boards@probe.service": (PRIVATE,),
}
# The unit with all its settings but these, and the probe as its program.
OPENED = f"""
[Service]
Type=oneshot
Restart=no
WatchdogSec=0
ExecStart=
ExecStart={REACH} try {PORT} {" ".join(ADDRESSES)}
ExecStopPost=
StandardOutput=truncate:/srv/told
PrivateNetwork=no
RestrictAddressFamilies=
"""
UNFILTERED = """
IPAddressDeny=
IPAddressAllow=
"""


def test_a_program_is_run_and_heard(guest: Guest, tmp_path: Path) -> None:
    assert guest.run("cat", given="one\ntwo\n") == "one\ntwo\n"
    with pytest.raises(GuestFailed, match=r"exit code 3\nsaid\n+why"):
        guest.shell("echo said; echo why >&2; exit 3")
    with pytest.raises(GuestFailed, match="no end after"):
        guest.run("sleep", "1000", timeout_s=0.5)
    job = guest.start("sh", "-c", "echo waits; sleep 1000")
    assert next(job.lines(30)) == "waits"
    job.signal(signal.SIGTERM)
    assert job.wait(30).code == -signal.SIGTERM
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("copied")
    guest.copy(tmp_path / "folder", "/srv/there")
    assert guest.run("cat", "/srv/there/file").strip() == "copied"


@pytest.fixture(scope="module")
def network(guest: Guest) -> Iterator[Guest]:
    """The machine with somebody who answers on each address; the service is stopped."""
    guest.shell("systemctl stop edged.service")
    for address in (PRIVATE, PUBLIC):
        guest.run("busybox", "ip", "address", "add", f"{address}/32", "dev", "lo")
    server = guest.start(*REACH.split(), "serve", str(PORT))
    assert next(server.lines(60)) == "ready"
    yield guest
    server.signal(signal.SIGTERM)


def reached(guest: Guest, unit: str, settings: str) -> dict[str, str]:
    """What a program of this unit reaches, under the unit's settings and these."""
    guest.shell(
        f"rm -rf /run/systemd/system/edged*.d; mkdir -p /run/systemd/system/{unit}.d\n"
        f"cat >/run/systemd/system/{unit}.d/99-probe.conf <<'END'\n{settings}\nEND\n"
        f"systemctl daemon-reload; systemctl start {unit}"
    )
    told: dict[str, str] = json.loads(guest.run("cat", "/srv/told"))
    return told


@pytest.mark.parametrize("unit", MAY_REACH)
def test_the_filter_alone_keeps_a_unit_from_the_network(network: Guest, unit: str) -> None:
    allowed = MAY_REACH[unit]
    refused = {"tcp": "ETIMEDOUT", "udp": "EPERM"}  # a TCP that may not send tries again until its caller gives up
    assert reached(network, unit, OPENED) == {
        f"{address} {protocol}": "reached" if address in allowed else how
        for address in ADDRESSES
        for protocol, how in refused.items()
    }


@pytest.mark.parametrize("unit", MAY_REACH)
def test_control_without_the_filter_the_same_program_reaches_everybody(network: Guest, unit: str) -> None:
    assert set(reached(network, unit, OPENED + UNFILTERED).values()) == {"reached"}
