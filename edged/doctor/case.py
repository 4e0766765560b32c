"""What every check is given: the configuration, the machine, and what the daemon said, each looked up once."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edged.buffer.files import tree_bytes
from edged.check import Who, me
from edged.config import Config
from edged.console.cli import Report, ask
from edged.doctor.machine import Machine, text_of
from edged.settings import read_toml
from edged.status import Status

USER = "edged"  # of the package's units
SAFE_MODE = "safe-mode"  # the state that edged.safe_mode.page tells


@dataclass(frozen=True)
class Case:
    """One device to be examined. ``thorough``: take time for golden frames and whole files."""

    config: Config
    path: Path
    machine: Machine
    thorough: bool = True

    @cached_property
    def report(self) -> Report:
        """What the daemon says; its last word when it is silent."""
        return ask(self.config.device.runtime_dir)

    @property
    def status(self) -> Status | None:
        """The daemon's status of now; None while it does not answer, or safe mode does in its place."""
        return None if self.report.silence or self.safe_mode else self.report.status

    @cached_property
    def safe_mode(self) -> str:
        """Why safe mode runs in the daemon's place; empty when it does not."""
        last = self.report.status
        runs = last is not None and last.state == SAFE_MODE and (not self.report.silence or self.pid is not None)
        return "; ".join(last.reasons) or SAFE_MODE if last is not None and runs else ""

    @cached_property
    def pid(self) -> int | None:
        """The daemon's process, also while it hangs; None when there is none."""
        said = self.report.status.pid if self.report.status is not None else 0
        words = text_of(self.machine.proc / str(said) / "cmdline").split("\0") if said else []
        return said if any("edged" in word for word in words) else None

    @cached_property
    def delivers(self) -> bool:
        """Whether edged-sync is configured."""
        return "sync" in read_toml(self.path)

    @cached_property
    def sees_all(self) -> bool:
        """Whether we may read what the daemon keeps."""
        device = self.config.device
        places = (device.runtime_dir, device.state_dir, device.buffer_dir, device.models_dir)
        return all(os.access(place, os.R_OK | os.X_OK) for place in places if os.path.lexists(place))

    @cached_property
    def buffer_bytes(self) -> int:
        """What the buffer's files take."""
        status = self.status
        if status is not None and status.buffer is not None:
            return status.buffer.bytes
        return tree_bytes(self.config.device.buffer_dir)

    @cached_property
    def is_written(self) -> bool:
        """Whether a daemon writes the buffer now."""
        return self.status is not None or (self.pid is not None and not self.safe_mode)

    @cached_property
    def who(self) -> Who:
        """Whom the daemon runs as: the running process tells best, then the user of the units, then ourselves."""
        if self.pid is not None:
            lines = text_of(self.machine.proc / str(self.pid) / "status").splitlines()
            ids = {name: [int(word) for word in rest.split()] for name, _, rest in (s.partition(":") for s in lines)
                   if name in ("Uid", "Gid", "Groups")}  # fmt: skip
            if ids.get("Uid") and ids.get("Gid"):
                return Who(ids["Uid"][1], frozenset({ids["Gid"][1], *ids.get("Groups", ())}))
        try:
            entry = pwd.getpwnam(USER)
        except KeyError:
            return me()
        return Who(entry.pw_uid, frozenset(os.getgrouplist(USER, entry.pw_gid)))
