"""Every check in the order in which a technician would go, and the one that looks at the configuration first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from edged import config as settings
from edged.doctor import disk, hardware, link, models, pressure, service, store
from edged.doctor.case import Case
from edged.doctor.findings import Finding, failed, ok, warning
from edged.doctor.machine import Machine
from edged.errors import ConfigError, EdgedError

Check = Callable[[Case], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    service.daemon, service.units, service.users, service.permissions, link.configured,
    disk.space, disk.mount, disk.wear, pressure.pressure, store.clocks,
    store.buffer, store.integrity, store.backlog, link.link,
    hardware.rules, hardware.devices, models.slots, service.workers, models.engines,
)  # fmt: skip


def case_of(path: Path, machine: Machine, *, thorough: bool) -> Case | Finding:
    """The case of a configuration file, or what is wrong with the file."""
    try:
        return Case(settings.load(path), path, machine, thorough)
    except ConfigError as error:
        return failed("configuration", error.message, error.hint or "edged check names every mistake with its hint")


def examine(case: Case) -> Iterator[Finding]:
    """Look at everything, one after the other. A check that cannot look says so."""
    pipelines = ", ".join(pipeline.name for pipeline in case.config.pipeline)
    yield ok("configuration", f"{case.path}: device {case.config.device.id}, pipelines {pipelines}")
    for check in CHECKS:
        try:
            yield from check(case)
        except (OSError, EdgedError) as error:
            hint = "run it as root, or as a member of the group edged"
            yield warning(check.__name__, f"cannot be looked at: {error}", hint)
