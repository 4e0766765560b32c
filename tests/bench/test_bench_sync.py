"""What the link costs: a backlog's rate, a fresh row's way to a subscriber, memory and processor. Decides nothing.

``python -m pytest -s --bench tests/bench/test_bench_sync.py`` prints the tables.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.broker import Broker, Ear
from tests.support.sync import BASE, Store, Sync, delivered, entry, events

pytestmark = pytest.mark.bench

BACKLOG = 20_000
FRESH = 300


def pss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@pytest.mark.parametrize("window", [1, 5, 20, 100])
def test_bench_a_backlog(tmp_path: Path, window: int) -> None:
    last = f'"seq":{BACKLOG},'.encode()
    with (
        Broker(tmp_path / "broker") as broker,
        Ear(broker, f"{BASE}/result/#") as ear,
        Store(tmp_path / "state", cap_mb=256) as store,
    ):
        store.fill(BACKLOG)
        with Sync(tmp_path, broker.url, in_flight=window) as sync:
            heard = ear.wait(lambda heard: heard and last in heard[-1].payload, 60)
            assert sync.process is not None
            cpu, pss = cpu_s(sync.process.pid), pss_mib(sync.process.pid)
    took_s = heard[-1].at - heard[0].at
    assert delivered(heard) == BACKLOG
    size = sum(len(message.payload) for message in heard)
    print(
        f"\nbacklog in_flight={window}: {BACKLOG / took_s:,.0f} rows/s in {len(heard)} messages,"
        f" {size / BACKLOG:.0f} bytes/row, {1e6 * cpu / BACKLOG:.0f} us CPU/row with the start, PSS {pss:.1f} MiB"
    )


@pytest.mark.parametrize("pause_s", [0.02, 0.2])
def test_bench_a_fresh_row(tmp_path: Path, pause_s: float) -> None:
    with (
        Broker(tmp_path / "broker") as broker,
        Ear(broker, f"{BASE}/result/#") as ear,
        Store(tmp_path / "state") as store,
        Sync(tmp_path, broker.url) as sync,
    ):
        store.commit([entry(0)])
        ear.wait(lambda heard: heard)
        assert sync.process is not None
        committed, cpu, began = {}, cpu_s(sync.process.pid), time.monotonic()
        rows = FRESH if pause_s < 0.1 else FRESH // 6
        for number in range(1, rows + 1):
            (receipt,) = store.commit([entry(number)])
            committed[receipt.seq] = time.monotonic()
            time.sleep(pause_s)
        heard = ear.wait(lambda heard: delivered(heard) == rows + 1)
        cpu, took_s = cpu_s(sync.process.pid) - cpu, time.monotonic() - began
        time.sleep(2.0)
        idle, at = cpu_s(sync.process.pid), time.monotonic()
        time.sleep(5.0)
        idle = (cpu_s(sync.process.pid) - idle) / (time.monotonic() - at)
        pss = pss_mib(sync.process.pid)
    waits = sorted(
        1e3 * (message.at - committed[row.seq])
        for message, event in zip(heard, events(heard), strict=True)
        for row in event.data.rows
        if row.seq in committed
    )
    print(
        f"\nfresh rows every {1e3 * pause_s:.0f} ms: commit to subscriber p50 {waits[len(waits) // 2]:.1f} ms,"
        f" p99 {waits[int(len(waits) * 0.99)]:.1f} ms, CPU {100 * cpu / took_s:.1f} %;"
        f" idle CPU {100 * idle:.2f} %, PSS {pss:.1f} MiB"
    )
