"""The real parts that a test may need and a machine may lack: programs, privileges, data.

``require("mosquitto")`` at the head of a test or fixture skips it by name on a developer's machine and FAILS it in CI,
so that nothing is left out silently there. What a fresh machine need not have (third-party data, an old Python) is
``optional``: it skips by name everywhere. Starts nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.cgroup import can_limit_memory

# the environment's own tools first; daemons live outside a user's PATH
SYSTEM_PYTHON = "/usr/bin/python3"  # the distribution's, for which it has modules that no index has
SEARCH_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def in_ci() -> bool:
    """True where a missing part is a failure: the environment says CI=true (or 1)."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def program(name: str) -> str | None:
    """The path of an installed program, or None."""
    return shutil.which(name, path=SEARCH_PATH)


@dataclass(frozen=True)
class Part:
    """One thing that may be missing: how to see whether it is there, and how to get it."""

    present: Callable[[], bool]
    hint: str


def _programs(*names: str) -> Part:
    return Part(lambda: all(program(name) for name in names), f"no {' or '.join(names)} on this machine")


def _can_trace() -> bool:
    tracer = program("strace")
    return tracer is not None and subprocess.run([tracer, "-qq", "-o", os.devnull, "true"], check=False).returncode == 0


def own_network() -> list[str] | None:
    """The command before a command that runs it in a network of its own, where even loopback is down; None: no way."""
    for options in ("-n", "-rn"):  # as root, and as a user who may have namespaces of users
        command = ["unshare", options]
        if program("unshare") and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    return None


def _can_unshare_mounts() -> bool:
    command = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(program("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


def _can_serve_rtsp() -> bool:
    command = [SYSTEM_PYTHON, "-c", "import gi; gi.require_version('GstRtspServer', '1.0')"]
    return Path(SYSTEM_PYTHON).exists() and subprocess.run(command, capture_output=True, check=False).returncode == 0


def _is_x86_linux() -> bool:
    return platform.system() == "Linux" and platform.machine() == "x86_64"


PARTS: dict[str, Part] = {
    "mosquitto": _programs("mosquitto"),
    "mosquitto-clients": _programs("mosquitto_sub", "mosquitto_pub"),
    "jq": _programs("jq"),
    "openssl": _programs("openssl"),
    "git": _programs("git"),
    "chromium": _programs("chromium"),
    "shellcheck": _programs("shellcheck"),
    "systemd-analyze": _programs("systemd-analyze"),
    "udev tools": _programs("udevadm", "systemd-hwdb"),
    "umockdev": _programs("umockdev-run", "umockdev-wrapper"),
    "qemu": _programs("qemu-system-x86_64", "qemu-img"),
    "tools of a Debian image": _programs("mmdebstrap", "mke2fs", "dpkg-deb", "chroot"),
    "mount namespaces": Part(_can_unshare_mounts, "unshare --mount is not allowed here"),
    "root": Part(lambda: os.geteuid() == 0, "needs root"),
    "ptrace": Part(_can_trace, "strace is missing or may not trace here"),
    "RTSP server": Part(_can_serve_rtsp, "no python3-gi with gir1.2-gst-rtsp-server-1.0 on this machine"),
    "network namespaces": Part(lambda: own_network() is not None, "unshare -n is not allowed here"),
    "x86-64 Linux": Part(_is_x86_linux, "needs Linux on x86-64"),
    "memory cgroups": Part(can_limit_memory, "no cgroup with a limit of memory can be made here; needs root"),
    "pressure stall information": Part(Path("/proc/pressure/memory").exists, "the kernel has no PSI"),
    "/dev/shm": Part(lambda: Path("/dev/shm").is_dir(), "no /dev/shm"),
}


def require(*names: str) -> None:
    """Skip the calling test where a part of PARTS is missing; in CI fail it instead."""
    for name in names:
        part = PARTS[name]
        if not part.present():
            missing(name, part.hint)


def optional(name: str, hint: str) -> NoReturn:
    """Say that something is not here which no machine must have, and skip."""
    pytest.skip(f"not here: {name} ({hint})")


def missing(name: str, hint: str) -> None:
    """Say that a part is not here: skip locally, fail in CI. For parts that only a test can look for."""
    message = f"missing part: {name} ({hint})"
    if in_ci():
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
