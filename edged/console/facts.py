"""A Status in words and figures for a person: the one source of what the page and ``edged status`` show.

Rules: every fact of a Status is in a heading, a cell, or a row's note. Text is plain; the page escapes it and the
terminal aligns it. Decides nothing but the tone of a word, and holds no markup.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from edged.console.figures import NOTHING, Cell, Tone, clock, count, duration, figure, micros, percent, size, tone
from edged.status import (
    BufferFacts,
    DeviceFacts,
    EngineFacts,
    GpuFacts,
    LatestResult,
    LinkFacts,
    ModelFacts,
    PipelineFacts,
    PressureFacts,
    SourceFacts,
    Status,
    StreamLinkFacts,
)

DIGEST_SHOWN = 12  # hex digits: enough to tell bundles apart at a glance; /status has all 64
WHOLE = 100.0  # percent
SILENCE_S = 30.0  # edged-sync writes at least every ten seconds


@dataclass(frozen=True, slots=True)
class Row:
    """Facts under the headings of a table; ``note`` says why they are so, where there is something to say."""

    cells: tuple[Cell, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one kind. The first heading is that of the row's name; ``empty`` is shown when there are none."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    empty: str


def summary(status: Status) -> tuple[tuple[str, str], ...]:
    """Heading and text of the facts about the daemon itself, beside its device, state and reasons."""
    return (
        ("up", duration(status.uptime_s)),
        ("since", clock(status.started_wall)),
        ("version", status.version),
        ("pid", str(status.pid)),
        ("now", clock(status.wall_time)),
        ("devices", status.discovery or NOTHING),
    )


def tables(status: Status) -> tuple[Table, ...]:
    """All other facts, the most asked-for first."""
    today = status.wall_time[:10]
    return (
        _pipelines(status.pipelines),
        _sources(status.pipelines),
        _latest(status.latest, today),
        _engines(status.engines),
        _decisions(status.pipelines, today),
        _devices(status.devices),
        _models(status.models),
        _pressure(status.pressure, today),
        _measures(status.pressure),
        _gpus(status.gpus),
        _buffer(status.buffer),
        _link(status.link, status.wall_time),
        _streams(status.link.streams if status.link else ()),
    )


def _pipelines(pipelines: Iterable[PipelineFacts]) -> Table:
    headings = ("pipeline", "model", "engine", "results", "errors", "queue", "when full")
    figures = ("latency p50", "latency p99", "engine p50", "last seq", "share", "shed by pressure")
    rows = [
        Row(
            (
                Cell(one.name),
                Cell(one.model),
                Cell(one.engine or NOTHING),
                count(one.results),
                count(one.errors, Tone.BAD),
                Cell(f"{one.queued} of {one.queue_limit}", one.queued, _fullness(one)),
                Cell(one.policy),
                micros(one.latency_p50_us),
                micros(one.latency_p99_us),
                micros(one.engine_p50_us),
                count(one.last_seq),
                percent(one.share_percent, Tone.WARN if one.share_percent < WHOLE else Tone.PLAIN),
                count(one.shed_by_pressure, Tone.WARN),
            )
        )
        for one in pipelines
    ]
    return Table("Pipelines", headings + figures, tuple(rows), "No pipeline runs.")


def _fullness(pipeline: PipelineFacts) -> Tone:
    return Tone.WARN if pipeline.queued >= pipeline.queue_limit else Tone.PLAIN


def _sources(pipelines: Iterable[PipelineFacts]) -> Table:
    headings = ("source", "pipeline", "type", "state", "received", "committed", "rejected", "dropped", "in flight")
    rows = [_source(source, pipeline.name) for pipeline in pipelines for source in pipeline.sources]
    return Table("Sources", headings, tuple(rows), "No source is configured.")


def _source(one: SourceFacts, pipeline: str) -> Row:
    return Row(
        (
            Cell(one.name),
            Cell(pipeline),
            Cell(one.kind),
            Cell(one.state, tone=tone(one.state)),
            count(one.received),
            count(one.committed),
            count(one.rejected, Tone.WARN),
            count(one.dropped, Tone.WARN),
            count(one.in_flight),
        ),
        "; ".join(told for told in (one.reason, one.note, *_untold(one)) if told),
    )


def _untold(source: SourceFacts) -> list[str]:
    """What was lost and the source's own note does not say."""
    lost = [f"{loss.what}: {loss.count}" for loss in source.losses if loss.count]
    return [words for words in lost if words not in source.note]


