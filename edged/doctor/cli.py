"""``edged doctor``: examines the device and says whether it works.

Exit code: 0 it works (warnings do not change that), 1 it works in part (a check failed), 3 the daemon does not run or
does not answer, 78 the configuration cannot be used. Works as root and as a member of the group ``edged``, offline, and
with the daemon down, hanging or in safe mode.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edged import __version__
from edged.doctor.case import Case
from edged.doctor.examination import case_of, examine
from edged.doctor.findings import Examined, Finding, Verdict, exit_code, show
from edged.doctor.machine import Machine

ANSWERS = {0: "it works", 1: "it works in part: see what failed", 3: "it does not run", 78: "it is not configured"}


def run(arguments: argparse.Namespace, machine: Machine | None = None) -> int:
    """Carry out the command: text as it is found, or one JSON object at the end."""
    case = case_of(arguments.config, machine or Machine(), thorough=not arguments.quick)
    findings = []
    for finding in _found(case):
        findings.append(finding)
        if not arguments.json:
            print(*show([finding]), sep="\n", flush=True)
    examined = conclude(case, findings)
    if arguments.json:
        print(msgspec.json.encode(examined).decode())
    else:
        counts = [f"{sum(one.verdict is verdict for one in findings)} {verdict.value}" for verdict in Verdict]
        print(f"{ANSWERS[examined.code]} ({', '.join(counts)})")
    return examined.code


def examined(path: Path, *, thorough: bool, machine: Machine | None = None) -> Examined:
    """The whole examination as a value."""
    case = case_of(path, machine or Machine(), thorough=thorough)
    return conclude(case, list(_found(case)))


def conclude(case: Case | Finding, findings: list[Finding]) -> Examined:
    """What the findings say together."""
    configured = isinstance(case, Case)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Examined(
        device=case.config.device.id if isinstance(case, Case) else "",
        version=__version__,
        wall_time=now,
        code=exit_code(findings, configured=configured, answers=isinstance(case, Case) and case.status is not None),
        findings=tuple(findings),
    )


def _found(case: Case | Finding) -> Iterator[Finding]:
    if isinstance(case, Case):
        yield from examine(case)
    else:
        yield case
