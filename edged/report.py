"""Builds the Status of a running device from its parts: the one place where the facts are gathered. Pure reading."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator, Sequence

import msgspec

from edged import __version__
from edged.buffer.store import SegmentStore
from edged.config import Device
from edged.devices.watch import Watch
from edged.domain import Totals
from edged.governor import Governor
from edged.lane import Lane, Stage
from edged.status import BufferFacts, EngineFacts, LinkFacts, LossFacts, ModelFacts, PipelineFacts, SourceFacts, Status

LATEST = 20  # results shown


class Report:
    """Knows the parts and when the daemon started; ``status`` is cheap enough to be asked every second."""

    def __init__(
        self, device: Device, lanes: Sequence[Lane], store: SegmentStore, devices: Watch, governor: Governor
    ) -> None:
        self.stopping = False
        self._device = device
        self._lanes = lanes
        self._store = store
        self._devices = devices
        self._governor = governor
        self._started = time.monotonic()
        self._started_wall = _now()

    def status(self) -> Status:
        """The whole truth at this instant."""
        buffer = self._store.facts()
        totals = self._store.totals()
        state, reasons = _state(self._lanes, buffer, self._governor.reason)
        return Status(
            device=self._device.id,
            version=__version__,
            state="stopping" if self.stopping else state,
            reasons=reasons,
            pid=os.getpid(),
            started_wall=self._started_wall,
            uptime_s=round(time.monotonic() - self._started, 1),
            wall_time=_now(),
            discovery=self._devices.discovery,
            devices=self._devices.facts(),
            engines=tuple(
                facts for lane in self._lanes if lane.engine is not None for facts in lane.engine.all_facts()
            ),
            models=tuple(_model(lane) for lane in self._lanes if lane.bundle is not None),
            pipelines=tuple(_pipeline(lane, totals) for lane in self._lanes),
            buffer=buffer,
            latest=tuple(self._store.latest(LATEST)),
            link=read_link(self._device),
            pressure=self._governor.facts(),
            gpus=self._governor.gpus(),
        )

    def line(self) -> str:
        """One line for ``systemctl status``."""
        status = self.status()
        results = sum(pipeline.results for pipeline in status.pipelines)
        return "; ".join([f"{status.state}, {results} results", *status.reasons])


def read_link(device: Device) -> LinkFacts | None:
    """What edged-sync last wrote of itself; None where it never ran."""
    try:
        return msgspec.json.decode((device.sync_dir / "status.json").read_bytes(), type=LinkFacts)
    except (OSError, msgspec.MsgspecError):
        return None


def _state(lanes: Sequence[Lane], buffer: BufferFacts, pressure: str) -> tuple[str, tuple[str, ...]]:
    reasons = [pressure] if pressure else []
    reasons += [f"pipeline {lane.config.name}: {lane.reason}" for lane in lanes if lane.stage is Stage.FAILED]
    for lane in lanes:
        if lane.engine is not None and lane.stage is not Stage.FAILED:
            reasons += _engine_reasons(lane.config.name, lane.engine.facts(), lane.engine.all_facts())
        reasons += [f"source {name}: {reason}" for name, reason in lane.source_reasons.items()]
    if buffer.state != "ok":
        reasons.append(f"buffer: {buffer.state}: {buffer.reason}")
    if all(lane.stage is Stage.FAILED for lane in lanes):
        return "failed", tuple(reasons)
    if not any(lane.stage is Stage.RUNNING for lane in lanes):
        return "starting", tuple(reasons)
    return ("degraded" if reasons else "ready"), tuple(reasons)


def _engine_reasons(pipeline: str, serving: EngineFacts, engines: Sequence[EngineFacts]) -> Iterator[str]:
    """What is not well with the engine that has the frames, and which others failed."""
    for engine in engines:
        state = engine.state if engine.name == serving.name else engine.placement
        if (engine.name == serving.name and state != "ready") or state == "resting":
            what = f"engine {engine.name} of pipeline {pipeline}: {state}"
            yield f"{what}: {engine.reason}" if engine.reason else what


def _model(lane: Lane) -> ModelFacts:
    assert lane.bundle is not None
    selftest = {Stage.RUNNING: "passed", Stage.STOPPING: "passed", Stage.FAILED: "failed"}.get(lane.stage, "pending")
    return ModelFacts(
        name=lane.bundle.name,
        version=lane.bundle.version,
        digest=lane.bundle.digest,
        timesteps=lane.bundle.timesteps,
        selftest=selftest,
        slot=_slot(lane),
        signer=_signer(lane),
        trial=lane.trial,
        reason=lane.reason,
    )


def _slot(lane: Lane) -> str:
    """Where the model stands in the store, if it comes from there and may run."""
    if lane.config.bundle_dir is not None:
        return "directory"
    return lane.slot.state.value if lane.slot is not None else "none"


def _signer(lane: Lane) -> str:
    """Whose signature was verified: of a bundle directory none is asked for."""
    if lane.slot is None:
        return "not asked" if lane.config.bundle_dir is not None else ""
    return lane.slot.signer or "UNSIGNED"


def _pipeline(lane: Lane, totals: dict[str, Totals]) -> PipelineFacts:
    flow = lane.pipeline.flow() if lane.pipeline is not None else None
    engine = lane.engine.facts() if lane.engine is not None else EngineFacts(name="", model="", state="")
    sources = tuple(
        SourceFacts(
            name=source.name,
            kind=source.__struct_config__.tag if isinstance(source.__struct_config__.tag, str) else "",
            received=totals.get(source.name, Totals()).received,
            committed=totals.get(source.name, Totals()).committed,
            rejected=totals.get(source.name, Totals()).rejected,
            dropped=totals.get(source.name, Totals()).dropped,
            in_flight=flow.in_flight[source.name] if flow is not None else 0,
            state="failed" if source.name in lane.source_reasons else "running",
            reason=lane.source_reasons.get(source.name, ""),
            note=lane.source_notes.get(source.name, ""),
            losses=tuple(
                LossFacts(what=what, count=count) for what, count in lane.source_losses.get(source.name, {}).items()
            ),
        )
        for source in lane.config.source
    )
    latency = sorted(flow.latency_ns) if flow is not None else []
    return PipelineFacts(
        name=lane.config.name,
        model=f"{lane.bundle.name}@{lane.bundle.version}" if lane.bundle is not None else lane.config.model,
        engine=engine.name,
        results=flow.results if flow is not None else 0,
        errors=flow.errors if flow is not None else 0,
        queued=flow.queued if flow is not None else 0,
        queue_limit=lane.config.queue,
        policy=lane.config.policy.value,
        latency_p50_us=_quantile_us(latency, 0.5),
        latency_p99_us=_quantile_us(latency, 0.99),
        engine_p50_us=_quantile_us(sorted(flow.engine_ns), 0.5) if flow is not None else None,
        last_seq=flow.last_seq if flow is not None else 0,
        share_percent=round(lane.admission.share * 100, 1),
        shed_by_pressure=lane.admission.dropped,
        sources=sources,
        decisions=tuple(lane.engine.decisions) if lane.engine is not None else (),
    )


def _quantile_us(ordered_ns: Sequence[int], share: float) -> float | None:
    if not ordered_ns:
        return None
    return round(ordered_ns[min(len(ordered_ns) - 1, int(share * len(ordered_ns)))] / 1000, 1)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
