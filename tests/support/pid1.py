"""A machine with systemd as process 1, real units and real cgroups, in namespaces on this one. Needs root.

The base root is made once by mmdebstrap and kept under ``.cache/``; each machine runs on an overlay of it and leaves
nothing behind. No network but its own loopback. ``machine.run`` runs a command in it, as root.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.parts import SEARCH_PATH, missing, program, require
from tests.support.tree import ROOT

CACHE = ROOT / ".cache" / "pid1"
PACKAGES = ("systemd", "systemd-sysv", "udev", "dbus", "python3", "python3-systemd", "libusb-1.0-0", "iproute2",
            "procps", "init-system-helpers", "mosquitto", "mosquitto-clients")  # fmt: skip
# Of a device on which nobody has installed anything: no Python, not even what Debian puts on every server.
BARE = ("systemd", "systemd-sysv", "udev", "ca-certificates")
BOOT_S = 120.0
BOOT = Path(__file__).with_name("pid1-boot.sh")
# What a machine without hardware of its own need not start.
MASKED = ("getty.target", "console-getty.service", "systemd-logind.service", "mosquitto.service", "apt-daily.timer",
          "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer")  # fmt: skip
CONTROLLERS = ("memory", "devices", "pids", "cpu", "systemd", "unified")


def need_machine() -> None:
    """Skip the calling test where no machine can be booted; in CI fail it."""
    require("root", "mount namespaces", "network namespaces")
    for name in ("mmdebstrap", "nsenter", "dpkg-deb"):
        if program(name) is None:
            missing(name, f"apt install {name}")


def base_root(packages: Sequence[str] = PACKAGES) -> Path:
    """The root directory that machines with such packages start from; made at the first use."""
    key = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    base = CACHE / f"bookworm-{key}"
    if not base.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=CACHE))
        options = (
            "--quiet",
            "--variant=minbase",
            "--mode=root",
            "--format=directory",
            f"--include={','.join(packages)}",
        )
        made = subprocess.run(["mmdebstrap", *options, "bookworm", str(part)], env=_environment(), capture_output=True)
        if made.returncode:
            shutil.rmtree(part)
            missing("a Debian root", made.stderr.decode(errors="replace")[-500:])
        part.rename(base)
    return base


@dataclass(frozen=True, slots=True)
class Machine:
    """A running machine. ``root`` is its file system, as seen from here."""

    pid: int  # of its process 1
    root: Path

    def run(
        self, *command: str, check: bool = True, timeout_s: float = 60.0, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine."""
        inside = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(
            [*inside, *command],
            env=environment | {"PATH": SEARCH_PATH + os.pathsep + environment["PATH"]},
            capture_output=True,
            input=stdin,
            timeout=timeout_s,
            check=False,
        )
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        assert not check or done.returncode == 0, f"{command} ended with {done.returncode}:\n{out}\n{err}"
        return subprocess.CompletedProcess(command, done.returncode, out, err)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).stdout.strip()

    def python(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of the standard library in the machine's own Python."""
        return self.run("/usr/bin/python3", "-I", "-c", program, *arguments, check=check)

    def put(self, path: str, text: str) -> None:
        """Write a file in the machine."""
        self.run("sh", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1"', "sh", path, stdin=text.encode())

    def drop_in(self, unit: str, text: str) -> None:
        """Override a unit until ``revert``."""
        self.put(f"/run/systemd/system/{unit}.d/90-test.conf", text)
        self.run("systemctl", "daemon-reload")

    def revert(self, unit: str) -> None:
        """Undo ``drop_in``."""
        self.run("rm", "-rf", f"/run/systemd/system/{unit}.d")
        self.run("systemctl", "daemon-reload")

    def journal(self, *arguments: str) -> str:
        """The journal, as words only."""
        return self.run("journalctl", "--no-pager", "--output=cat", *arguments).stdout

    def eventually(self, true: Callable[[], object], within_s: float = 30.0, every_s: float = 0.1) -> None:
        """Wait until something holds; the journal's end tells why it did not."""
        until = time.monotonic() + within_s
        while not true():
            assert time.monotonic() < until, f"not within {within_s:g} s\n{self.journal('--lines=40')}"
            time.sleep(every_s)


@contextlib.contextmanager
def machine(packages: Sequence[str] = PACKAGES, *, online: bool = False) -> Iterator[Machine]:
    """Boot a machine; it is gone at the end of the block. ``online``: it shares this machine's network."""
    need_machine()
    base = base_root(packages)
    lab = Path(tempfile.mkdtemp(prefix="edged-pid1-", dir="/var/tmp"))
    groups = _make_groups(lab.name)
    spaces = ["--pid", "--mount", "--cgroup", "--ipc", "--uts", "--fork", "--kill-child", "--propagation", "private"]
    spaces += [] if online else ["--net"]
    enter = 'for group in $1; do echo $$ >$group/cgroup.procs; done; shift; exec "$@"'
    command = ["sh", "-c", enter, "sh", " ".join(map(str, groups)), "unshare", *spaces, str(BOOT), str(lab), str(base)]
    _mask(lab / "upper/etc/systemd/system")
    if online:
        _share_network_settings(lab / "upper")
    with (lab / "said").open("wb") as said:
        process = subprocess.Popen(command, env=_environment(), stdout=said, stderr=said, start_new_session=True)
    try:
        yield _booted(process, lab)
    finally:
        with contextlib.suppress(ProcessLookupError):  # it did not come up
            os.killpg(process.pid, signal.SIGKILL)  # --kill-child takes process 1, and with it everybody
        process.wait()
        _remove(lab, groups)


def _booted(process: subprocess.Popen[bytes], lab: Path) -> Machine:
    until = time.monotonic() + BOOT_S
    state = ""
    while time.monotonic() < until and process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "systemd":
            booted = Machine(int(children[0]), Path(f"/proc/{children[0]}/root"))
            state = booted.run("systemctl", "is-system-running", check=False).stdout.strip()
            if state in ("running", "degraded"):
                return booted
        time.sleep(0.1)
    raise AssertionError(f"the machine did not boot: {state} {(lab / 'said').read_text(errors='replace')}")


def _mask(directory: Path) -> None:
    directory.mkdir(parents=True)
    for unit in MASKED:
        (directory / unit).symlink_to("/dev/null")


def _share_network_settings(upper: Path) -> None:
    """How this machine reaches Debian's archive: names, certificates, proxies."""
    for name in ("resolv.conf", "hosts", "ssl/certs/ca-certificates.crt", "apt/apt.conf.d"):
        here, there = Path("/etc") / name, upper / "etc" / name
        there.parent.mkdir(parents=True, exist_ok=True)
        if here.is_dir():
            shutil.copytree(here, there, dirs_exist_ok=True)
        elif here.exists():
            shutil.copy(here, there)


def _make_groups(name: str) -> list[Path]:
    """A cgroup of our own below the caller's, in every hierarchy that the machine gets."""
    hierarchies = dict(re.findall(r"^\d+:([^:]*):(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE))
    top = Path("/sys/fs/cgroup")
    if (top / "cgroup.controllers").exists():
        groups = [top / hierarchies[""].lstrip("/") / name]
    else:
        keys = {"systemd": "name=systemd", "unified": ""}
        own = {controller: _hierarchy(hierarchies, keys.get(controller, controller)) for controller in CONTROLLERS}
        groups = [top / controller / place.lstrip("/") / name for controller, place in own.items()]
    for group in groups:
        group.mkdir()
    return groups


def _hierarchy(hierarchies: dict[str, str], key: str) -> str:
    return next(place for names, place in hierarchies.items() if key in names.split(","))


def _remove(lab: Path, groups: Sequence[Path]) -> None:
    shutil.rmtree(lab, ignore_errors=True)
    for group in groups:
        for directory in sorted([group, *group.rglob("*/")], reverse=True):
            until = time.monotonic() + 10
            while directory.is_dir() and time.monotonic() < until:
                with contextlib.suppress(OSError):  # the last process is not reaped yet
                    directory.rmdir()
                    break
                time.sleep(0.05)


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": SEARCH_PATH}
