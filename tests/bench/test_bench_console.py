"""What the console costs: the memory of a process that does nothing else, and the time of a request. Never decides.

``scripts/test --bench tests/bench/test_bench_console.py``
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

REQUESTS = 500
INFER = "/v2/models/digits/infer"
FRAME = json.dumps(
    {"inputs": [{"name": "image", "shape": [1, 8, 8], "datatype": "FP32", "data": [i / 64 for i in range(64)]}]}
)

# The model and the inlet are as small as they can be, so that what is measured is the console.
SERVER = """
import asyncio, types
from edged.console.app import Console
from edged.console.server import open_socket
from edged.domain import FrameId, Kind, Receipt
from edged.host import journal, systemd
from edged.ports import Ended, TensorSpec
from tests.support.status import FULL

class Inlet:
    async def infer(self, key, payload):
        body = b'{"index": 1, "label": "one", "scores": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]}'
        return Ended(FrameId("http", key), Kind.RESULT, Receipt("epoch", "digits", 1, Kind.RESULT, body))

model = types.SimpleNamespace(name="digits", version="1", digest="", timesteps=8, classes=10,
                              inputs=(TensorSpec("image", "float32", (8, 8)),), states=())
listener = open_socket("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
console = Console(status=lambda: FULL, models={"digits": model}, inlets={"digits": Inlet()})
asyncio.run(console.serve([listener]))
"""


def pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def times_us(port: int, method: str, path: str, body: str | None) -> list[float]:
    """Round trips over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    taken = []
    for _ in range(REQUESTS):
        began = time.perf_counter_ns()
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        answer.read()
        taken.append((time.perf_counter_ns() - began) / 1000)
        assert answer.status == 200
    connection.close()
    return taken


@pytest.mark.bench
def test_bench_console(capsys: pytest.CaptureFixture[str]) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        fresh_mb = pss_mb(process.pid)
        cases = [("GET", path, None) for path in ("/health", "/status", "/metrics", "/")] + [("POST", INFER, FRAME)]
        rows = [
            (method, path, *np.percentile(times_us(port, method, path, body), (50, 99))) for method, path, body in cases
        ]
        used_mb = pss_mb(process.pid)
        process.kill()
    with capsys.disabled():
        print(f"\nconsole alone: {fresh_mb:.1f} MB PSS, {used_mb:.1f} MB after {REQUESTS * len(rows)} requests")
        for method, path, p50, p99 in rows:
            print(f"  {method:4} {path:26} p50 {p50:6.0f} µs   p99 {p99:6.0f} µs")
