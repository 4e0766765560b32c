"""Kills a process at the n-th change that it makes to the disk, while it works on a model store.

The child is forked, so that hundreds of kills take seconds. It counts every call that changes what is on the medium
(``DOORS``) and sends itself SIGKILL before the n-th: nothing that Python would do at an end is done.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edged.bundle.store.record import Record
from edged.bundle.store.store import ModelStore
from edged.errors import EdgedError

DOORS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "open", "posix_fallocate", "chmod")
DONE, REFUSED, BROKEN = 0, 1, 2

Act = Callable[[ModelStore], object]
Make = Callable[[Path], ModelStore]


def killed_at(number: int, make: Make, state: Path, act: Act, *, daemon: bool = False) -> bool:
    """Let a child open the store in ``state``, act and close; kill it before its n-th change. False: it had fewer."""
    pid = os.fork()
    if pid == 0:
        code = BROKEN
        try:
            _count_down(number)
            store = make(state)
            store.open(daemon=daemon)
            act(store)
            code = DONE
        except EdgedError:
            code = REFUSED
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == DONE, f"the victim ended with {os.WEXITSTATUS(status)}"
    return False


def kills(make: Make, base: Path, work: Path, act: Act, *, daemon: bool = False) -> Iterator[Path]:
    """Kill at the first change, then at the second … until the act is done. Yields each state that a kill left."""
    number = 1
    while True:
        state = work / str(number)
        shutil.copytree(base, state, symlinks=True)
        killed = killed_at(number, make, state, act, daemon=daemon)
        yield state
        shutil.rmtree(state)
        if not killed:
            return
        number += 1


def _count_down(number: int) -> None:
    left = [number]

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def door(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return door

    for name in DOORS:
        setattr(os, name, guarded(getattr(os, name)))


class ActsFirst(ModelStore):
    """The protection removed: deletes what the new record does not name before that record is written."""

    def _change(self, name: str, decide: Callable[[Record], Record]) -> Record:
        after = decide(self._record(name))
        self._records[name] = after
        self._tidy(name)
        self._persist(after)
        return after


class NamesFirst(ModelStore):
    """The protection removed: writes the record that names a bundle before the bundle is there."""

    def _place(self, bundle: Any) -> None:
        self._late = bundle

    def _change(self, name: str, decide: Callable[[Record], Record]) -> Record:
        after = super()._change(name, decide)
        if hasattr(self, "_late"):
            super()._place(self._late)
            del self._late
        return after
