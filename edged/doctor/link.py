"""The link to the broker, as edged-sync tells it. No network is used: an offline device is a working one."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator
from pathlib import Path

from edged.console.facts import SILENCE_S
from edged.doctor.case import Case
from edged.doctor.findings import Finding, failed, not_applicable, ok, warning
from edged.report import read_link

JOURNAL = "journalctl -u edged-sync -n 50 says why"


def configured(case: Case) -> Iterator[Finding]:
    """Whether edged-sync takes its own part of the configuration."""
    if not case.delivers:
        yield not_applicable("sync configuration", "there is no [sync]: nothing is delivered")
        return
    command = Path(sys.executable).with_name("edged-sync")
    words = [str(command)] if command.exists() else [sys.executable, "-m", "cloud_sync.device"]
    answer = case.machine.ask([*words, "check", "--config", str(case.path)])
    if answer.succeeded:
        yield ok("sync configuration", answer.said)
    elif answer.code is None:
        yield warning("sync configuration", f"edged-sync cannot be asked: {answer.said}", "reinstall the package")
    else:
        yield failed("sync configuration", answer.said, "correct [sync], then systemctl restart edged-sync")


def link(case: Case) -> Iterator[Finding]:
    """Whether edged-sync runs, has the broker, and gets rid of what it sends."""
    if not case.delivers:
        yield not_applicable("link", "there is no [sync]: nothing is delivered")
        return
    facts = read_link(case.config.device)
    if facts is None:
        yield failed("link", "edged-sync never ran here", f"systemctl enable --now edged-sync; {JOURNAL}")
        return
    silent_s = _age_s(facts.wall_time)
    if facts.state == "stopped" or abs(silent_s) > SILENCE_S:
        yield failed("link", f"edged-sync does not run; its last word was {facts.state} at {facts.wall_time}",
                     f"systemctl start edged-sync; {JOURNAL}")  # fmt: skip
        return
    where = f"{facts.broker}: {facts.state}"
    if facts.state != "connected":
        hint = "results are kept until the broker is back: look at the cable, the route, the broker's name and login"
        yield warning("link", f"{where}: {facts.reason}", hint)
        return
    held = [f"{one.stream}: {one.reason}" for one in facts.streams if one.state == "held"]
    if held or facts.alarms:
        yield warning("link", f"{where}; {facts.alarms} alarms; {'; '.join(held) or facts.reason}",
                      f"the broker's ACL and limits decide what it takes; {JOURNAL}")  # fmt: skip
    else:
        yield ok("link", f"{where}, {facts.backlog_rows} rows wait")


def _age_s(wall_time: str) -> float:
    """Seconds since a moment of RFC 3339; endless where it is none."""
    try:
        return (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(wall_time)).total_seconds()
    except (ValueError, TypeError):
        return float("inf")
