"""A Status as Prometheus text: every figure, and every word that can be a label.

Rules: base units (seconds, bytes); a counter ends in ``_total``; a state is one series with the value 1 whose label
names it, and changes label when the state changes. Reasons and latest results are words for people, not series: only
their number is here. A figure that is not known yet has no sample. Source: Prometheus exposition format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from edged.console.health import is_ready
from edged.status import (
    BufferFacts,
    DeviceFacts,
    EngineFacts,
    GpuFacts,
    LinkFacts,
    ModelFacts,
    PipelineFacts,
    PressureFacts,
    Status,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HZ_PER_MHZ = 1e6
US_PER_S = 1e6  # Status counts microseconds, Prometheus seconds

Labels = Mapping[str, str]
Sample = tuple[Labels, float | None]


@dataclass(frozen=True, slots=True)
class Family:
    """All samples of one metric."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: tuple[Sample, ...]


def render(status: Status) -> str:
    """The whole exposition, ended by a line feed."""
    return "".join(_text(family) for family in families(status))


def families(status: Status) -> list[Family]:
    """Every metric of a Status."""
    return [
        *_daemon(status),
        *_pipelines(status.pipelines),
        *_sources(status.pipelines),
        *_engines(status.engines),
        *_devices(status.devices),
        *_models(status.models),
        *_buffer(status.buffer),
        *_link(status.link),
        *_pressure(status.pressure),
        *_gpus(status.gpus),
    ]


def _text(family: Family) -> str:
    lines = [
        f"{family.name}{_labels(labels)} {_number(value)}\n" for labels, value in family.samples if value is not None
    ]
    if not lines:
        return ""
    return f"# HELP {family.name} {_escape(family.help, '')}\n# TYPE {family.name} {family.kind}\n{''.join(lines)}"


