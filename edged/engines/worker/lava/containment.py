"""Keeps what Lava's runtime makes together, so that nothing of it outlives the worker, however that ends.

The runtime forks a process for each of Lava's, a manager with a directory of sockets, and shared segments; its children
know no parent's death, and none of it is cleaned up after a kill. Here every segment and the directory carry the
worker's mark (its pid and the time when it started), and a *guard* in a session of its own waits for the worker's end:
then it kills what is left of the worker's process group and removes what carries the mark. A guard that is killed is
replaced; where both were killed at once, the next worker that starts removes the marks of the dead. A child that dies
under the runtime would leave it waiting for ever: a thread sees it and ends the worker at once.

Standard library only, and nothing of ours: the guard runs this file as a program.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.shared_memory
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SEGMENTS = Path("/dev/shm")  # noqa: S108  # where Linux keeps shared memory, not a place for files
SEGMENT = "psm_edged_"  # multiprocessing's own prefix, then ours: whoever looks for its segments finds these
NAME_LENGTH = 60  # of a segment; the standard library stops at 14 for systems other than Linux
FOLDER = "edged-lava-"
LAST_S = 5.0  # for a killed group to be gone; what is not by then hangs in the kernel
POLL_S = 0.02
PAUSE_S = 0.1  # before a guard is replaced again


def mark(pid: int) -> str:
    """What tells a process from every other one on this machine since it was booted. Raises OSError for a dead one."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return f"{pid}-{after_name[19]}"  # field 22: when it was started, in clock ticks since boot


def enclose() -> Path:
    """Mark everything that multiprocessing will make in this process, and start the guard. Call it before Lava starts.

    Returns the directory for its sockets. Raises OSError where the guard cannot be started.
    """
    sweep()
    mine = mark(os.getpid())
    # there is no public way to name them; Lava is bound to Python 3.10, and tests see whether the marks are there
    names = {"_SHM_NAME_PREFIX": f"/{SEGMENT}{mine}_", "_SHM_SAFE_NAME_LENGTH": NAME_LENGTH}
    vars(multiprocessing.shared_memory).update(names)
    folder = Path(tempfile.gettempdir()) / f"{FOLDER}{mine}"
    folder.mkdir(mode=0o700)
    vars(multiprocessing.current_process())["_config"]["tempdir"] = str(folder)
    first = _start_guard(mine, folder)
    threading.Thread(target=_keep_guard, args=(first, mine, folder), name="guard", daemon=True).start()
    return folder


def _start_guard(mine: str, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), mine, str(folder)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True,
    )  # fmt: skip


def _keep_guard(guarding: subprocess.Popen[bytes], mine: str, folder: Path) -> None:
    """Replace the guard whenever it was killed, as long as this process lives."""
    while True:
        guarding.wait()
        with contextlib.suppress(OSError):  # no process to be had now
            guarding = _start_guard(mine, folder)
        time.sleep(PAUSE_S)


def watch(children: dict[str, int], on_death: Callable[[str], None]) -> Callable[[], None]:
    """Call ``on_death`` with the name of the first child that ends, by their pids; returns what stops the watch."""
    stop, told = os.pipe()
    ends = {os.pidfd_open(pid): name for name, pid in children.items()}

    def wait() -> None:
        ready, _, _ = select.select([stop, *ends], [], [])
        dead = [ends[fd] for fd in ready if fd in ends]
        if stop not in ready and dead:
            on_death(dead[0])

    threading.Thread(target=wait, name="watch", daemon=True).start()
    return lambda: os.close(told)


def sweep() -> None:
    """Remove segments and directories of workers that are gone."""
    for path, owner in _marked():
        if not _lives(owner):
            _remove(path)


def _marked() -> Iterator[tuple[Path, str]]:
    for folder, prefix in ((SEGMENTS, SEGMENT), (Path(tempfile.gettempdir()), FOLDER)):
        for path in folder.glob(f"{prefix}*"):
            yield path, path.name[len(prefix) :].partition("_")[0]


def _lives(owner: str) -> bool:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return mark(int(owner.partition("-")[0])) == owner
    return False


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
        return
    shutil.rmtree(str(path), ignore_errors=True)


# The guard


def guard(worker: int, mine: str, folder: Path) -> None:
    """Wait until the worker is gone, then kill its group and remove what it made."""
    with contextlib.suppress(OSError):  # it is gone already
        fd = os.pidfd_open(worker)
        if _lives(mine):
            select.select([fd], [], [])
    give_up = time.monotonic() + LAST_S
    while _kill_group(worker, mine) and time.monotonic() < give_up:
        time.sleep(POLL_S)
    for path in [*SEGMENTS.glob(f"{SEGMENT}{mine}_*"), folder]:
        _remove(path)


def _kill_group(worker: int, mine: str) -> bool:
    """Kill every process of the worker's group. False once there is none."""
    members = [pid for pid in _pids() if _group_of(pid) == worker and not _is_new(pid, mine)]
    for pid in members:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return bool(members)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _group_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if stat[0] != "Z":  # a dead one that nobody has reaped holds nothing
            return int(stat[2])
    return -1


def _is_new(pid: int, mine: str) -> bool:
    """Whether it is a stranger who was given the worker's pid, and with it the group's number."""
    with contextlib.suppress(OSError):
        return pid == int(mine.partition("-")[0]) and mark(pid) != mine
    return False


if __name__ == "__main__":
    guard(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
