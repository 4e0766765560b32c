"""``edged status`` against a real console: what it prints, what it ends with, and what it says of a dead daemon."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edged.console.cli import add_commands
from edged.status import Status
from tests.support.console import live_console
from tests.support.status import FULL

PROGRAM = """
import argparse, sys
from pathlib import Path
from edged.console.cli import add_commands
parser = argparse.ArgumentParser(prog="edged")
add_commands(parser.add_subparsers(required=True), lambda arguments: Path(sys.argv[1]))
arguments = parser.parse_args(sys.argv[2:])
raise SystemExit(arguments.func(arguments))
"""


def edged(directory: Path, *words: str) -> int:
    parser = argparse.ArgumentParser(prog="edged")
    add_commands(parser.add_subparsers(required=True), lambda _: directory)
    arguments = parser.parse_args(words)
    code = arguments.func(arguments)
    assert isinstance(code, int)
    return code


def tell(directory: Path, port: int) -> None:
    (directory / "http.json").write_text(f'{{"host": "127.0.0.1", "port": {port}}}')


@pytest.mark.parametrize(("state", "code"), [("ready", 0), ("degraded", 1), ("starting", 1), ("failed", 1)])
def test_the_exit_code_says_the_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str, code: int
) -> None:
    status = msgspec.structs.replace(FULL, state=state)
    with live_console(lambda: status) as live:
        tell(tmp_path, live.port)
        assert edged(tmp_path, "status") == code
    shown = capsys.readouterr()
    assert shown.out.startswith(f"field-017  {state}\n")
    assert "frame-0007.npy" in shown.out
    assert "\x1b" not in shown.out
    assert shown.err == ""


def test_json_is_the_whole_struct(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with live_console(lambda: FULL) as live:
        tell(tmp_path, live.port)
        assert edged(tmp_path, "status", "--json") == 1
    assert msgspec.json.decode(capsys.readouterr().out, type=Status) == FULL


def test_a_daemon_that_never_ran_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert edged(tmp_path, "status") == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "edged is not running (there is no address in" in shown.err
    assert "no last status" in shown.err


def test_a_dead_daemon_is_shown_as_it_last_was_and_called_dead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = msgspec.structs.replace(FULL, state="ready")
    with live_console(lambda: ready) as live:
        tell(tmp_path, live.port)
    (tmp_path / "status.json").write_bytes(msgspec.json.encode(ready))
    assert edged(tmp_path, "status") == 3
    shown = capsys.readouterr()
    assert f"does not answer at http://127.0.0.1:{live.port}" in shown.err
    assert "its last status, written at 2026-11-23T08:50:18Z" in shown.err
    assert "frame-0007.npy" in shown.out
    assert edged(tmp_path, "status", "--json") == 3
    assert msgspec.json.decode(capsys.readouterr().out, type=Status) == ready


@pytest.mark.parametrize("content", [b"", b"{", b'{"host": 1}', b"\xff"])
def test_damaged_files_are_as_good_as_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (tmp_path / "http.json").write_bytes(content)
    (tmp_path / "status.json").write_bytes(content)
    assert edged(tmp_path, "status") == 3
    assert "not running" in capsys.readouterr().err


@contextlib.contextmanager
def stranger(answer: bytes) -> Iterator[int]:
    """Another program on the daemon's old port: sends ``answer`` and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(5)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{}",
        b"",
    ],
)
def test_a_stranger_on_the_port_is_not_taken_for_the_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bytes
) -> None:
    with stranger(answer) as port:
        tell(tmp_path, port)
        assert edged(tmp_path, "status") == 3
    assert "does not answer" in capsys.readouterr().err


def test_watch_shows_it_again_until_interrupted(tmp_path: Path) -> None:
    uptimes = iter(range(100))
    with live_console(lambda: msgspec.structs.replace(FULL, state="ready", uptime_s=float(next(uptimes)))) as live:
        tell(tmp_path, live.port)
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), "status", "--watch", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            seen = [msgspec.json.decode(process.stdout.readline(), type=Status).uptime_s for _ in range(2)]
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
    assert seen == [0.0, 1.0]


def test_colour_appears_on_a_terminal_and_not_with_no_color(tmp_path: Path) -> None:
    with live_console(lambda: FULL) as live:
        tell(tmp_path, live.port)
        coloured, plain = (_on_terminal(tmp_path, extra) for extra in ({}, {"NO_COLOR": "1"}))
    assert "\x1b[33mdegraded\x1b[0m" in coloured
    assert "degraded" in plain and "\x1b" not in plain


def _on_terminal(directory: Path, extra: dict[str, str]) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | extra
    master, slave = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, str(directory), "status"]
    process = subprocess.Popen(command, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    shown = io.BytesIO()
    deadline = time.monotonic() + 20
    with contextlib.suppress(OSError):  # EIO: the program has ended
        while time.monotonic() < deadline and (chunk := os.read(master, 65536)):
            shown.write(chunk)
    os.close(master)
    process.wait(10)
    return shown.getvalue().decode()