def _labels(labels: Labels) -> str:
    pairs = ",".join(f'{name}="{_escape(value, chr(34))}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escape(text: str, quote: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace(quote, f"\\{quote}") if quote else escaped


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


def _gauge(name: str, text: str, samples: Iterable[Sample]) -> Family:
    return Family(f"edged_{name}", "gauge", text, tuple(samples))


def _counter(name: str, text: str, samples: Iterable[Sample]) -> Family:
    return Family(f"edged_{name}_total", "counter", text, tuple(samples))


def _daemon(status: Status) -> list[Family]:
    words = {"device": status.device, "version": status.version}
    return [
        _gauge("info", "The device and the version of its daemon.", [(words, 1)]),
        _gauge("state", "The state of the daemon.", [({"state": status.state}, 1)]),
        _gauge("ready", "1 while frames are inferred and stored.", [({}, is_ready(status))]),
        _gauge("reasons", "How many reasons there are for the state.", [({}, len(status.reasons))]),
        _gauge("pid", "Process id of the daemon.", [({}, status.pid)]),
        _gauge("start_time_seconds", "When the daemon started, by its wall clock.", [({}, _unix(status.started_wall))]),
        _gauge("time_seconds", "The daemon's wall clock.", [({}, _unix(status.wall_time))]),
        _gauge("uptime_seconds", "Time since the daemon started.", [({}, status.uptime_s)]),
        _gauge("discovery_info", "How devices are watched.", [({"discovery": status.discovery}, 1)]),
        _gauge("latest_results", "How many latest results the console shows.", [({}, len(status.latest))]),
    ]


def _pipelines(pipelines: Iterable[PipelineFacts]) -> list[Family]:
    by = [({"pipeline": one.name}, one) for one in pipelines]
    words = [
        ({"pipeline": one.name, "model": one.model, "engine": one.engine, "policy": one.policy}, 1.0) for _, one in by
    ]
    latencies = [
        ({**key, "quantile": quantile}, _seconds(figure))
        for key, one in by
        for quantile, figure in (("0.5", one.latency_p50_us), ("0.99", one.latency_p99_us))
    ]
    return [
        _gauge("pipeline_info", "The model, engine and queue policy of a pipeline.", words),
        _counter("pipeline_results", "Results stored.", [(key, one.results) for key, one in by]),
        _counter("pipeline_errors", "Frames that ended as an error result.", [(key, one.errors) for key, one in by]),
        _gauge("pipeline_queued_frames", "Frames in the queue.", [(key, one.queued) for key, one in by]),
        _gauge("pipeline_queue_limit_frames", "Bound of the queue.", [(key, one.queue_limit) for key, one in by]),
        _gauge("pipeline_last_seq", "Last sequence number of the stream.", [(key, one.last_seq) for key, one in by]),
        _gauge(
            "pipeline_share_ratio",
            "The share of its frames, or of its time, that a stream gets; less than 1 under pressure.",
            [(key, one.share_percent / 100) for key, one in by],
        ),
        _counter(
            "pipeline_shed_by_pressure_frames",
            "Frames dropped because the device was hard pressed.",
            [(key, one.shed_by_pressure) for key, one in by],
        ),
        _gauge("pipeline_latency_seconds", "From receiving a frame to its stored result.", latencies),
        _gauge(
            "pipeline_engine_seconds",
            "The engine's own time for a frame.",
            [({**key, "quantile": "0.5"}, _seconds(one.engine_p50_us)) for key, one in by],
        ),
    ]


def _sources(pipelines: Iterable[PipelineFacts]) -> list[Family]:
    by = [({"source": one.name, "pipeline": lane.name}, one) for lane in pipelines for one in lane.sources]
    ends = [
        ({**key, "end": end}, float(figure))
        for key, one in by
        for end, figure in (("committed", one.committed), ("rejected", one.rejected), ("dropped", one.dropped))
    ]
    return [
        _gauge("source_info", "The type of a source.", [({**key, "type": one.kind}, 1) for key, one in by]),
        _gauge("source_state", "The state of a source.", [({**key, "state": one.state}, 1) for key, one in by]),
        _counter("source_received_frames", "Frames received.", [(key, one.received) for key, one in by]),
        _counter("source_ended_frames", "Frames accounted for, by how they ended.", ends),
        _counter(
            "source_losses",
            "What a source lost before it was a frame, such as blocks on a line.",
            [({**key, "what": loss.what}, loss.count) for key, one in by for loss in one.losses],
        ),
        _gauge("source_in_flight_frames", "Received and not ended yet.", [(key, one.in_flight) for key, one in by]),
    ]


def _engines(engines: Iterable[EngineFacts]) -> list[Family]:
    by = [({"engine": one.name, "model": one.model}, one) for one in engines]
    words = [({**key, "version": one.version, "plan": one.plan}, 1.0) for key, one in by]
    placed = [({**key, "placement": one.placement}, 1.0) for key, one in by if one.placement]
    return [
        _gauge("engine_info", "The version of an engine and its plan for a model.", words),
        _gauge(
            "engine_state", "The state of an engine's worker.", [({**key, "state": one.state}, 1) for key, one in by]
        ),
        _gauge("engine_worker_pid", "Process id of the worker.", [(key, one.pid) for key, one in by]),
        _counter("engine_restarts", "Restarts of the worker.", [(key, one.restarts) for key, one in by]),
        _gauge("engine_placement", "Where an engine stands with a model that has several.", placed),
        _gauge(
            "engine_golden_input_seconds",
            "The engine's time for one golden input, when it proved the model.",
            [(key, _seconds(one.latency_us)) for key, one in by],
        ),
    ]


def _devices(devices: Iterable[DeviceFacts]) -> list[Family]:
    by = [({"path": one.path}, one) for one in devices]
    words = [
        ({**key, "device": one.link, "kind": one.kind, "name": one.name, "id": one.id, "serial": one.serial}, 1.0)
        for key, one in by
    ]
    used = [({**key, "node": one.node, "engine": one.engine, "user": one.user}, 1.0) for key, one in by]
    return [
        _gauge("device_info", "A device that is here or was lost lately.", words),
        _gauge("device_state", "The state of a device.", [({**key, "state": one.state}, 1) for key, one in by]),
        _gauge("device_use", "Where a device is opened, and by whom.", used),
    ]


def _models(models: Iterable[ModelFacts]) -> list[Family]:
    by = [({"model": f"{one.name}@{one.version}"}, one) for one in models]
    words = [({**key, "name": one.name, "version": one.version, "digest": one.digest}, 1.0) for key, one in by]
    slots = [({**key, "slot": one.slot, "signer": one.signer}, 1.0) for key, one in by]
    tests = [({**key, "result": one.selftest}, 1.0) for key, one in by]
    return [
        _gauge("model_info", "A loaded bundle.", words),
        _gauge("model_slot", "Where the bundle stands, and who signed it.", slots),
        _gauge("model_selftest", "Whether the bundle proved itself on this device.", tests),
        _gauge("model_timesteps", "Time steps of one inference.", [(key, one.timesteps) for key, one in by]),
    ]


def _buffer(buffer: BufferFacts | None) -> list[Family]:
    if buffer is None:
        return []
    commits = [
        ({"quantile": "0.5"}, _seconds(buffer.commit_p50_us)),
        ({"quantile": "0.99"}, _seconds(buffer.commit_p99_us)),
    ]
    return [
        _gauge("buffer_info", "The epoch under which sequence numbers are counted.", [({"epoch": buffer.epoch}, 1)]),
        _gauge("buffer_state", "The state of the store of results.", [({"state": buffer.state}, 1)]),
        _gauge("buffer_rows", "Rows held.", [({}, buffer.rows)]),
        _gauge("buffer_unsent_rows", "Rows not acknowledged yet.", [({}, buffer.unsent_rows)]),
        _gauge("buffer_segments", "Database files held.", [({}, buffer.segments)]),
        _gauge("buffer_bytes", "Bytes on disk.", [({}, buffer.bytes)]),
        _gauge("buffer_limit_bytes", "The most bytes that it may take.", [({}, buffer.cap_bytes)]),
        _gauge("buffer_commit_seconds", "Time of a commit.", commits),
    ]


def _link(link: LinkFacts | None) -> list[Family]:
    if link is None:
        return []
    words = {"broker": link.broker, "session": link.session}
    by = [({"stream": one.stream, "epoch": one.epoch}, one) for one in link.streams]
    seqs = [
        ({**key, "point": point}, float(seq))
        for key, one in by
        for point, seq in (("stored", one.stored_seq), ("published", one.published_seq), ("acked", one.acked_seq))
    ]
    return [
        _gauge("link_info", "The broker and the session with it.", [(words, 1)]),
        _gauge("link_state", "The state of the link, as edged-sync last told.", [({"state": link.state}, 1)]),
        _gauge("link_told_time_seconds", "When edged-sync last told.", [({}, _unix(link.wall_time))]),
        _gauge("link_pid", "Process id of edged-sync.", [({}, link.pid)]),
        _counter("link_connections", "Connections to the broker.", [({}, link.connections)]),
        _counter("link_published_messages", "Messages that the broker has.", [({}, link.published_messages)]),
        _counter("link_published_rows", "Rows that the broker has.", [({}, link.published_rows)]),
        _counter("link_refused_messages", "Messages that the broker refused.", [({}, link.refused_messages)]),
        _gauge("link_in_flight_messages", "Messages sent and not confirmed yet.", [({}, link.in_flight)]),
        _gauge("link_backlog_rows", "Rows that wait to be sent.", [({}, link.backlog_rows)]),
        _counter("link_alarms", "Alarms of the link.", [({}, link.alarms)]),
        _gauge("link_stream_state", "The state of a stream.", [({**key, "state": one.state}, 1) for key, one in by]),
        _gauge("link_stream_seq", "How far a stream is stored, published and acknowledged.", seqs),
    ]


def _pressure(pressure: PressureFacts | None) -> list[Family]:
    if pressure is None:
        return []
    by = [({"measure": one.name, "where": one.where, "unit": one.unit}, one) for one in pressure.measures]
    cap = None if pressure.cpu_cap_percent is None else pressure.cpu_cap_percent / 100
    mode = [({"mode": pressure.power_mode}, 1.0)] if pressure.power_mode else []
    return [
        _gauge("pressure_state", "How hard pressed the device is.", [({"level": pressure.level}, 1)]),
        _gauge("pressure_since_time_seconds", "When that changed last.", [({}, _unix(pressure.since))]),
        _counter("pressure_changes", "Changes of that level.", [({}, pressure.changes)]),
        _counter("pressure_recycled_workers", "Workers replaced for want of memory.", [({}, pressure.recycled)]),
        _gauge("pressure_measure", "What is measured, in its unit.", [(key, one.value) for key, one in by]),
        _gauge(
            "pressure_tight_limit", "Where it makes the device tight.", [(key, one.tight or None) for key, one in by]
        ),
        _gauge("pressure_critical_limit", "Where critical.", [(key, one.critical or None) for key, one in by]),
        _gauge(
            "pressure_measure_state",
            "The level that a measure asks for by itself.",
            [({"measure": one.name, "where": one.where, "level": one.level}, 1) for _, one in by],
        ),
        _gauge("pressure_triggers", "Triggers of the kernel that wake the daemon.", [({}, pressure.triggers)]),
        _gauge("pressure_look_seconds", "How long the last look took.", [({}, _seconds(pressure.look_us))]),
        _gauge("power_mode", "The power mode of the device.", mode),
        _gauge("cpu_clock_cap_ratio", "Of its highest clock that the CPU may use.", [({}, cap)]),
    ]


def _gpus(gpus: Iterable[GpuFacts]) -> list[Family]:
    by = [({"gpu": one.id}, one) for one in gpus]
    words = [({"gpu": one.id, "name": one.name, "told_by": one.told_by}, 1.0) for _, one in by]
    load = [(key, None if one.load_percent is None else one.load_percent / 100) for key, one in by]
    clock = [(key, None if one.clock_mhz is None else one.clock_mhz * HZ_PER_MHZ) for key, one in by]
    return [
        _gauge("gpu_info", "A GPU, and who tells of it.", words),
        _gauge("gpu_load_ratio", "The share of the time that a GPU computes.", load),
        _gauge("gpu_memory_used_bytes", "Memory in use.", [(key, one.memory_used_bytes) for key, one in by]),
        _gauge(
            "gpu_memory_bytes", "All memory that a GPU can use.", [(key, one.memory_total_bytes) for key, one in by]
        ),
        _gauge("gpu_temperature_celsius", "Temperature.", [(key, one.temperature_c) for key, one in by]),
        _gauge("gpu_clock_hertz", "The clock that a GPU runs at.", clock),
    ]


def _seconds(us: float | None) -> float | None:
    return None if us is None else us / US_PER_S


def _unix(rfc3339: str) -> float | None:
    return datetime.fromisoformat(rfc3339).timestamp() if rfc3339 else None
