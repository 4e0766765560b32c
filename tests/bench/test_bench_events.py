"""Prints how many events a second each format is decoded and binned at. Decides nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest

from edged.bundle.encoding import bin_events
from edged.bundle.manifest import EventFrames
from edged.domain import Events
from edged.sources.decode import decode
from tests.support.event_files import DAT_HEADER, aedat

EVENTS = 1_000_000
RUNS = 7
SIDE = 128  # a sensor that fits into every format
ENCODING = EventFrames(
    width=SIDE, height=SIDE, polarities=2, dt_us=10_000, t0="first_event", polarity_order="off,on",
    accumulate="count", tail="drop",
)  # fmt: skip


def recordings() -> dict[str, bytes]:
    """The same random events in every format; one in five words of the ``.aedat`` is no event, as in real ones."""
    random = np.random.default_rng(0)
    x, y, on = (random.integers(0, top, EVENTS, np.uint32) for top in (SIDE, SIDE, 2))
    t = np.sort(random.integers(0, 1 << 23, EVENTS, np.uint32))
    bytes5 = np.stack([x, y, on << 7 | t >> 16, t >> 8 & 255, t & 255], axis=1).astype(np.uint8)
    address = y << 22 | x << 12 | on << 11
    address[::5] |= np.uint32(1 << 31)
    return {
        ".bs2": bytes5.tobytes(),
        ".bin": bytes5.tobytes(),
        ".dat": DAT_HEADER + b"\x0c\x08" + np.stack([t, on << 28 | y << 14 | x], axis=1).astype("<u4").tobytes(),
        ".aedat": aedat([]) + np.stack([address, t], axis=1).astype(">u4").tobytes(),
    }


def median_s(call: Callable[[], object]) -> float:
    """The median of several runs."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@pytest.mark.bench
def test_bench_of_event_formats(capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for suffix, content in recordings().items():
        found = decode(f"a{suffix}", content)
        assert isinstance(found, Events)
        count = len(found.t_us)
        decoded = count / median_s(lambda s=suffix, c=content: decode(f"a{s}", c)) / 1e6  # type: ignore[misc]  # default
        binned = count / median_s(lambda e=found: bin_events(ENCODING, 64, e)) / 1e6  # type: ignore[misc]  # default
        lines.append(f"{suffix:8} {count:9} {decoded:10.1f} {binned:10.1f}")
    with capsys.disabled():
        print(f"\nmillion events a second, median of {RUNS} runs, one thread; binned: into frames, after decoding")
        print("format      events    decoded     binned")
        print("\n".join(lines))
