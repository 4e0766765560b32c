"""Shows how the demo goes: on a terminal a block that is rewritten in place, elsewhere one line every two seconds.

Only formats what it is given.
"""

from __future__ import annotations

import sys

from edged.status import PipelineFacts, Status
from scripts.demonstration.books import Books, totals

TERMINAL_PERIOD_S = 0.25
PLAIN_PERIOD_S = 2.0
NOTHING = "…"


class Screen:
    """Shows the state of the demo every ``period_s``."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._lines = 0
        self.period_s = TERMINAL_PERIOD_S if self._terminal else PLAIN_PERIOD_S

    def say(self, text: str) -> None:
        """A line that stays."""
        print(text, flush=True)
        self._lines = 0

    def show(self, elapsed_s: float, status: Status | None, books: Books) -> None:
        """The state now."""
        if not self._terminal:
            print(_line(elapsed_s, status, books), flush=True)
            return
        block = _block(elapsed_s, status, books)
        up = f"\x1b[{self._lines}A" if self._lines else ""
        print(up + "".join(f"\x1b[K{line}\n" for line in block), end="", flush=True)
        self._lines = len(block)


def _line(elapsed_s: float, status: Status | None, books: Books) -> str:
    stored = totals(status)
    latency = _latency(status.pipelines[0]) if status and status.pipelines else NOTHING
    return (
        f"{elapsed_s:5.0f} s  received {stored.received}  committed {stored.committed}  delivered {books.delivered}"
        f"  missing {books.holes}  accuracy {_percent(books)}  latency {latency}"
    )


def _block(elapsed_s: float, status: Status | None, books: Books) -> list[str]:
    stored = totals(status)
    state = f"{status.device}: {status.state} {' '.join(status.reasons)}".strip() if status else NOTHING
    rows = {
        "device": f"{state}, {elapsed_s:.0f} s",
        "engine": _engine(status),
        "model": _model(status),
        "frames": f"received {stored.received}  rejected {stored.rejected}  dropped {stored.dropped}",
        "latency": _latency(status.pipelines[0]) if status and status.pipelines else NOTHING,
        "stored": f"{stored.committed} results{_buffer(status)}",
        "delivered": f"{books.delivered}  missing {books.holes}  doubled {books.doubled}",
        "accuracy": f"{_percent(books)} of {books.delivered}",
    }
    return ["", *(f"  {name:<10} {text}"[:110] for name, text in rows.items()), ""]


def _engine(status: Status | None) -> str:
    if not status or not status.engines:
        return NOTHING
    engine = status.engines[0]
    plan = f", {engine.plan} plan" if engine.plan else ""
    return f"{engine.name} {engine.version}{plan}: {engine.state} {engine.reason}".rstrip()


def _model(status: Status | None) -> str:
    if not status or not status.models:
        return NOTHING
    model = status.models[0]
    return f"{model.name}@{model.version}, {model.timesteps} time steps, self-test {model.selftest}"


def _latency(pipeline: PipelineFacts) -> str:
    if pipeline.latency_p50_us is None or pipeline.latency_p99_us is None:
        return NOTHING
    engine = f" (engine {_ms(pipeline.engine_p50_us)})" if pipeline.engine_p50_us is not None else ""
    return f"p50 {_ms(pipeline.latency_p50_us)}  p99 {_ms(pipeline.latency_p99_us)}{engine}"


def _buffer(status: Status | None) -> str:
    if not status or not status.buffer:
        return ""
    buffer = status.buffer
    return f" in {buffer.bytes / 1e6:.1f} of {buffer.cap_bytes / 1e6:.0f} MB, {buffer.unsent_rows} not delivered yet"


def _ms(microseconds: float) -> str:
    return f"{microseconds / 1000:.2f} ms"


def _percent(books: Books) -> str:
    return f"{100 * books.accuracy:.1f} %" if books.delivered else NOTHING
