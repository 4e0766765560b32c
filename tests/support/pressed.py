"""Processes that run short of memory in a cgroup: one that only looks, one with a worker that grows.

``tests/integration/test_real_pressure.py`` runs each in a group of ``tests.support.cgroup``; each prints one object as
JSON.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import select
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from edged.admission import Admission
from edged.engines import life
from edged.engines.engine import WorkerEngine
from edged.engines.life import WorkerSpec
from edged.errors import EngineError
from edged.governor import Governor
from edged.hardware_config import Pressure
from edged.host.pressure import PressureReader
from edged.host.stalls import StallTriggers
from edged.lane import Lane
from edged.pressure import Kind
from tests.support import fault_engine
from tests.support.cgroup import join
from tests.support.fault_engine import GROW, marker
from tests.support.plans import frames, make_job

LOOK_S = 3.0  # the kernel's averages move every two seconds
CALLS = 220
PAUSE_S = 0.02


def look(file: str, procs: list[str]) -> dict[str, Any]:
    """Read a file again and again; say what was measured, and when the kernel's trigger came."""
    join(procs)
    reader = PressureReader(Path("/"))
    triggers = StallTriggers(reader.trigger_files, 10.0)
    reader.read()
    began = time.monotonic()
    told: list[float] = []

    def listen() -> None:
        if select.select([triggers.fileno()], [], [], LOOK_S)[0]:
            triggers.take()
            told.append(round(time.monotonic() - began, 3))

    listener = threading.Thread(target=listen)
    listener.start()
    with _mapped(Path(file)) as pages:
        while time.monotonic() < began + LOOK_S:
            sum(pages[at] for at in range(0, len(pages), mmap.PAGESIZE))
    listener.join()
    measures = {
        one.name: one.value for one in reader.read().measures if one.kind in (Kind.MEMORY_STALL, Kind.MEMORY_USED)
    }
    watched = len(triggers)
    triggers.close()
    return {"measures": measures, "triggers": watched, "told_s": told}


@contextmanager
def _mapped(file: Path) -> Iterator[mmap.mmap]:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as pages:
        yield pages


def grow(enabled: str, procs: list[str]) -> dict[str, Any]:
    """Ask a worker that grows with each call, with the policy or without it."""
    join(procs)
    life.WATCH_S = 0.2
    return asyncio.run(_grow(enabled=enabled == "on"))


async def _grow(*, enabled: bool) -> dict[str, Any]:
    spec = WorkerSpec(
        "echo",
        deadline_s=5.0,
        load_deadline_s=20.0,
        memory_limit_bytes=4 << 30,  # it is the group's limit that counts
        engine_file=Path(fault_engine.__file__),
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = WorkerEngine(spec, make_job(Path(folder)), patience_s=20.0)
        lane = SimpleNamespace(config=SimpleNamespace(name="grows", priority=5), admission=Admission(), engine=engine)
        settings = Pressure(enabled=enabled, look_every_s=0.1, dwell_s=0.5, recycle_every_s=0.5)
        governor = Governor(settings, [cast("Lane", lane)])
        tasks = [asyncio.create_task(engine.run()), asyncio.create_task(governor.run())]
        await engine.wait_ready()
        failed = [said for _ in range(CALLS) if (said := await _ask(engine))]
        facts = governor.facts()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "grown_mb": CALLS * GROW >> 20,
        "failed": failed,
        "lost": engine.lost,
        "recycled": facts.recycled,
        "changes": facts.changes,
        "reason": facts.reason,
    }


async def _ask(engine: WorkerEngine) -> str:
    """Why a call failed; empty if it did not."""
    inputs = frames(1)
    inputs["x"][0, 0] = marker("grow")
    await asyncio.sleep(PAUSE_S)
    try:
        await engine.infer(inputs)
    except EngineError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    print(json.dumps({"look": look, "grow": grow}[sys.argv[1]](sys.argv[2], sys.argv[3:])))
