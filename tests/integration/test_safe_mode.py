"""Safe mode as a real process on a socket that systemd listens on: what it tells, and when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.safe_mode.history import History
from edged.safe_mode.place import write_history
from tests.support.parts import missing, program

RIGHT = """
device = {id = "press-7"}
pipeline = [{name = "digits", model = "digits", source = [{type = "http", name = "h"}]}]
"""
WRONG = RIGHT.replace('"http"', '"<b>htpp"')


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "edged.toml").write_text(WRONG)
    return tmp_path


@contextlib.contextmanager
def activated(place: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """``start`` on a socket, as in the unit; its port."""
    if program("systemd-socket-activate") is None:
        missing("systemd-socket-activate", "it comes with systemd")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    start = ["-m", "edged.safe_mode", "start", "--config", str(place / "edged.toml"), "--runtime-dir", str(place)]
    listen = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "--fdname=console"]
    variables = [f"--setenv=PYTHONPATH={os.pathsep.join(sys.path)}"]
    with subprocess.Popen([*listen, *variables, sys.executable, *start], stderr=subprocess.DEVNULL) as process:
        try:
            yield port, process
        finally:
            process.kill()


def ask(port: int, path: str, host: str = "localhost") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"host": host})
    until = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            assert time.monotonic() < until, "nobody listens"
            time.sleep(0.05)


def test_the_reason_is_told_everywhere_and_a_correction_ends_it(place: Path) -> None:
    write_history(place, History(row=("exited with code 78",), wrong=True))
    with activated(place) as (port, process):
        status, body = ask(port, "/status")
        told = json.loads(body)
        assert (status, told["state"], told["device"]) == (200, "safe-mode", "press-7")
        assert "the configuration is wrong" in told["reasons"][0]
        assert "htpp" in told["reasons"][0]
        assert json.loads((place / "status.json").read_text())["reasons"] == told["reasons"]
        assert ask(port, "/health")[0] == 200
        assert ask(port, "/v2/health/ready")[0] == 503
        assert 'edged_state{state="safe-mode"} 1' in ask(port, "/metrics")[1]
        status, page = ask(port, "/")
        assert status == 200
        assert "&lt;b&gt;htpp" in page
        assert "<b>htpp" not in page
        assert ask(port, "/status", host="evil.example")[0] == 421
        time.sleep(1.5)
        assert process.poll() is None  # it waits as long as the mistake is there
        (place / "edged.toml").write_text(RIGHT)
        assert process.wait(20) == 0


@pytest.mark.slow
def test_a_rest_ends_after_its_time(place: Path) -> None:
    write_history(place, History(row=("exited with code 1",) * 5))
    (place / "last-words").write_text("StoreError: the disk is gone")
    began = time.monotonic()
    with activated(place) as (port, process):
        told = json.loads(ask(port, "/status")[1])
        assert "StoreError: the disk is gone" in told["reasons"][0]
        process.wait(30)
        assert 14 < time.monotonic() - began < 25


def test_after_few_failures_the_daemon_is_started_instead(place: Path) -> None:
    """The control: ``start`` has become the daemon, which refuses the wrong configuration with its own code."""
    write_history(place, History(row=("exited with code 1",) * 4))
    with activated(place) as (port, process):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=20):
            pass
        until = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            time.sleep(0.1)
        assert process.wait(1) == 78
