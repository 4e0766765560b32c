"""The installed service on a machine of the tests: fed through its spool, asked through its page and its commands."""

from __future__ import annotations

import json
from typing import Any

from tests.support.pid1 import Machine

CONFIG = "/etc/edged/edged.toml"
FRAME = """
import os, sys, numpy as np
name, count, value = sys.argv[1], int(sys.argv[2]), sys.argv[3]
seven = np.load("/usr/share/edged/examples/seven.npy")
for i in range(count):
    frame = np.full_like(seven, 255) if value == "white" else seven
    np.save("/var/tmp/frame.npy", frame)
    os.rename("/var/tmp/frame.npy", f"/var/lib/edged/spool/{name}-{i}.npy")
"""
ASK = """
import sys, urllib.request, urllib.error
try:
    answer = urllib.request.urlopen("http://127.0.0.1:8080" + sys.argv[1], timeout=30)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status, answer.read().decode())
"""


def ask(edge: Machine, path: str) -> tuple[int, str]:
    """The page's answer: its status and its body."""
    status, _, body = edge.python(ASK, path).stdout.partition(" ")
    return int(status), body


def wait_ready(edge: Machine, within_s: float = 60.0) -> None:
    """Wait until frames are inferred and stored."""
    edge.eventually(lambda: ask(edge, "/v2/health/ready")[0] == 200, within_s)


def pid(edge: Machine) -> int:
    """The daemon's process, as the machine numbers it."""
    return int(edge.show("edged.service", "MainPID"))


def status(edge: Machine) -> dict[str, Any]:
    """What the daemon last wrote of itself; empty while it is starting."""
    told = edge.run("cat", "/run/edged/status.json", check=False).stdout
    return dict(json.loads(told)) if told else {}


def feed(edge: Machine, name: str, count: int = 1, value: str = "seven") -> None:
    """Drop frames into the spool, NAME-0 and so on: a handwritten seven, or a white one."""
    edge.run("/opt/edged/bin/python", "-I", "-c", FRAME, name, str(count), value)


def results(edge: Machine, name: str) -> dict[str, dict[str, Any]]:
    """What the buffer holds of the frames whose key begins so, by key. Fails where a frame has two results."""
    lines = edge.run("edged", "results", "--json", "--limit", "5000").stdout.splitlines()
    rows = [row for row in map(json.loads, lines) if str(row.get("key", "")).startswith(name)]
    keys = [row["key"] for row in rows]
    assert len(keys) == len(set(keys)), "a frame has two results"
    return {row["key"]: row for row in rows}
