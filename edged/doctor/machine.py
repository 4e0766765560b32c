"""The machine around the daemon, as the checks see it: its file systems, its tables, its programs.

Everything is looked up below ``root``, so that a test plants a machine of its own. Reads, and runs programs that read.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM_S = 5.0  # systemctl answers in milliseconds; one that hangs is a finding, not a reason to wait


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program said. ``code`` None: it is not installed, or it gave no answer in time."""

    code: int | None
    said: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether what it said can be believed."""
        return self.code == 0


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted file system (proc_pid_mountinfo(5))."""

    point: Path
    device: str  # major:minor
    kind: str  # ext4, vfat, tmpfs …
    source: str
    options: frozenset[str]


def ask(command: Sequence[str]) -> Answer:
    """Run a program and take its words, in the language of its manual."""
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=PROGRAM_S, check=False, stdin=subprocess.DEVNULL,
            env={"PATH": os.defpath + ":/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer(None, str(error))
    return Answer(done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Machine:
    """Where to look. ``ask`` runs a program."""

    root: Path = Path("/")
    ask: Callable[[Sequence[str]], Answer] = ask

    @property
    def sys(self) -> Path:
        """Devices and drivers."""
        return self.root / "sys"

    @property
    def proc(self) -> Path:
        """Processes and the kernel."""
        return self.root / "proc"

    @property
    def has_systemd(self) -> bool:
        """Whether systemd runs this machine (sd_booted(3))."""
        return (self.root / "run/systemd/system").is_dir()

    def mount_of(self, path: Path) -> Mount | None:
        """The file system that holds a path, or would hold it; None where that cannot be told."""
        there = next((parent for parent in (path, *path.parents) if parent.exists()), Path("/")).resolve()
        holding = [mount for mount in self.mounts() if there.is_relative_to(mount.point)]
        return max(holding, key=lambda mount: len(mount.point.parts), default=None)

    def mounts(self) -> list[Mount]:
        """Every mounted file system, those mounted last at the end."""
        text = text_of(self.proc / "self/mountinfo")
        return [mount for line in text.splitlines() if (mount := _mount(line)) is not None]

    def disk_of(self, mount: Mount) -> Path | None:
        """The whole disk below /sys that a file system lies on; None for one that lies on none."""
        place = self.sys / "dev/block" / mount.device
        if not place.exists():
            return None
        return _whole(place.resolve())


def text_of(path: Path) -> str:
    """The text of a file without the spaces around it; empty where there is none to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def number_of(path: Path) -> int | None:
    """The number in a file; None where there is none."""
    try:
        return int(text_of(path), 0)
    except ValueError:
        return None


def _whole(place: Path) -> Path:
    """The disk of a partition; the first disk of a mapped device (LVM, an encrypted one)."""
    if (place / "partition").exists():
        return place.parent
    below = sorted((place / "slaves").glob("*"))
    return _whole(below[0].resolve()) if below else place


def _mount(line: str) -> Mount | None:
    before, _, after = line.partition(" - ")
    fields, more = before.split(), after.split()
    if len(fields) < 6 or len(more) < 2:
        return None
    options = {*fields[5].split(","), *(more[2].split(",") if len(more) > 2 else ())}
    point = Path(fields[4].encode().decode("unicode_escape"))  # a space in it stands as \040
    return Mount(point, fields[2], more[0], more[1], frozenset(options))
