"""The page, the terminal, /metrics and /status show the same facts; figures read well."""

from __future__ import annotations

import enum
import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edged import supervisor
from edged.buffer import journal
from edged.console import figures, metrics, page, terminal
from edged.console.figures import Tone
from edged.devices import states as devices
from edged.domain import Kind
from edged.status import DecisionFacts, EngineFacts, LatestResult, Status
from tests.support.status import FULL, leaves, unset

# For a person some facts are put in other words. Everything else must appear as it is.
WORDED = {
    "started_wall": "2026-11-22 05:38:11 UTC",
    "wall_time": "2026-11-23 08:50:18 UTC",
    "uptime_s": "15 min 17 s",
    "models.digest": "5f1c5f1c5f1c",  # the first 12 digits; /status and /metrics have all
    "latest.wall_time": "2026-11-21 23:59:58 UTC",
    "link.wall_time": "2026-11-20 01:02:03 UTC",
    "pressure.since": "2026-11-19 21:11:09 UTC",
    "pipelines.decisions.wall_time": "07:14:09",
}
# What is text for a person, and not a series: of these /metrics shows how many there are.
NOT_MEASURED = {
    "reasons",
    "engines.reason",
    "models.reason",
    "models.trial",
    "pipelines.sources.reason",
    "pipelines.sources.note",
    *(f"pipelines.decisions.{name}" for name in DecisionFacts.__struct_fields__),
    "devices.reason",
    "buffer.reason",
    "link.reason",
    "link.streams.reason",
    "pressure.reason",
    "pressure.missing",
    *(f"latest.{name}" for name in LatestResult.__struct_fields__),
}
MEASURED = {
    "started_wall": "1795325891",
    "wall_time": "1795423818",
    "link.wall_time": "1795136523",
    "pressure.since": "1795122669",
    "pressure.cpu_cap_percent": "0.725",  # a ratio there
    "pipelines.share_percent": "0.615",
    "gpus.load_percent": "0.865",
    "gpus.clock_mhz": "918500000",
}


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._skipped = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skipped = tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._skipped = False

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.words.append(data)


def text_of(document: str) -> str:
    parser = _Text()
    parser.feed(document)
    return "\n".join(parser.words)


def shows(surface: str, fact: str) -> bool:
    return re.search(rf"(?<![\w.@-]){re.escape(fact)}(?![\w@-])", surface) is not None


def worded(path: str, value: object) -> str:
    return WORDED.get(path) or f"{value:g}" if isinstance(value, float) else WORDED.get(path, str(value))


def test_the_sample_sets_every_field() -> None:
    assert list(unset(FULL)) == []


@pytest.mark.parametrize(
    "surface",
    [
        pytest.param(terminal.render(FULL, colour=False), id="terminal"),
        pytest.param(text_of(page.render(FULL)), id="page"),
        pytest.param(text_of(page.fragment(FULL)), id="live part of the page"),
    ],
)
def test_every_fact_is_shown_to_a_person(surface: str) -> None:
    missing = [path for path, value in leaves(FULL) if not shows(surface, worded(path, value))]
    assert missing == []


def test_every_fact_is_in_the_metrics() -> None:
    surface = metrics.render(FULL)
    for path, value in leaves(FULL):
        if path in NOT_MEASURED:
            continue
        expected = MEASURED.get(path) or (
            f"{value / 1e6:.6f}" if path.endswith("_us") else f"{value:g}" if isinstance(value, float) else str(value)
        )
        assert shows(surface, expected), path


def test_the_json_is_the_status_itself() -> None:
    assert msgspec.json.decode(msgspec.json.encode(FULL), type=Status) == FULL


@pytest.mark.parametrize("path", sorted({path for path, _ in leaves(FULL)}))
def test_a_fact_that_is_left_out_would_be_found(path: str) -> None:
    """The control of the tests above: without the fact, neither surface shows it."""
    value = next(value for leaf, value in leaves(FULL) if leaf == path)
    if sum(held == value for _, held in leaves(FULL)) > 1:
        return  # the same word stands elsewhere on purpose (a pipeline names its model and engine)
    without = terminal.render(_without(FULL, path.split(".")), colour=False)
    assert not shows(without, worded(path, value))


def _without(value: Any, path: list[str]) -> Any:
    """The same struct with one leaf emptied, in every item of a tuple."""
    if isinstance(value, tuple):
        return tuple(_without(item, path) for item in value)
    if path:
        changed = {path[0]: _without(getattr(value, path[0]), path[1:])}
        return msgspec.structs.replace(value, **changed)
    return "" if isinstance(value, str) else type(value)(0)


def test_names_cannot_inject_markup_or_terminal_codes() -> None:
    hostile = '<script>alert("x")</script>\x1b[2J\n'
    status = Status(
        device=hostile,
        version="0",
        state=hostile,
        reasons=(hostile,),
        engines=(EngineFacts(name=hostile, model=hostile, state=hostile, reason=hostile),),
        latest=(LatestResult(stream=hostile, seq=1, kind=hostile, source=hostile, key=hostile, label=hostile),),
    )
    shown = page.render(status)
    assert shown.count("<script>") == 1 and "alert(" in shown  # ours; theirs is escaped text
    text = terminal.render(status, colour=False)
    assert "\x1b" not in text
    for family in text_string_to_metric_families(metrics.render(status)):
        for sample in family.samples:
            assert set(sample.labels.values()) <= {hostile, "0", ""}