def _latest(results: Iterable[LatestResult], today: str) -> Table:
    headings = ("time", "stream", "seq", "end", "label", "source", "frame", "engine", "latency")
    rows = [
        Row(
            (
                Cell(clock(one.wall_time, today)),
                Cell(one.stream),
                count(one.seq),
                Cell(one.kind, tone=tone(one.kind)),
                Cell(one.label or NOTHING),
                Cell(one.source),
                Cell(one.key or NOTHING),
                Cell(one.engine or NOTHING),
                micros(one.latency_us),
            )
        )
        for one in results
    ]
    return Table("Latest results", headings, tuple(rows), "No result yet.")


def _engines(engines: Iterable[EngineFacts]) -> Table:
    headings = ("engine", "model", "state", "placement", "version", "plan", "pid", "restarts", "one input")
    rows = [
        Row(
            (
                Cell(one.name),
                Cell(one.model),
                Cell(one.state, tone=tone(one.state)),
                Cell(one.placement or NOTHING, tone=tone(one.placement)),
                Cell(one.version or NOTHING),
                Cell(one.plan or NOTHING),
                Cell(NOTHING if one.pid is None else str(one.pid), one.pid),
                count(one.restarts, Tone.WARN),
                micros(one.latency_us),
            ),
            one.reason,
        )
        for one in engines
    ]
    return Table("Engines", headings, tuple(rows), "No engine is loaded.")


def _decisions(pipelines: Iterable[PipelineFacts], today: str) -> Table:
    headings = ("time", "pipeline", "engine", "decided", "because")
    rows = [
        Row(
            (
                Cell(clock(one.wall_time, today)),
                Cell(pipeline.name),
                Cell(one.engine),
                Cell(one.act),
                Cell(one.reason),
            )
        )
        for pipeline in pipelines
        for one in reversed(pipeline.decisions)
    ]
    return Table("Where models were placed", headings, tuple(rows), "No pipeline has a choice of engines.")


def _devices(devices: Iterable[DeviceFacts]) -> Table:
    headings = ("device", "kind", "state", "name", "id", "serial", "node", "engine", "used by", "path")
    rows = [
        Row(
            (
                Cell(one.link or NOTHING),
                Cell(one.kind),
                Cell(one.state, tone=tone(one.state)),
                Cell(one.name or NOTHING),
                Cell(one.id or NOTHING),
                Cell(one.serial or NOTHING),
                Cell(one.node or NOTHING),
                Cell(one.engine or NOTHING),
                Cell(one.user or NOTHING),
                Cell(one.path or NOTHING),
            ),
            one.reason,
        )
        for one in devices
    ]
    return Table("Devices", headings, tuple(rows), "No known device is here.")


def _models(models: Iterable[ModelFacts]) -> Table:
    headings = ("model", "version", "self-test", "slot", "signed by", "note", "time steps", "digest")
    rows = [
        Row(
            (
                Cell(one.name),
                Cell(one.version),
                Cell(one.selftest, tone=tone(one.selftest)),
                Cell(one.slot or NOTHING, tone=tone(one.slot)),
                Cell(one.signer or NOTHING, tone=tone(one.signer)),
                Cell(one.trial or NOTHING),
                count(one.timesteps),
                Cell(one.digest[:DIGEST_SHOWN] or NOTHING),
            ),
            one.reason,
        )
        for one in models
    ]
    return Table("Models", headings, tuple(rows), "No model is loaded.")


def _pressure(pressure: PressureFacts | None, today: str) -> Table:
    headings = ("pressure", "since", "changes", "workers replaced", "power mode", "CPU clock", "triggers", "one look")
    rows = () if pressure is None else (_pressed(pressure, today),)
    return Table("Pressure", headings, rows, "Nobody looks how hard pressed the device is.")


def _pressed(one: PressureFacts, today: str) -> Row:
    return Row(
        (
            Cell(one.level, tone=tone(one.level)),
            Cell(clock(one.since, today)),
            count(one.changes),
            count(one.recycled, Tone.WARN),
            Cell(one.power_mode or NOTHING),
            Cell(NOTHING) if one.cpu_cap_percent is None else percent(one.cpu_cap_percent),
            count(one.triggers),
            micros(one.look_us),
        ),
        "; ".join(told for told in (one.reason, one.missing) if told),
    )


