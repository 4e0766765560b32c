"""A cgroup whose memory is limited, so that a test can run short of it without the machine doing so.

On a machine with cgroups of version 2 it is one group; where memory is still with version 1, it is one of each: the
limit is version 1's, the pressure stall information version 2's. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Self

ROOT = Path("/sys/fs/cgroup")


class MemoryGroup:
    """One limited group, empty at first. Leaving the block ends what is still in it. Raises OSError."""

    def __init__(self, limit_bytes: int) -> None:
        name = f"edged-test-{os.getpid()}-{time.monotonic_ns()}"
        if (ROOT / "cgroup.controllers").exists():
            self._folders, limit = [ROOT / name], "memory.max"
            (ROOT / "cgroup.subtree_control").write_text("+memory")
        else:
            self._folders, limit = [ROOT / "memory" / name, ROOT / "unified" / name], "memory.limit_in_bytes"
        self._limit = (limit, str(limit_bytes))

    @property
    def procs(self) -> list[str]:
        """The files that a process writes its number to, to be in the group."""
        return [str(folder / "cgroup.procs") for folder in self._folders]

    @property
    def killed(self) -> int:
        """Processes of the group that the kernel killed for want of memory."""
        told = [self._folders[0] / name for name in ("memory.events", "memory.oom_control")]
        lines = [line.split() for path in told if path.exists() for line in path.read_text().splitlines()]
        return sum(int(count) for name, count in lines if name == "oom_kill")

    def __enter__(self) -> Self:
        for folder in self._folders:
            folder.mkdir()
        (self._folders[0] / self._limit[0]).write_text(self._limit[1])
        swap = self._folders[0] / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")
        return self

    def __exit__(self, *_: object) -> None:
        for folder in self._folders:
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for folder in self._folders:
            self._remove(folder)

    def _remove(self, folder: Path) -> None:
        for _ in range(100):  # a process that was killed is in it until it is gone
            with contextlib.suppress(OSError):
                folder.rmdir()
                return
            time.sleep(0.05)
        folder.rmdir()


def can_limit_memory() -> bool:
    """Whether such a group can be made here."""
    try:
        with MemoryGroup(64 << 20):
            return True
    except OSError:
        return False


def join(procs: list[str]) -> None:
    """Move this process into a group."""
    for path in procs:
        Path(path).write_text(str(os.getpid()))
