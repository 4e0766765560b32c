"""What whoever gets into a process of ours gets: nothing. Tried from inside the real units' sandboxes, by what happens.

Each probe runs as the unit's user under every setting of the unit but its program; the control runs the same probe as
the same user without the sandbox, and succeeds.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.package import installed
from tests.support.pid1 import Machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

UNITS = "/usr/lib/systemd/system"
DAEMON, SYNC, WORKER = "edged.service", "edged-sync.service", "edged-worker-onnxruntime@.service"
FEEDER = "edged-feed@.service"
# What a probe tries, by name; each prints "done" or the error's name. /srv/open may be written by everybody, and
# /dev/loop-test and /dev/serial-test be opened by everybody: only the sandbox can say no.
PROBE = """
import ctypes, errno, json, mmap, os, socket, sys

def ip():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", 1883))

def netlink():
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15).close()

def worker():
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect("/run/edged/worker/event.sock")

def hand_in():
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect("/run/edged/http.sock")

def write(path):
    with open(path, "w") as file:
        file.write("x")
    os.unlink(path)

def open_device(path):
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    except OSError as error:  # there is no such hardware, but the door was open
        if error.errno not in (errno.ENXIO, errno.ENODEV, errno.EIO, errno.EBUSY):
            raise

def code():
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()

def namespace():
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "unshare")

ACTS = {
    "ip": ip,
    "netlink": netlink,
    "code": code,
    "namespace": namespace,
    "write outside": lambda: write("/srv/open/x"),
    "write results": lambda: write("/var/lib/edged/buffer/x"),
    "write cursor": lambda: write("/var/lib/edged/sync/x"),
    "write models": lambda: write("/var/lib/edged/models/x"),
    "write cache": lambda: write("/var/lib/edged/cache/x"),
    "write status": lambda: write("/run/edged/x"),
    "read results": lambda: os.listdir("/var/lib/edged/buffer"),
    "read models": lambda: os.listdir("/var/lib/edged/models"),
    "read trust": lambda: os.listdir("/var/lib/edged/trust"),
    "disk": lambda: open_device("/dev/loop-test"),
    "serial line": lambda: open_device("/dev/serial-test"),
    "start a worker": worker,
    "hand frames in": hand_in,
    "see others": lambda: os.stat("/proc/1/status"),
}
told = {}
for name, act in ACTS.items():
    try:
        act()
        told[name] = "done"
    except OSError as error:
        told[name] = errno.errorcode.get(error.errno, str(error))
print("PROBE " + os.environ["TURN"] + json.dumps(told), flush=True)
"""
ALLOWED = {
    DAEMON: {"netlink", "write results", "write cursor", "write models", "write cache", "write status", "read results",
             "read models", "read trust", "serial line", "start a worker", "hand frames in"},
    SYNC: {"ip", "write cursor", "read results", "hand frames in"},
    FEEDER: {"ip", "hand frames in"},
    WORKER: {"write cache", "read models"},
}  # fmt: skip
USERS = {DAEMON: "edged", SYNC: "edged-sync", WORKER: "edged-worker", FEEDER: "edged-feed"}


@pytest.fixture(scope="module")
def edge() -> Iterator[Machine]:
    with installed() as booted:
        booted.run(
            "sh",
            "-c",
            "mkdir -m 777 /srv/open; mknod -m 666 /dev/loop-test b 7 0; mknod -m 666 /dev/serial-test c 4 64",
        )
        booted.put("/srv/probe.py", PROBE)
        booted.put("/etc/mosquitto/conf.d/open.conf", "listener 1883 127.0.0.1\nallow_anonymous true\n")
        booted.run("systemctl", "unmask", "mosquitto.service")
        booted.run("systemctl", "start", "mosquitto.service")
        yield booted


def sandboxed(edge: Machine, unit: str) -> str:
    """A unit with every setting of a real one, drop-ins included, and the probe as its program."""
    text = edge.run("systemctl", "cat", unit.replace("@.", "@1.")).stdout
    replaced = re.compile(r"(Exec\w+|Type|Restart|WatchdogSec|NotifyAccess|LogLevelMax)=")
    kept = [line for line in text.splitlines() if not replaced.match(line)]
    body = "\n".join(kept).replace("[Install]", "[X-Install]")
    return f"{body}\n[Service]\nType=oneshot\nExecStart=/usr/bin/python3 -I /srv/probe.py\n"


def free(unit: str) -> str:
    """The control: the same user and program, without a sandbox."""
    groups = f"User={USERS[unit]}\nGroup=edged\nSupplementaryGroups=edged\nUMask=0007\n"
    return f"[Service]\nType=oneshot\n{groups}ExecStart=/usr/bin/python3 -I /srv/probe.py\n"


def probe(edge: Machine, text: str) -> dict[str, str]:
    turn = str(uuid.uuid4())
    edge.put("/run/systemd/system/edged-probe.service", f"{text}Environment=TURN={turn}\n")
    edge.run("systemctl", "daemon-reload")
    edge.run("systemctl", "start", "edged-probe.service")
    edge.run("journalctl", "--sync")
    [said] = re.findall(f"PROBE {turn}(.*)", edge.journal("--unit=edged-probe.service"))
    told: dict[str, str] = json.loads(said)
    return told


@pytest.mark.parametrize("unit", list(USERS))
def test_only_what_a_unit_is_for_can_be_done_from_inside(edge: Machine, unit: str) -> None:
    told = probe(edge, sandboxed(edge, unit))
    surprises = {name: how for name, how in told.items() if (how == "done") != (name in ALLOWED[unit])}
    assert surprises == {}


@pytest.mark.parametrize("unit", list(USERS))
def test_without_the_sandbox_the_same_user_could_do_it(edge: Machine, unit: str) -> None:
    """The control: what is refused above is refused by the sandbox, not by chance. Root's privileges nobody has."""
    told = probe(edge, free(unit))
    denied = {"namespace"}  # a privilege
    if unit != DAEMON:
        denied.add("start a worker")  # the socket belongs to the daemon's user
    assert {name: how for name, how in told.items() if how != "done" and name not in denied} == {}


def test_the_daemon_runs_in_that_sandbox(edge: Machine) -> None:
    """What the kernel says of the running process: no privileges, a system call filter, no way to gain any."""
    status = edge.run("cat", f"/proc/{edge.show('edged.service', 'MainPID')}/status").stdout
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0
    assert (facts["Seccomp"], facts["NoNewPrivs"]) == ("2", "1")


def test_the_group_may_not_read_what_is_the_daemons_to_verify(edge: Machine, tmp_path: Path) -> None:
    """Keys are root's to give: neither the daemon nor sync can add one."""
    for user in ("edged", "edged-sync"):
        done = edge.run("setpriv", "--reuid", user, "--regid", "edged", "--clear-groups", "touch",
                        "/var/lib/edged/trust/own.pem", check=False)  # fmt: skip
        assert done.returncode != 0