def _measures(pressure: PressureFacts | None) -> Table:
    headings = ("measured", "where", "asks for", "now", "unit", "slows from", "alarms from")
    rows = [
        Row(
            (
                Cell(one.name),
                Cell(one.where),
                Cell(one.level, tone=tone(one.level)),
                figure(one.value),
                Cell(one.unit or NOTHING),
                figure(one.tight) if one.tight else Cell(NOTHING),
                figure(one.critical) if one.critical else Cell(NOTHING),
            )
        )
        for one in (pressure.measures if pressure is not None else ())
    ]
    return Table("What presses", headings, tuple(rows), "Nothing is measured.")


def _gpus(gpus: Iterable[GpuFacts]) -> Table:
    headings = ("GPU", "name", "load", "memory used", "memory", "degrees Celsius", "clock MHz", "told by")
    rows = [
        Row(
            (
                Cell(one.id),
                Cell(one.name),
                Cell(NOTHING) if one.load_percent is None else percent(one.load_percent),
                Cell(NOTHING) if one.memory_used_bytes is None else size(one.memory_used_bytes),
                Cell(NOTHING) if one.memory_total_bytes is None else size(one.memory_total_bytes),
                Cell(NOTHING) if one.temperature_c is None else figure(one.temperature_c),
                Cell(NOTHING) if one.clock_mhz is None else figure(one.clock_mhz),
                Cell(one.told_by),
            )
        )
        for one in gpus
    ]
    return Table("GPUs", headings, tuple(rows), "Nobody tells of a GPU.")


def _buffer(buffer: BufferFacts | None) -> Table:
    headings = ("epoch", "state", "rows", "unsent", "segments", "size", "limit", "commit p50", "commit p99")
    rows = () if buffer is None else (_store(buffer),)
    return Table("Buffer", headings, rows, "The buffer is not open.")


def _store(one: BufferFacts) -> Row:
    return Row(
        (
            Cell(one.epoch),
            Cell(one.state, tone=tone(one.state)),
            count(one.rows),
            count(one.unsent_rows),
            count(one.segments),
            size(one.bytes),
            size(one.cap_bytes),
            micros(one.commit_p50_us),
            micros(one.commit_p99_us),
        ),
        one.reason,
    )


def _link(link: LinkFacts | None, now: str) -> Table:
    headings = ("broker", "state", "session", "pid", "told", "connections", "messages", "rows")
    counts = ("refused", "in flight", "backlog", "alarms")
    rows = () if link is None else (_broker(link, now),)
    return Table("Link", headings + counts, rows, "edged-sync has not reported yet.")


def _broker(one: LinkFacts, now: str) -> Row:
    silent_s = _between_s(one.wall_time, now)
    silent = "" if silent_s <= SILENCE_S else f"edged-sync has not reported for {duration(silent_s)}"
    return Row(
        (
            Cell(one.broker or NOTHING),
            Cell(one.state, tone=Tone.WARN if silent else tone(one.state)),
            Cell(one.session or NOTHING),
            Cell(str(one.pid), one.pid),
            Cell(clock(one.wall_time, now[:10])),
            count(one.connections),
            count(one.published_messages),
            count(one.published_rows),
            count(one.refused_messages, Tone.WARN),
            count(one.in_flight),
            count(one.backlog_rows),
            count(one.alarms, Tone.BAD),
        ),
        "; ".join(why for why in (silent, one.reason) if why),
    )


def _streams(streams: Iterable[StreamLinkFacts]) -> Table:
    headings = ("stream", "state", "stored seq", "published seq", "acked seq", "epoch")
    rows = [
        Row(
            (
                Cell(one.stream),
                Cell(one.state, tone=tone(one.state)),
                count(one.stored_seq),
                count(one.published_seq),
                count(one.acked_seq),
                Cell(one.epoch),
            ),
            one.reason,
        )
        for one in streams
    ]
    return Table("Streams on the link", headings, tuple(rows), "No stream is on its way.")


def _between_s(earlier: str, later: str) -> float:
    """Seconds between two RFC 3339 moments; 0 where one is not known."""
    if not earlier or not later:
        return 0.0
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
