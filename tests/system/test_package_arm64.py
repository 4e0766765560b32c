"""The package for arm64, on a Debian root of that architecture under qemu's user emulation; nothing else runs in it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.package import package
from tests.support.parts import SEARCH_PATH, missing, program, require
from tests.support.pid1 import CACHE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ALSO = ("coreutils", "dash")  # of every Debian
EMULATED = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A root directory with what the package depends on and the package itself, unpacked: nothing was configured."""
    require("root", "tools of a Debian image")
    if program("qemu-aarch64-static") is None or not EMULATED.exists():
        missing("qemu-user-static", "the kernel must know it: binfmt_misc has no qemu-aarch64")
    deb = Path(os.environ["EDGED_DEB_ARM64"]) if "EDGED_DEB_ARM64" in os.environ else package("--arch", "arm64")
    place = tmp_path / "root"
    subprocess.run(["cp", "-a", "--reflink=auto", str(_base(deb)), str(place)], check=True)
    subprocess.run(["dpkg-deb", "-x", str(deb), str(place)], check=True)
    for name in ("proc", "tmp", "run/edged", "var/lib/edged/spool", "etc/edged"):
        (place / name).mkdir(parents=True, exist_ok=True)
    text = (place / "usr/share/edged/edged.toml").read_text(encoding="utf-8")
    (place / "etc/edged/edged.toml").write_text(text.replace("@DEVICE@", "arm-1"), encoding="utf-8")
    yield place
    shutil.rmtree(place)


def _base(deb: Path) -> Path:
    """A root directory of Debian with what the package says it needs, and hardly more; made once."""
    fields = subprocess.check_output(["dpkg-deb", "--field", str(deb), "Depends", "Recommends"], text=True)
    needed = re.findall(r"(?:^\w+:|,)\s*([^\s,(]+)", fields, flags=re.MULTILINE)
    base = CACHE / f"bookworm-arm64-{hashlib.sha256(' '.join(needed).encode()).hexdigest()[:12]}"
    if not base.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=CACHE))
        options = ("--quiet", "--variant=extract", "--mode=root", "--architectures=arm64", "--format=directory")
        command = ["mmdebstrap", *options, f"--include={','.join((*needed, *ALSO))}", "bookworm", str(part)]
        made = subprocess.run(
            command, env=os.environ | {"PATH": SEARCH_PATH}, capture_output=True, text=True, check=False
        )
        if made.returncode:
            shutil.rmtree(part)
            missing("a Debian root for arm64", made.stderr[-500:])
        part.rename(base)
    return base


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the root directory, with a /proc and a /dev."""
    inside = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", inside, str(root)]
    environment = {"PATH": SEARCH_PATH, "LANG": "C.UTF-8"}
    return subprocess.run([*unshare, *command], capture_output=True, text=True, env=environment, check=False)


def test_the_package_for_arm64_runs_proves_its_model_and_examines_itself(root: Path) -> None:
    machine = run(root, "/opt/edged/bin/python", "-c", "import platform; print(platform.machine())")
    assert machine.stdout == "aarch64\n", machine.stderr
    version = run(root, "/opt/edged/bin/edged", "--version")
    assert version.stdout.startswith("edged "), version.stderr
    proof = run(root, "/opt/edged/bin/edged", "bundle", "selftest", "/usr/share/edged/models/digits")
    assert proof.returncode == 0, proof.stdout + proof.stderr
    assert "proved itself on onnxruntime" in proof.stdout
    doctor = run(root, "/opt/edged/bin/edged", "doctor", "--quick")
    assert doctor.returncode == 3, doctor.stdout + doctor.stderr  # the daemon does not run, and it says so
    assert "device arm-1" in doctor.stdout
