"""The Debian package of this checkout, for tests that install it: ``EDGED_DEB`` names one, else it is built once."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.parts import SEARCH_PATH, missing
from tests.support.pid1 import Machine, machine, need_machine
from tests.support.tree import ROOT

PYTHON = "3.11"  # of the Debian release that the machines run


@functools.cache
def package(*arguments: str) -> Path:
    """A package as ``scripts/build-deb`` makes it with such arguments; without any, EDGED_DEB may name it."""
    given = os.environ.get("EDGED_DEB", "")
    if given and not arguments:
        return Path(given)
    if shutil.which(f"python{PYTHON}", path=SEARCH_PATH) is None:
        missing(f"python{PYTHON}", "scripts/build-deb compiles bytecode with it")
    out = tempfile.mkdtemp(prefix="edged-deb-")
    command = [str(ROOT / "scripts/build-deb"), "--out", out, "--python", PYTHON, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": SEARCH_PATH}, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@contextlib.contextmanager
def installed() -> Iterator[Machine]:
    """A machine with systemd as process 1, on which the package was just installed."""
    need_machine()
    deb = package()
    with machine() as booted:
        install(booted, deb)
        yield booted


def install(booted: Machine, deb: Path) -> None:
    """Install a package on a machine."""
    there = "/var/tmp/edged.deb"
    shutil.copyfile(deb, booted.root / there.lstrip("/"))
    booted.run("dpkg", "--install", there, timeout_s=300)
    booted.run("rm", there)


def as_version(deb: Path, version: str, place: Path) -> Path:
    """The same package under another version, uncompressed."""
    tree = place / f"tree-{version}"
    subprocess.run(["dpkg-deb", "-R", str(deb), str(tree)], check=True)
    control = tree / "DEBIAN/control"
    lines = control.read_text().splitlines()
    control.write_text(
        "\n".join(f"Version: {version}" if line.startswith("Version:") else line for line in lines) + "\n"
    )
    made = place / f"{deb.name.partition('_')[0]}_{version}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(tree), str(made)], check=True)
    shutil.rmtree(tree)
    return made
