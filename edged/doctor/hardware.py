"""What is plugged in: udev's rules and table, each known device, each device that an engine needs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from edged.config import Config
from edged.console.cli import Report
from edged.devices import udev
from edged.devices.watch import Watch
from edged.doctor.case import Case
from edged.doctor.findings import Finding, failed, not_applicable, ok, warning
from edged.status import DeviceFacts

SURVEY_S = 20.0  # a USB stick that hangs takes a second to be asked; nobody has more than a handful
KNOWN_KEY, KNOWN_WORD = "usb:v18D1p9302", "EDGED_KIND"  # in udev/60-edged.hwdb since its first version


def rules(case: Case) -> Iterator[Finding]:
    """Whether udev knows the devices of our table."""
    if not (case.machine.root / "run/udev").is_dir():
        yield not_applicable("udev rules", "udev does not run here; devices are handed in from outside")
        return
    problem = udev.remark()
    if problem:
        yield failed("udev rules", problem, "install the package, or copy udev/* and run: udevadm control --reload")
        return
    answer = case.machine.ask(["systemd-hwdb", "query", KNOWN_KEY])
    if answer.succeeded and KNOWN_WORD not in answer.said:
        yield failed("udev rules", "the rules are there, but the table of devices is not in effect",
                     "sudo systemd-hwdb update && sudo udevadm trigger")  # fmt: skip
        return
    yield ok("udev rules", f"{udev.RULES} and the table of devices are in effect")


def devices(case: Case) -> Iterator[Finding]:
    """Each known device, and each that an engine of the configuration needs."""
    facts, discovery, lacking = look(case.config, case.report)
    if discovery.startswith("off"):
        yield warning("devices", discovery, "edged devices shows what can be seen here")
    for one in facts:
        where = one.link or one.name or one.path
        if one.state in ("ready", "in-use"):
            yield ok("devices", f"{where}: {one.state}" + (f" ({one.reason})" if one.reason else ""))
        else:
            yield warning("devices", f"{where}: {one.state}: {one.reason}", "edged devices; docs/devices.md")
    for engine, reason in lacking.items():
        hint = "look at its plug and its cable; edged devices --follow shows it come"
        yield failed("devices", f"engine {engine}: {reason}", hint)
    if not facts and not lacking and not discovery.startswith("off"):
        yield not_applicable("devices", "no known device is here, and none is configured")


def look(config: Config, report: Report) -> tuple[tuple[DeviceFacts, ...], str, dict[str, str]]:
    """The devices, how they are watched, and which engine lacks its own: as the daemon says, else by our own eyes."""
    needed = {name: config.engines.device(name) for one in config.pipeline for name in one.engines}
    needed = {name: wanted for name, wanted in needed.items() if wanted}
    if report.status is not None and not report.silence:
        absent = {one.name: one.reason for one in report.status.engines if one.placement == "absent"}
        return report.status.devices, report.status.discovery, {name: absent[name] for name in needed if name in absent}
    watch = asyncio.run(_survey(config))
    missing = {name: watch.missing(wanted) for name, wanted in needed.items()}
    return watch.facts(), watch.discovery, {name: reason for name, reason in missing.items() if reason}


async def _survey(config: Config) -> Watch:
    watch = Watch(boards=config.board)
    task = asyncio.create_task(watch.run(), name="devices")
    try:
        async with asyncio.timeout(SURVEY_S):
            await watch.surveyed.wait()
    except TimeoutError:
        watch.discovery = f"off: a device did not answer within {SURVEY_S:g} s"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return watch
