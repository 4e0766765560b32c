"""Watches how hard pressed the device is, and sees to it that less is asked of it then.

Joins the measures (``edged.host.pressure``), the policy (``edged.pressure``), and the lanes: it sets the share of each
stream and has a worker replaced when memory is short. It looks at a steady pace, in a thread, for a sensor may be slow;
a trigger of the kernel wakes it early. Every change of level is a line in the log and a reason in the status.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import time
from collections.abc import Iterator, Sequence

import msgspec

from edged.engines.engine import WorkerEngine
from edged.hardware_config import Pressure as Settings
from edged.host.gpu import GpuReader
from edged.host.pressure import PressureReader
from edged.host.stalls import StallTriggers
from edged.lane import Lane
from edged.pressure import UNITS, Level, Measure, PressurePolicy, Reading, limit_of
from edged.status import GpuFacts, MeasureFacts, PressureFacts

log = logging.getLogger(__name__)

HURRY_S = 0.25  # between two looks at least, though the kernel sees stall after stall
OFF = "off"
FIGURES = ("load_percent", "memory_used_bytes", "memory_total_bytes", "temperature_c", "clock_mhz")


class Governor:
    """Acts on the lanes while ``run`` runs; ``facts`` are for the status."""

    def __init__(self, settings: Settings, lanes: Sequence[Lane]) -> None:
        self._settings = settings
        self._lanes = lanes
        self._policy = PressurePolicy(settings, time.monotonic())
        self._reading = Reading()
        self._gpu: GpuFacts | None = None
        self._looked_us: float | None = None
        self._since = ""
        self._recycled = 0
        self._triggers = 0

    async def run(self) -> None:
        """Look and act until cancelled; return at once where nobody wants that."""
        if not self._settings.enabled:
            return
        settings = self._settings
        reader = await asyncio.to_thread(PressureReader, settings.root, settings.temperature_ignore)
        gpu = await asyncio.to_thread(GpuReader, settings.root)
        wake = asyncio.Event()
        with self._woken_by_stalls(reader, wake):
            while True:
                self._act(await asyncio.to_thread(self._look, reader, gpu))
                await asyncio.sleep(min(HURRY_S, settings.look_every_s))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, settings.look_every_s - HURRY_S)):
                        await wake.wait()
                wake.clear()

    def facts(self) -> PressureFacts:
        """How hard pressed the device is, and what was measured last."""
        if not self._settings.enabled:
            return PressureFacts(level=OFF)
        reading, policy = self._reading, self._policy
        missing = [f"{what} is not available here" for what in reading.missing]
        return PressureFacts(
            level=policy.level.value,
            reason="; ".join(policy.reasons),
            since=self._since,
            changes=policy.changes,
            recycled=self._recycled,
            missing="; ".join(missing),
            power_mode=reading.power_mode,
            cpu_cap_percent=reading.cpu_cap_percent,
            triggers=self._triggers,
            look_us=self._looked_us,
            measures=tuple(self._measured(one) for one in reading.measures),
        )

    def gpus(self) -> tuple[GpuFacts, ...]:
        """Every GPU that somebody tells of, each once: what the kernel says, and the workers that have one open."""
        found: dict[str, GpuFacts] = {}
        for told in (self._gpu, *(engine.gpu() for _, engine in self._workers())):
            if told is not None:
                found[told.id] = _joined(found[told.id], told) if told.id in found else told
        return tuple(found.values())

    @property
    def reason(self) -> str:
        """Why the device is not well, empty if it is."""
        policy = self._policy
        return "" if policy.level is Level.NORMAL else f"pressure: {policy.level.value}: {'; '.join(policy.reasons)}"

    def _look(self, reader: PressureReader, gpu: GpuReader) -> Reading:
        began_s = time.perf_counter()
        reading = reader.read()
        self._gpu = gpu.read()
        self._looked_us = round((time.perf_counter() - began_s) * 1e6, 1)
        return reading

    def _act(self, reading: Reading) -> None:
        now_s = time.monotonic()
        self._reading = reading
        if self._policy.take(reading, now_s):
            self._since = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            extra = {"level": self._policy.level.value, "reason": "; ".join(self._policy.reasons)}
            log.warning("pressure changed", extra=extra)
        shares = self._policy.shares({lane.config.name: lane.config.priority for lane in self._lanes}, now_s)
        for lane in self._lanes:
            lane.admission.set(shares[lane.config.name], "; ".join(self._policy.reasons))
        self._recycle(now_s)

    def _recycle(self, now_s: float) -> None:
        if self._policy.level is Level.NORMAL:
            return
        engines = {f"{lane.config.name}:{engine.name}": engine for lane, engine in self._workers()}
        held = [one for name, engine in engines.items() if (one := engine.held(name)) is not None]
        chosen = self._policy.recycle(held, now_s)
        if chosen is not None:
            self._recycled += 1
            why = f"memory is short, and it grew by {chosen.grown_bytes >> 20} to {chosen.bytes >> 20} MiB"
            log.warning("worker is replaced under pressure", extra={"worker": chosen.worker, "reason": why})
            engines[chosen.worker].recycle(why)

    def _workers(self) -> Iterator[tuple[Lane, WorkerEngine]]:
        for lane in self._lanes:
            if lane.engine is not None:
                yield from ((lane, engine) for engine in lane.engine.workers())

    def _measured(self, measure: Measure) -> MeasureFacts:
        limit = limit_of(measure, self._settings)
        return MeasureFacts(
            name=measure.kind.value,
            where=measure.where,
            value=round(measure.value, 2),
            unit=UNITS.get(measure.kind, "%"),
            tight=limit.tight,
            critical=limit.critical,
            level=limit.level(measure.value).value,
        )

    @contextlib.contextmanager
    def _woken_by_stalls(self, reader: PressureReader, wake: asyncio.Event) -> Iterator[None]:
        """The kernel's triggers, where it gives us any."""
        triggers = StallTriggers(reader.trigger_files, self._settings.memory_stall_tight_percent)
        loop, self._triggers = asyncio.get_running_loop(), len(triggers)

        def on_stall() -> None:
            triggers.take()
            wake.set()

        loop.add_reader(triggers.fileno(), on_stall)
        try:
            yield
        finally:
            loop.remove_reader(triggers.fileno())
            triggers.close()


def _joined(one: GpuFacts, other: GpuFacts) -> GpuFacts:
    """Both of the same GPU: what the second tells, and of the first what the second does not."""
    known = {name: getattr(one, name) for name in FIGURES if getattr(other, name) is None}
    tellers = dict.fromkeys([*one.told_by.split(", "), other.told_by])
    return msgspec.structs.replace(other, told_by=", ".join(tellers), **known)