def test_metrics_are_what_prometheus_reads() -> None:
    families = {family.name: family for family in text_string_to_metric_families(metrics.render(FULL))}
    received = families["edged_source_received_frames"]
    assert received.type == "counter"
    assert [(s.name, s.labels, s.value) for s in received.samples] == [
        ("edged_source_received_frames_total", {"source": "inbox", "pipeline": "digits-lane"}, 512.0)
    ]
    ends = {s.labels["end"]: s.value for s in families["edged_source_ended_frames"].samples}
    assert sum(ends.values()) == 512
    latency = {s.labels["quantile"]: s.value for s in families["edged_pipeline_latency_seconds"].samples}
    assert latency == pytest.approx({"0.5": 311e-6, "0.99": 312e-6})
    states = {s.labels["engine"]: s.labels["state"] for s in families["edged_engine_state"].samples}
    assert states == {"onnxruntime": "ready", "event": "backoff"}
    for family in families.values():
        assert family.documentation.endswith(".")
        assert len({tuple(sorted(s.labels.items())) for s in family.samples}) == len(family.samples)


def test_what_is_not_known_has_no_sample() -> None:
    text = metrics.render(Status(device="new", version="0", state="starting"))
    assert "latency" not in text and "buffer" not in text and "start_time" not in text
    assert 'edged_state{state="starting"} 1\n' in text
    assert "edged_ready 0\n" in text


def test_an_empty_status_says_what_is_not_there() -> None:
    empty = Status(device="new", version="0", state="starting")
    for surface in (terminal.render(empty, colour=False), text_of(page.render(empty))):
        for words in (
            "No pipeline runs.",
            "No engine is loaded.",
            "No known device is here.",
            "No result yet.",
            "edged-sync has not reported yet.",
            "The buffer is not open.",
        ):
            assert words in surface


def test_colour_only_where_asked_for() -> None:
    assert "\x1b" not in terminal.render(FULL, colour=False)
    coloured = terminal.render(FULL, colour=True)
    assert "\x1b[33mdegraded\x1b[0m" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == terminal.render(FULL, colour=False)


def test_columns_are_aligned() -> None:
    lines = terminal.render(FULL, colour=False).splitlines()
    heading = next(line for line in lines if line.startswith("  engine "))
    rows = [line for line in lines if line.startswith(("  onnxruntime ", "  event "))]
    assert len(rows) == 2
    for row in rows:
        assert len(row) == len(heading)
        assert row[heading.index("version") - 1] == " "


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (None, "–"),  # noqa: RUF001 -- the sign for nothing
        (0.0, "0.00 µs"),
        (9.994, "9.99 µs"),
        (9.996, "10.0 µs"),
        (311.4, "311 µs"),
        (999.4, "999 µs"),
        (999.6, "1.00 ms"),
        (4210.9, "4.21 ms"),
        (999_400.0, "999 ms"),
        (1_800_000.0, "1.80 s"),
        (75_000_000.0, "75.0 s"),
    ],
)
def test_times_have_three_figures(us: float | None, text: str) -> None:
    assert figures.micros(us).text == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (41_223_168, "41.2 MB"),
        (1_073_741_824, "1.07 GB"),
        (10**15, "1,000 TB"),
    ],
)
def test_sizes_are_decimal(number: int, text: str) -> None:
    assert figures.size(number).text == text
    assert figures.size(number).value == number


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (61, "1 min 1 s"), (11_520, "3 h 12 min"), (97_927, "1 d 3 h")]
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert figures.duration(seconds) == text


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        ("2026-11-23T08:50:18Z", "08:50:18"),
        ("2026-11-23T08:50:18.123456+00:00", "08:50:18"),
        ("2026-11-22T08:50:18Z", "2026-11-22 08:50:18 UTC"),
        ("", "–"),  # noqa: RUF001 -- the sign for nothing
        ("soon", "soon"),
    ],
)
def test_a_moment_of_today_is_shown_without_its_date(moment: str, text: str) -> None:
    assert figures.clock(moment, "2026-11-23") == text


def test_only_troubles_are_coloured_in_counts() -> None:
    assert figures.count(0, Tone.BAD).tone is Tone.PLAIN
    assert figures.count(1, Tone.BAD).tone is Tone.BAD


def test_a_silent_sync_is_told_beside_its_last_words() -> None:
    assert "because: edged-sync has not reported for 3 d 7 h; the broker refused" in terminal.render(FULL, colour=False)
    assert FULL.link is not None
    fresh = msgspec.structs.replace(FULL.link, wall_time="2026-11-23T08:50:10Z", reason="")
    assert "has not reported" not in terminal.render(msgspec.structs.replace(FULL, link=fresh), colour=False)


@pytest.mark.parametrize("state", [*supervisor.State, *journal.State, *devices.State, *Kind])
def test_every_state_has_a_tone(state: enum.Enum) -> None:
    assert figures.tone(state.value) is not Tone.PLAIN
