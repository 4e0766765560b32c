"""Notifications, the watchdog and handed-over sockets, against a real datagram socket and a real exec."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edged.host import systemd
from edged.host.systemd import Notifier, listen_sockets
from tests.support.parts import missing, program
from tests.support.service import need_systemd_python


@pytest.fixture(autouse=True)
def systemd_python() -> None:
    need_systemd_python()


class Manager:
    """systemd's end of the notification socket."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """Messages since the last call."""
        messages = []
        with contextlib.suppress(BlockingIOError):
            while True:
                messages.append(self._socket.recv(4096).decode())
        return messages

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    listening = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", listening.address)
    yield listening
    listening.close()


def test_the_life_of_a_service_is_told(manager: Manager) -> None:
    notifier = Notifier()
    notifier.status("loading digits")
    notifier.ready("ready: 1 pipeline")
    notifier.alive()
    notifier.stopping()
    assert manager.heard() == [
        "STATUS=loading digits",
        "READY=1\nSTATUS=ready: 1 pipeline",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


def test_a_status_cannot_smuggle_another_message(manager: Manager) -> None:
    Notifier().status("spool\nWATCHDOG=1\r\nREADY=1")
    assert manager.heard() == ["STATUS=spool WATCHDOG=1 READY=1"]


def test_no_child_inherits_the_right_to_speak(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notifier = Notifier()
    notifier.ready()
    notifier.alive()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()
    assert len(manager.heard()) == 2


def test_a_manager_that_is_gone_is_logged_and_not_fatal(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier()
    manager.close()
    notifier.ready()
    assert "systemd could not be told" in caplog.text


def test_without_systemd_everything_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS"):
        monkeypatch.delenv(name, raising=False)
    notifier = Notifier()
    notifier.ready("x")
    notifier.stopping()
    assert notifier.watchdog_s is None
    asyncio.run(asyncio.wait_for(notifier.watch(lambda: True), 1))
    assert listen_sockets() == {}


def test_without_systemd_python_everything_is_silent(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "systemd.daemon", None)  # import fails
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    notifier = Notifier()
    notifier.ready()
    assert notifier.watchdog_s is None
    assert manager.heard() == []
    assert "systemd-python is not installed" in caplog.text


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("30000000", "own", 30.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_the_watchdog_is_ours_only_when_it_says_so(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, seconds: float | None
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert Notifier().watchdog_s == seconds


def beats(manager: Manager, monkeypatch: pytest.MonkeyPatch, progress: Callable[[], bool], watched_s: float) -> int:
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    notifier = Notifier()

    async def watch() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(notifier.watch(progress), watched_s)

    asyncio.run(watch())
    return manager.heard().count("WATCHDOG=1")


def test_the_sign_of_life_comes_twice_as_often_as_asked(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 4 <= beats(manager, monkeypatch, lambda: True, 0.95) <= 10


def test_no_sign_of_life_while_work_is_past_its_deadline(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert beats(manager, monkeypatch, lambda: False, 0.45) == 0
    assert caplog.text.count("past its deadline") == 1


def test_the_sign_comes_back_with_the_work(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    until = time.monotonic() + 0.25
    assert beats(manager, monkeypatch, lambda: time.monotonic() > until, 0.95) >= 3


# Sockets that systemd listened on

SERVER = """
import asyncio
from edged.console.app import Console
from edged.host.systemd import listen_sockets
from edged.status import Status

sockets = listen_sockets()
print({name: [one.getsockname()[1] for one in group] for name, group in sockets.items()}, flush=True)
again = listen_sockets()
assert again == {}, again

async def main() -> None:
    console = Console(status=lambda: Status(device="activated", version="0", state="ready"), models={}, inlets={})
    await console.serve(sockets["console"])

asyncio.run(main())
"""


@contextlib.contextmanager
def started(command: list[str], pass_fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("LISTEN_FDS", None)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, text=True, pass_fds=pass_fds) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=20) as answer:
        body = answer.read()
    assert isinstance(body, bytes)
    return body.decode()


def test_the_console_answers_on_a_socket_that_was_handed_over() -> None:
    """By hand, as systemd.socket(5) does it: descriptors from 3 on, and the variables of sd_listen_fds(3)."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as other:
        port, fd, second = listener.getsockname()[1], listener.fileno(), other.fileno()
        hand_over = (
            f"exec 8<&{fd} 9<&{second}; exec 3<&8 4<&9; "
            'LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=console:frames exec "$0" -c "$1"'
        )
        command = ["bash", "-c", hand_over, sys.executable, SERVER]
        with started(command, pass_fds=(fd, second)) as process:
            assert '"device":"activated"' in ask(port)
            assert process.stdout is not None
            expected = {"console": [port], "frames": [other.getsockname()[1]]}
            assert process.stdout.readline() == f"{expected}\n"


def test_sockets_of_another_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert listen_sockets() == {}
    assert "LISTEN_FDS" not in os.environ


def test_the_console_is_started_by_its_first_request() -> None:
    if program("systemd-socket-activate") is None:
        missing("systemd-socket-activate", "it comes with systemd")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "--fdname=console"]
    environment = [f"--setenv=PYTHONPATH={os.pathsep.join(sys.path)}"]
    with started([*command, *environment, sys.executable, "-c", SERVER]):
        deadline = time.monotonic() + 20
        while True:
            try:
                assert '"device":"activated"' in ask(port)
                break
            except OSError:
                assert time.monotonic() < deadline, "systemd-socket-activate does not listen"
                time.sleep(0.05)


def test_the_module_leaves_the_sdk_alone_until_it_is_needed() -> None:
    program = (
        "import sys, edged.host.systemd, edged.host.journal; print([m for m in sys.modules if m.startswith('systemd')])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert systemd.__name__ == "edged.host.systemd"
