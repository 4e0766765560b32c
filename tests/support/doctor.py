"""A device and a machine for ``edged doctor``, planted below a directory of the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edged import config
from edged.console.cli import Report
from edged.doctor.case import Case
from edged.doctor.findings import Finding, Verdict
from edged.doctor.machine import Answer, Machine
from edged.status import BufferFacts, Status
from tests.support.tree import ROOT

BUNDLE = ROOT / "models" / "digits" / "bundle"
Words = dict[str, Answer]


def ready(**changes: Any) -> Status:
    """What a healthy daemon says of itself."""
    buffer = BufferFacts(epoch="e", state="ok", rows=10, unsent_rows=3, bytes=1 << 20, cap_bytes=64 << 20)
    plain: dict[str, Any] = {"device": "edge-1", "version": "0.1.0", "state": "ready", "discovery": "udev"}
    return Status(**{**plain, "buffer": buffer, **changes})


class Patient:
    """One device: a configuration in ``directory``, and a machine below ``directory/machine`` that is planted."""

    def __init__(self, directory: Path, *, sync: bool = True, tables: str = "", pipeline: str = "") -> None:
        self.state, self.runtime, self.root = directory / "state", directory / "run", directory / "machine"
        self.words: Words = {}  # what a program says, by its name
        self.path = directory / "edged.toml"
        spool = directory / "spool"
        for place in (self.state, self.runtime, self.root, spool):
            place.mkdir(parents=True, exist_ok=True)
        model = "" if "model =" in pipeline else f'model = "{BUNDLE}"\n'
        self.path.write_text(
            f'[device]\nid = "edge-1"\nstate_dir = "{self.state}"\nruntime_dir = "{self.runtime}"\n'
            f"[http]\nport = 0\n[buffer]\nsegment_mb = 1\ncap_mb = 64\n{tables}\n"
            f'[[pipeline]]\nname = "digits"\n{model}{pipeline}\n'
            f'[[pipeline.source]]\ntype = "spool"\nname = "spool"\npath = "{spool}"\n'
            + ('[sync]\nbroker = "mqtt://localhost"\n' if sync else "")
        )

    def plant(self, name: str, text: str) -> Path:
        """Put a file into the machine."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def mounts(self, kind: str, options: str = "rw,relatime", device: str = "8:1") -> None:
        """Say what the whole machine lies on."""
        self.plant("proc/self/mountinfo", f"22 1 {device} / / {options} - {kind} /dev/mmcblk0p2 {options}\n")

    def case(self, status: Status | None = None, *, silence: str = "", thorough: bool = False) -> Case:
        """The case as doctor sees it; without a status the daemon is down."""
        case = Case(config.load(self.path), self.path, Machine(self.root, self._ask), thorough)
        vars(case)["report"] = Report(status, silence or ("" if status else "edged is not running"))
        return case

    def _ask(self, command: Sequence[str]) -> Answer:
        return self.words.get(Path(command[0]).name, Answer(None, "not installed"))


def verdicts(check: Callable[[Case], Iterator[Finding]], case: Case) -> set[Verdict]:
    """How a check ended; every finding that is not well has a hint."""
    findings = list(check(case))
    assert findings, "a check says at least one thing"
    assert all(one.hint for one in findings if one.verdict in (Verdict.WARNING, Verdict.FAILED)), findings
    return {one.verdict for one in findings}


def said(check: Callable[[Case], Iterator[Finding]], case: Case) -> str:
    """Everything that a check saw."""
    return "\n".join(finding.seen for finding in check(case))
