"""What an examination finds, as values, and what the command's exit code says about it. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator

import msgspec

WORKS, WORKS_IN_PART, DOES_NOT_RUN, MISCONFIGURED = 0, 1, 3, 78  # those of ``edged status``; EX_CONFIG of sysexits.h


class Verdict(enum.Enum):
    """How one check ended."""

    OK = "ok"
    WARNING = "warning"  # it works; somebody should look
    FAILED = "failed"  # something that is configured does not work
    NOT_APPLICABLE = "not applicable"  # there is no such thing here


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line: what was looked at, how it is, and what to do about it."""

    check: str
    verdict: Verdict
    seen: str
    hint: str = ""


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """The whole examination, as ``--json`` prints it."""

    device: str
    version: str
    wall_time: str  # RFC 3339, UTC
    code: int
    findings: tuple[Finding, ...]


def ok(check: str, seen: str) -> Finding:
    """All is well."""
    return Finding(check=check, verdict=Verdict.OK, seen=seen)


def warning(check: str, seen: str, hint: str) -> Finding:
    """It works, but not as well as it should, or not for long."""
    return Finding(check=check, verdict=Verdict.WARNING, seen=seen, hint=hint)


def failed(check: str, seen: str, hint: str) -> Finding:
    """It does not work."""
    return Finding(check=check, verdict=Verdict.FAILED, seen=seen, hint=hint)


def not_applicable(check: str, seen: str) -> Finding:
    """There is nothing to look at."""
    return Finding(check=check, verdict=Verdict.NOT_APPLICABLE, seen=seen)


def exit_code(findings: Iterable[Finding], *, configured: bool, answers: bool) -> int:
    """Is it working? Warnings alone do not change the answer."""
    if not configured:
        return MISCONFIGURED
    if not answers:
        return DOES_NOT_RUN
    return WORKS_IN_PART if any(finding.verdict is Verdict.FAILED for finding in findings) else WORKS


def show(findings: Iterable[Finding]) -> Iterator[str]:
    """Lines for a person."""
    for finding in findings:
        yield f"{finding.verdict.value:15}{finding.check:20}{_one_line(finding.seen)}"
        if finding.hint:
            yield f"{'':35}hint: {_one_line(finding.hint)}"


def _one_line(text: str) -> str:
    """What a device or a file calls itself cannot move a terminal's cursor."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(plain.split())
