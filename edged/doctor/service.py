"""The services: does the daemon answer, are its units started and enabled, who runs them, were workers lost."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Iterator, Mapping

from edged import __version__
from edged.check import places
from edged.doctor.case import USER, Case
from edged.doctor.findings import Finding, failed, not_applicable, ok, warning

JOURNAL = "journalctl -u edged -n 50 says why"
AS_WHOM = f"run it as root, or as a member of the group {USER}"
WORKERS = "edged-worker-"
SHOWN = ("Id", "LoadState", "ActiveState", "SubState", "UnitFileState", "NRestarts", "Result")


def daemon(case: Case) -> Iterator[Finding]:
    """Whether the daemon answers, and what it says of itself."""
    status = case.status
    if status is None:
        if case.safe_mode:
            hint = "correct what it says: the daemon is tried again by itself; journalctl -u edged has all of it"
            yield failed("daemon", f"safe mode runs in its place: {case.safe_mode}", hint)
        elif not case.sees_all:
            yield failed("daemon", "this user may not ask it", AS_WHOM)
        elif case.pid is not None:
            hint = f"systemd's watchdog restarts it; by hand: systemctl restart edged; {JOURNAL}"
            yield failed("daemon", f"process {case.pid} is there, but does not answer: {case.report.silence}", hint)
        else:
            yield failed("daemon", case.report.silence, f"systemctl start edged; {JOURNAL}")
        return
    said = "; ".join((status.state, *status.reasons))
    if status.state == "ready":
        yield ok("daemon", f"ready for {status.uptime_s:.0f} s, process {status.pid}")
    elif status.state in ("degraded", "starting"):
        yield warning("daemon", said, "edged status shows all of it")
    else:
        yield failed("daemon", said, f"edged status shows all of it; {JOURNAL}")
    if status.version != __version__:
        hint = "systemctl restart edged: it still runs what was installed before"
        yield warning("version", f"version {status.version} runs, {__version__} is installed", hint)
    else:
        yield ok("version", f"{__version__} is installed and runs")


def units(case: Case) -> Iterator[Finding]:
    """Whether systemd has the units, runs them, and starts them after the next boot."""
    if not case.machine.has_systemd:
        yield not_applicable("units", "systemd does not run this machine")
        return
    wanted = ["edged.service", "edged.socket", *(["edged-sync.service"] if case.delivers else [])]
    packages = {engine.partition("-")[0] for one in case.config.pipeline for engine in one.engines}
    wanted += [f"{WORKERS}{package}.socket" for package in sorted(packages)]
    answer = case.machine.ask(["systemctl", "show", f"--property={','.join(SHOWN)}", *wanted])
    if not answer.succeeded:
        yield warning("units", f"systemctl gives no answer: {answer.said}", "try it by hand: systemctl status edged")
        return
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
              for block in answer.said.strip().split("\n\n")]  # fmt: skip
    for block in blocks:
        yield from _unit(block)


def _unit(block: Mapping[str, str]) -> Iterator[Finding]:
    name, state = block.get("Id", "?"), block.get("ActiveState", "?")
    enabled, restarts = block.get("UnitFileState", ""), block.get("NRestarts", "0") or "0"
    check = f"unit {name}"
    if block.get("LoadState") != "loaded" and name.startswith(WORKERS):
        yield warning(check, f"is {block.get('LoadState')}: the worker gets no cgroup of its own", "docs/install.md")
    elif block.get("LoadState") != "loaded":
        yield failed(check, f"is {block.get('LoadState', 'unknown')}", "install the package edged (docs/install.md)")
    elif state != "active":
        result = f", result {block['Result']}" if block.get("Result", "success") != "success" else ""
        hint = f"systemctl start {name}; journalctl -u {name} -n 50 says why"
        yield failed(check, f"is {state} ({block.get('SubState', '')}{result})", hint)
    elif enabled not in ("enabled", "static", "indirect", "alias", "enabled-runtime"):
        yield warning(check, f"runs, but is {enabled or 'not enabled'}", f"systemctl enable {name}, or a boot stops it")
    elif restarts.isdecimal() and int(restarts):
        yield warning(check, f"runs; systemd restarted it {restarts} times", f"journalctl -u {name} says why")
    else:
        yield ok(check, f"active, {enabled}")


def users(case: Case) -> Iterator[Finding]:
    """Whether the users and the group of the package are there, and whether we may see what the daemon keeps."""
    if not case.sees_all:
        yield warning(
            "users", f"this user may not read what the daemon keeps in {case.config.device.state_dir}", AS_WHOM
        )
        return
    if not case.machine.has_systemd and case.pid is None and not _known(USER):
        yield not_applicable("users", "no package of edged is installed, and nothing runs")
        return
    if _known(USER):
        try:
            group = grp.getgrnam(USER)
        except KeyError:
            yield failed("users", f"user {USER} is here, group {USER} is not", "systemd-sysusers makes it anew")
            return
        lacking = [name for name in (USER, "edged-sync") if _known(name) and not _is_in(name, group)]
        if lacking:
            hint = f"usermod -aG {USER} {lacking[0]}, then restart its service"
            yield failed("users", f"{', '.join(lacking)}: not in the group {USER}", hint)
            return
    yield ok("users", f"the daemon runs as user {case.who.uid}; all that it keeps can be read")


def permissions(case: Case) -> Iterator[Finding]:
    """Whether the daemon's user may use every directory and line that the configuration names."""
    findings = list(places(case.config, case.who))
    for finding in findings:
        if finding.problem:
            hint = f"chown or chmod it for the daemon's user ({case.who.uid}) or its group; then restart edged"
            yield failed("permissions", f"{finding.what}: {finding.problem}", hint)
    if not any(finding.problem for finding in findings):
        yield ok("permissions", f"user {case.who.uid} may use all {len(findings)} directories and lines")


def workers(case: Case) -> Iterator[Finding]:
    """How often workers were lost since the daemon started."""
    if case.status is None:
        yield not_applicable("workers", "the daemon does not say")
        return
    for engine in case.status.engines:
        where = f"{engine.name} with {engine.model}"
        if engine.restarts:
            hint = f"{JOURNAL}; edged status shows when"
            reason = f": {engine.reason}" if engine.reason else ""
            yield warning("workers", f"{where} was restarted {engine.restarts} times{reason}", hint)
        elif engine.state == "ready":
            yield ok("workers", f"{where}: ready, never restarted")


def _known(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _is_in(name: str, group: grp.struct_group) -> bool:
    return pwd.getpwnam(name).pw_gid == group.gr_gid or name in group.gr_mem
