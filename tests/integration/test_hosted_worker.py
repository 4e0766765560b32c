"""Workers in units of their own: systemd's own socket activation starts an attendant for each connection."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edged.config import Engines
from edged.engines.engine import WorkerEngine
from edged.engines.life import Job, WorkerSpec
from edged.errors import EngineError, EngineLost
from edged.lane import worker_spec
from tests.support import fault_engine
from tests.support.device import BUNDLE
from tests.support.parts import missing, program
from tests.support.plans import frames, make_job
from tests.support.workers import acting, eventually, running

ENGINE_FILE = Path(fault_engine.__file__)
CONFIG = """
[device]
id = "edge-1"
state_dir = "state"
runtime_dir = "run"
[[pipeline]]
name = "digits"
model = "{model}"
[[pipeline.source]]
type = "http"
name = "http"
"""


@contextlib.contextmanager
def activation(place: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """systemd listens at ``place`` and starts an attendant for each connection."""
    if program("systemd-socket-activate") is None:
        missing("systemd-socket-activate", "it comes with systemd")
    command = ["systemd-socket-activate", "--accept", "--seqpacket", f"--listen={place}"]
    variables = [f"--setenv=PYTHONPATH={os.pathsep.join(sys.path)}"]
    attendant = [sys.executable, "-m", "edged.engines.attendant", *arguments]
    with subprocess.Popen([*command, *variables, *attendant], stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 20
        while not place.exists():
            assert time.monotonic() < until, "systemd-socket-activate does not listen"
            time.sleep(0.01)
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    socket_path = tmp_path / "echo.sock"
    with activation(socket_path, "echo", "--engine-file", str(ENGINE_FILE)):
        yield socket_path


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path)


def spec(place: Path) -> WorkerSpec:
    return WorkerSpec("echo", deadline_s=2.0, load_deadline_s=20.0, host=place)


async def assert_echoes(engine: WorkerEngine) -> int:
    """A frame comes back; returns the process that answered."""
    inputs = frames(3, seed=5)
    np.testing.assert_array_equal((await engine.infer(inputs)).readout, inputs["x"][:, :3])
    await eventually(lambda: bool(engine.facts().pid), within_s=10)
    pid = engine.facts().pid
    assert pid
    return pid


def is_there(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def test_a_hosted_worker_runs_beside_the_daemon_and_not_below_it(job: Job, place: Path) -> None:
    async def scenario() -> None:
        async with running(job, spec(place)) as engine:
            worker = await assert_echoes(engine)
            attendant = parent(worker)
            assert parent(attendant) != os.getpid()
        await eventually(lambda: not is_there(worker) and not is_there(attendant), within_s=10)

    asyncio.run(scenario())


def test_without_a_socket_there_the_worker_is_a_child(job: Job, tmp_path: Path) -> None:
    """The control of the test above."""

    async def scenario() -> None:
        child = dataclasses.replace(spec(tmp_path / "nobody.sock"), engine_file=ENGINE_FILE)
        async with running(job, child) as engine:
            assert parent(await assert_echoes(engine)) == os.getpid()

    asyncio.run(scenario())


@pytest.mark.parametrize(("act", "cause"), [("segfault", "SIGSEGV"), ("exit", "exited with code"), ("hang", "within")])
def test_a_worker_that_fails_is_named_and_replaced(job: Job, place: Path, act: str, cause: str) -> None:
    async def scenario() -> None:
        async with running(job, spec(place)) as engine:
            before = await assert_echoes(engine)
            with pytest.raises(EngineLost, match=cause):
                await engine.infer(acting(act))
            assert await assert_echoes(engine) != before
            assert not is_there(before)

    asyncio.run(scenario())


def test_a_worker_that_others_kill_is_not_blamed(job: Job, place: Path) -> None:
    async def scenario() -> None:
        async with running(job, spec(place)) as engine:
            os.kill(await assert_echoes(engine), signal.SIGKILL)
            await eventually(lambda: engine.lost == 1, within_s=10)
            await assert_echoes(engine)
            assert engine.crashes == 0

    asyncio.run(scenario())


def test_a_unit_that_is_stopped_is_replaced(job: Job, place: Path) -> None:
    """As with ``systemctl stop``: attendant and worker go without a word."""

    async def scenario() -> None:
        async with running(job, spec(place)) as engine:
            worker = await assert_echoes(engine)
            os.kill(parent(worker), signal.SIGKILL)
            await eventually(lambda: engine.lost == 1, within_s=10)
            await assert_echoes(engine)
            assert not is_there(worker)

    asyncio.run(scenario())


@pytest.mark.slow
def test_the_memory_of_a_worker_is_reported(job: Job, place: Path) -> None:
    async def scenario() -> None:
        greedy = dataclasses.replace(spec(place), memory_limit_bytes=128 << 20)
        async with running(job, greedy) as engine:
            await assert_echoes(engine)
            await engine.infer(acting("leak"))
            await eventually(lambda: engine.lost == 1, within_s=20)
            assert "MiB" in engine.loss

    asyncio.run(scenario())


def test_a_daemon_that_is_killed_leaves_no_worker(place: Path) -> None:
    """A bare connection with a worker that does nothing but live, closed as the kernel closes those of the dead."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection, ours, theirs:
        connection.connect(str(place))
        socket.send_fds(connection, [b'{"engine":"echo"}'], [theirs.fileno()])
        worker = int(connection.recv(4096).split(b'"pid":')[1].split(b"}")[0])
        assert is_there(worker)
    until = time.monotonic() + 10
    while is_there(worker):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("request_bytes", "with_wire", "reason"),
    [
        (b'{"engine":"lava"}', True, "is not lava: this unit is for echo"),
        (b'{"engine":"echo"}', False, "no descriptor"),
        (b'{"engine":"echo","python":"/bin/sh"}', True, "unknown field"),
        (b"\x00", True, "malformed"),
    ],
)
def test_whoever_asks_for_something_else_gets_a_reason(
    place: Path, request_bytes: bytes, with_wire: bool, reason: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(20)
        connection.connect(str(place))
        socket.send_fds(connection, [request_bytes], [connection.fileno()] if with_wire else [])
        assert reason in connection.recv(4096).decode()
        assert connection.recv(4096) == b""


def test_an_interpreter_that_is_not_there_is_named(job: Job, tmp_path: Path) -> None:
    place = tmp_path / "none.sock"

    async def scenario() -> None:
        async with running(job, spec(place)) as engine:
            with pytest.raises(EngineError, match="could not be started: /nowhere/python"):
                await engine.wait_ready()

    with activation(place, "echo", "--python", "/nowhere/python"):
        asyncio.run(scenario())


@pytest.mark.parametrize("python", ["", "/nowhere/python"])
def test_a_command_tries_an_engine_in_the_unit_that_the_daemon_would_ask_for(tmp_path: Path, python: str) -> None:
    """The second is the control: only in the unit is that interpreter named."""
    config = tmp_path / "edged.toml"
    config.write_text(CONFIG.format(model=BUNDLE))
    hosts = tmp_path / "run/worker"
    hosts.mkdir(parents=True)
    (tmp_path / "state/cache").mkdir(parents=True)
    with activation(hosts / "onnxruntime.sock", "onnxruntime", *(["--python", python] if python else [])):
        command = [sys.executable, "-m", "edged", "check", "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ("could not be started: /nowhere/python" in done.stdout + done.stderr) == bool(python), done
    assert (done.returncode == 0) == (not python), done
    assert list((tmp_path / "state/cache").iterdir()) == []


def test_an_engine_of_another_interpreter_is_here_while_a_unit_offers_it(tmp_path: Path) -> None:
    """So that it is found when its package is installed, and not asked for in vain before."""

    def missing(engine: str) -> str:
        return worker_spec(engine, Engines(), tmp_path).missing()

    assert "install edged-lava, or set engines.lava.python" in missing("lava-fixed")
    assert missing("onnxruntime") == ""  # the daemon's own may run it
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "lava.sock"))
        assert missing("lava-fixed") == ""
