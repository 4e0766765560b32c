"""What has passed through a pipeline, as whoever judges or shows it sees it. Frozen values only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Flow:
    """What has passed through a pipeline since the start; latencies in nanoseconds, newest last."""

    queued: int
    in_flight: Counter[str]
    latency_ns: tuple[int, ...]
    engine_ns: tuple[int, ...]
    results: int
    errors: int
    rejected: int
    last_seq: int
