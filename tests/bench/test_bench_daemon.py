"""What the daemon costs beside the engine: time a frame, commits, start-up, memory. Prints a table, decides nothing.

``scripts/test --bench tests/bench/test_bench_daemon.py``
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest

from edged.app import store_settings
from edged.buffer.reader import BufferReader
from edged.buffer.store import SegmentStore
from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.plans import WINDOWS, ensure_plans
from edged.config import validate
from edged.domain import Entry, Kind, Receipt
from edged.engines.engine import WorkerEngine
from edged.engines.life import Job, WorkerSpec
from edged.pipeline import Pipeline
from edged.sources.spool import SpoolSource
from models.digits.data import Images, held_out
from tests.support.broker import Broker
from tests.support.device import BUNDLE, Device, pss_mb, wait_until
from tests.support.parts import require

FRAMES = 1000
ROUNDS = 5
BATCH = 8


class TimedStore(SegmentStore):
    """Notes when each group was handed to commit and how long it took."""

    calls: list[tuple[int, int, int]]  # (called at, ns until stored, results)

    async def commit(self, entries: Sequence[Entry]) -> list[Receipt]:
        called = time.perf_counter_ns()
        receipts = await super().commit(entries)
        results = sum(entry.kind is Kind.RESULT for entry in entries)
        self.calls.append((called, time.perf_counter_ns() - called, results))
        return receipts


def bare(plan: Path, images: Images, bundle: Bundle) -> float:
    """Microseconds a frame of ONNX Runtime alone, on the plan's batches, in this process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(plan), options, providers=["CPUExecutionProvider"])
    name = bundle.inputs[0].name
    samples = [bundle.encode(image)[name] for image in images[:BATCH]]
    batch = {name: np.stack(samples)}
    session.run(None, batch)
    taken = []
    for _ in range(FRAMES // BATCH):
        began = time.perf_counter_ns()
        session.run(None, batch)
        taken.append((time.perf_counter_ns() - began) / BATCH / 1000)
    return statistics.median(taken)


async def burst(directory: Path, bundle: Bundle, plans: Path, images: Images) -> dict[str, list[float]]:
    """A spool of FRAMES files through source, pipeline, worker and store. Figures in microseconds a frame."""
    spool = directory / "spool"
    spool.mkdir(parents=True)
    for number in range(FRAMES):
        np.save(spool / f"{number:05d}.npy", images[number % len(images)])
    table = {
        "device": {"id": "bench", "state_dir": "state", "runtime_dir": "run"},
        "pipeline": [
            {"name": "bench", "model": str(BUNDLE), "source": [{"type": "spool", "name": "spool", "path": "spool"}]}
        ],
    }
    engine = WorkerEngine(WorkerSpec("onnxruntime"), Job(bundle, BATCH, plans, directory.parent / "cache"))
    engine_us: list[float] = []
    async with TimedStore(store_settings(validate(table, directory)), "bench") as store:
        store.calls = []
        pipeline = Pipeline("bench", bundle, engine, store, queue_limit=FRAMES)
        supervision = asyncio.create_task(engine.run())
        await engine.wait_ready()
        feeding = asyncio.create_task(SpoolSource("spool", spool, 1.0).run(pipeline))
        while pipeline.flow().queued < FRAMES:  # every frame is received and queued before the first is inferred
            await asyncio.sleep(0.01)
        working = asyncio.create_task(pipeline.run())
        while pipeline.flow().results < FRAMES:
            await asyncio.sleep(0.01)
        engine_us = [ns / 1000 for ns in pipeline.flow().engine_ns]
        for task in (feeding, working, supervision):
            task.cancel()
        await asyncio.gather(feeding, working, supervision, return_exceptions=True)
    engine_p50 = statistics.median(engine_us)
    beside = [
        (this[0] - last[0]) / this[2] / 1000 - engine_p50
        for last, this in zip(store.calls, store.calls[1:], strict=False)
        if this[2]
    ]
    return {"engine": engine_us, "beside": beside, "commit": [took / 1000 for _, took, _ in store.calls]}


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_time_a_frame_beside_the_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = held_out()[0]
    bundle = open_bundle(BUNDLE)
    plans = asyncio.run(ensure_plans(bundle, tmp_path / "cache"))
    alone: dict[str, list[float]] = {name: [] for name in WINDOWS}
    found: dict[str, list[float]] = {"engine": [], "beside": [], "commit": []}
    p50 = []
    for number in range(ROUNDS):
        for name, file in WINDOWS.items():
            alone[name].append(bare(plans / file, images, bundle))
        measured = asyncio.run(burst(tmp_path / f"round{number}", bundle, plans, images))
        p50.append(statistics.median(measured["beside"]))
        for key, values in measured.items():
            found[key] += values
    with capsys.disabled():
        print(
            f"\n{FRAMES} queued digits, T = {bundle.timesteps}, batches of {BATCH}, {ROUNDS} rounds A B A B; µs a frame"
        )
        print(f"  {'':44}{'p50':>9}{'p99':>9}")
        for name, values in alone.items():
            print(f"  {'ONNX Runtime alone, ' + name:44}{statistics.median(values):9.1f}")
        print(
            f"  {'engine, in the worker':44}{quantile(found['engine'], 0.5):9.1f}{quantile(found['engine'], 0.99):9.1f}"
        )
        print(f"  {'beside the engine, received to commit call':44}{statistics.median(p50):9.1f}", end="")
        print(f"{quantile(found['beside'], 0.99):9.1f}   (goal: p50 ≤ 150)")
        print(f"  {'a commit (a group), until it is on the disk':44}{quantile(found['commit'], 0.5):9.1f}", end="")
        print(f"{quantile(found['commit'], 0.99):9.1f}")


@pytest.mark.bench
@pytest.mark.timeout(300)
def test_start_and_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require("mosquitto")
    images = held_out()[0]
    starts: list[float] = []
    with Broker(tmp_path / "broker") as broker, Device(tmp_path / "device", broker.port) as device:
        for number in range(6):
            device.put(f"first-{number}.npy", images[number])
            began = time.monotonic()
            device.start("daemon")
            wait_until(lambda: not device.spooled(), 60, device.log("daemon"))
            starts.append(time.monotonic() - began)
            if number < 5:
                device.stop("daemon")
        device.start("sync")
        for number in range(FRAMES):
            device.put(f"{number:05d}.npy", images[number % len(images)])
        wait_until(lambda: not device.spooled(), 60, device.log("daemon"))
        time.sleep(1)
        memory = {name: pss_mb(pid) for name in ("daemon", "worker", "sync") if (pid := device.pid(name)) is not None}
        reader = BufferReader(device.state / "buffer")
        rows = sum(position.last for position in reader.streams(reader.epochs()[-1].id))
    with capsys.disabled():
        print("\nfrom start to the first result stored, s")
        print(f"  cold plan cache {starts[0]:.2f}")
        print(f"  warm plan cache {statistics.median(starts[1:]):.2f} (median of {len(starts) - 1}; goal: ≤ 2)")
        print(f"memory after {rows} results, MiB PSS")
        for name, size in memory.items():
            print(f"  {name:16}{size:.1f}{'   (goal: ≤ 60)' if name == 'daemon' else ''}")
