"""Whether the device is hard pressed: heat, memory, stalls, a weak supply. Measured and judged as the daemon does."""

from __future__ import annotations

from collections.abc import Iterator

from edged.doctor.case import Case
from edged.doctor.findings import Finding, failed, not_applicable, ok, warning
from edged.host.pressure import PressureReader
from edged.pressure import Kind, Level, limit_of, said

HINTS = {
    Kind.TEMPERATURE: "give it air or shade; look at the fan",
    Kind.THROTTLED: "a stronger supply, a shorter cable, fewer sticks on one port, or more air",
    Kind.MEMORY_USED: "edged status shows each worker; lower [engines.*] memory_mb, or end what else runs",
    Kind.MEMORY_STALL: "edged status shows each worker; lower [engines.*] memory_mb, or end what else runs",
}


def pressure(case: Case) -> Iterator[Finding]:
    """Every measure that reached a limit of [pressure]; one line when none did."""
    settings = case.config.pressure
    reading = PressureReader(case.machine.root, settings.temperature_ignore).read()
    if not reading.measures:
        yield not_applicable("pressure", "this machine tells neither heat nor memory")
        return
    pressing = [(one, level) for one in reading.measures
                if (level := limit_of(one, settings).level(one.value)) is not Level.NORMAL]  # fmt: skip
    for measure, level in pressing:
        finding = failed if level is Level.CRITICAL else warning
        hint = HINTS.get(measure.kind, "end what else runs on this machine")
        yield finding("pressure", f"{said(measure)}: {level.value}", hint)
    if not pressing:
        missing = f"; it does not tell: {', '.join(reading.missing)}" if reading.missing else ""
        yield ok("pressure", f"{len(reading.measures)} measures, all below their limits{missing}")
