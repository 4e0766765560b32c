"""The facts about a running device, as one value: what ``edged status``, the page, ``/metrics`` and MQTT all show.

Built in one place (``app``), written to ``<runtime_dir>/status.json``, served at ``/status``. Pure data, no I/O.
"""

from __future__ import annotations

import msgspec


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One engine with one model in one worker."""

    name: str  # onnxruntime, event, tensorrt, lava
    model: str  # name@version
    state: str  # the worker's state: starting, ready, backoff, quarantined …
    reason: str = ""
    version: str = ""
    plan: str = ""
    pid: int | None = None
    restarts: int = 0
    placement: str = ""  # where several engines may run the model: serving, idle, resting, absent, unfit …
    latency_us: float | None = None  # of one golden input, as measured when the model was proved on it


class DecisionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One decision about the engines of a pipeline's model."""

    wall_time: str  # RFC 3339, UTC
    engine: str
    act: str  # try, serve, end
    reason: str


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One loaded bundle and whether it proved itself here."""

    name: str
    version: str
    digest: str
    timesteps: int
    selftest: str  # passed, failed, pending
    slot: str = ""  # of an installed model: trial, active, none (nothing may run); otherwise: directory
    signer: str = ""  # the trusted key that signed it, UNSIGNED, or that nobody asked
    trial: str = ""  # how far it has come; else which newer release was taken off, and why
    reason: str = ""


class LossFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a source has lost since the start before it was a frame, such as blocks on a line; a counter."""

    what: str
    count: int


class SourceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """received = committed + rejected + dropped, durably; ``in_flight`` are received and not ended yet.

    ``reason``: why it brings nothing. ``note``: what never reached it, where it can tell.
    """

    name: str
    kind: str
    received: int
    committed: int
    rejected: int
    dropped: int
    in_flight: int = 0
    state: str = "running"
    reason: str = ""
    note: str = ""
    losses: tuple[LossFacts, ...] = ()  # what the note tells in words, zeros too


class PipelineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies in microseconds over the last results; ``queue_limit`` is the bound of the queue."""

    name: str
    model: str
    engine: str
    results: int
    errors: int
    queued: int
    queue_limit: int
    policy: str
    latency_p50_us: float | None = None
    latency_p99_us: float | None = None
    engine_p50_us: float | None = None
    last_seq: int = 0
    share_percent: float = 100.0  # of its frames, or of its time, that it gets; less under pressure
    shed_by_pressure: int = 0  # frames dropped because of that, since the start
    sources: tuple[SourceFacts, ...] = ()
    decisions: tuple[DecisionFacts, ...] = ()  # about its engines, where there are several; the newest last


class BufferFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The store of results; ``unsent_rows`` are not acknowledged yet."""

    epoch: str
    state: str  # ok, full, failed
    reason: str = ""
    rows: int = 0
    segments: int = 0
    bytes: int = 0
    cap_bytes: int = 0
    unsent_rows: int = 0
    commit_p50_us: float | None = None
    commit_p99_us: float | None = None


class StreamLinkFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One stream on its way to the broker. ``state``: probing, flowing or held (``reason`` says by what)."""

    epoch: str
    stream: str
    acked_seq: int  # every row up to here may be unlinked
    published_seq: int  # the broker has every row up to here
    stored_seq: int
    state: str
    reason: str = ""


class LinkFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The link to the broker, as edged-sync sees it; written to ``<state_dir>/sync/status.json``.

    Rewritten at least every ten seconds: a ``wall_time`` much older means that edged-sync does not run. Counts are
    those of this process.
    """

    state: str  # connecting, connected, waiting, stopped
    reason: str = ""
    broker: str = ""
    session: str = ""
    pid: int = 0
    wall_time: str = ""  # RFC 3339, UTC
    connections: int = 0
    published_messages: int = 0
    published_rows: int = 0
    refused_messages: int = 0
    in_flight: int = 0
    backlog_rows: int = 0
    alarms: int = 0
    streams: tuple[StreamLinkFacts, ...] = ()


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One device of the table in ``udev/60-edged.hwdb`` that is here, or was lost lately."""

    name: str
    kind: str  # accelerator, gpu, event-camera, camera, sensor, serial
    state: str  # seen, probing, ready, unusable, in-use, lost, returned
    reason: str = ""
    link: str = ""  # its short name and its port
    id: str = ""  # vendor:product, on USB
    node: str = ""
    engine: str = ""  # that may run on it
    user: str = ""  # who has it
    serial: str = ""
    path: str = ""  # below /sys


class MeasureFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of how hard pressed the device is. A limit of 0 is none."""

    name: str  # temperature, memory used, memory stall, cpu stall, io stall, throttled by the hardware
    where: str
    value: float
    unit: str  # °C or %, empty where it is 1
    tight: float
    critical: float
    level: str  # that it asks for by itself


class PressureFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How hard pressed the device is, and what followed. Counts are those since the start."""

    level: str  # normal, tight, critical, off
    reason: str = ""
    since: str = ""  # RFC 3339, UTC; empty as long as it never changed
    changes: int = 0
    recycled: int = 0  # workers replaced because memory was short
    missing: str = ""  # what cannot be measured here
    power_mode: str = ""  # Jetson's
    cpu_cap_percent: float | None = None  # of its highest clock that the CPU may use
    triggers: int = 0  # of the kernel, which wake the daemon when memory stalls
    look_us: float | None = None  # how long the last look took
    measures: tuple[MeasureFacts, ...] = ()


INTEGRATED = "integrated"  # the id of a GPU that is part of the machine's chip: there is only one


class GpuFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU. A figure that nobody tells is None."""

    id: str  # its place on the bus, or INTEGRATED
    name: str
    told_by: str  # kernel, the engine whose worker has it open, or both
    load_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None  # of an integrated one: the machine's
    temperature_c: float | None = None
    clock_mhz: float | None = None


class LatestResult(msgspec.Struct, frozen=True, kw_only=True):
    """One of the last entries, for a person to look at."""

    stream: str
    seq: int
    kind: str
    source: str
    key: str
    label: str = ""
    engine: str = ""
    wall_time: str = ""  # RFC 3339, UTC
    latency_us: float | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The whole truth at one instant."""

    device: str
    version: str
    state: str  # starting, ready, degraded, failed, stopping
    reasons: tuple[str, ...] = ()
    pid: int = 0
    started_wall: str = ""  # RFC 3339, UTC
    uptime_s: float = 0.0
    wall_time: str = ""
    discovery: str = ""  # how devices are watched, or why they are not
    devices: tuple[DeviceFacts, ...] = ()
    engines: tuple[EngineFacts, ...] = ()
    models: tuple[ModelFacts, ...] = ()
    pipelines: tuple[PipelineFacts, ...] = ()
    buffer: BufferFacts | None = None
    latest: tuple[LatestResult, ...] = ()
    link: LinkFacts | None = None
    pressure: PressureFacts | None = None
    gpus: tuple[GpuFacts, ...] = ()
