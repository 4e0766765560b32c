"""The demo as a newcomer meets it, with real processes: started, looked at, interrupted, killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.parts import own_network, require

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "scripts.demonstration"]
LAST_LINE = re.compile(
    r"demo: received=(\d+) committed=(\d+) delivered=(\d+) missing=(\d+) doubled=(\d+) accuracy=(0\.\d{4}|1\.0000)"
)
UNDER_WAY = re.compile(r"delivered [1-9]")
END_S = 60.0


@pytest.fixture(autouse=True)
def _parts() -> None:
    require("mosquitto")


class Demo:
    """One run of the demo with a temporary folder of its own, by which everything that it started can be found."""

    def __init__(self, temporary: Path, *arguments: str, prefix: Sequence[str] = ()) -> None:
        self.temporary = temporary
        self.process = subprocess.Popen(
            [*prefix, *COMMAND, *arguments],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []

    def read_until(self, pattern: re.Pattern[str]) -> None:
        """Read what the demo says until a line matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if pattern.search(line):
                return
        raise AssertionError("the demo ended:\n" + "\n".join(self.lines))

    def end(self) -> int:
        """Wait for the end; returns the exit code."""
        rest, _ = self.process.communicate(timeout=END_S)
        self.lines += rest.splitlines()
        return self.process.returncode

    def left(self) -> dict[int, str]:
        """Processes that the demo started and that are still there, by pid."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
                if str(self.temporary).encode() in words and int(folder.name) != self.process.pid:
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def pid_of(self, name: str) -> int:
        return next(pid for pid, words in self.left().items() if name in words.split(" run ")[0])

    def assert_all_went_well(self) -> None:
        code = self.end()
        said = "\n".join(self.lines)
        assert code == 0, said
        figures = LAST_LINE.fullmatch(self.lines[-1])
        assert figures is not None, said
        received, committed, delivered, missing, doubled = map(int, figures.groups()[:5])
        assert received == committed == delivered > 0
        assert (missing, doubled) == (0, 0)
        assert float(figures[6]) > 0.9
        assert self.left() == {}
        assert list(self.temporary.iterdir()) == []


@pytest.fixture
def usual_ports_taken() -> Iterator[None]:
    with ExitStack() as sockets:
        for port in (1883, 8080):
            taken = sockets.enter_context(socket.socket())
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):  # somebody else has it already, which serves as well
                taken.bind(("127.0.0.1", port))
                taken.listen()
        yield


def test_everything_that_is_fed_arrives_with_the_usual_ports_taken(tmp_path: Path, usual_ports_taken: None) -> None:
    demo = Demo(tmp_path, "--seconds", "3")
    demo.assert_all_went_well()
    said = "\n".join(demo.lines)
    assert "port 1883 is taken, using" in said
    assert "port 8080 is taken, using" in said


@pytest.mark.slow
def test_it_runs_where_there_is_no_network_at_all(tmp_path: Path) -> None:
    require("network namespaces")
    Demo(tmp_path, "--seconds", "2", prefix=own_network() or []).assert_all_went_well()


@pytest.mark.slow
def test_ctrl_c_ends_everything_and_nothing_is_lost(tmp_path: Path) -> None:
    demo = Demo(tmp_path)
    demo.read_until(UNDER_WAY)
    demo.process.send_signal(signal.SIGINT)
    demo.assert_all_went_well()


@pytest.mark.slow
def test_ctrl_c_while_it_starts_ends_it_at_once(tmp_path: Path) -> None:
    demo = Demo(tmp_path)
    demo.read_until(re.compile("starting"))
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 130
    assert demo.left() == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_demo_leaves_no_process(tmp_path: Path) -> None:
    demo = Demo(tmp_path)
    demo.read_until(UNDER_WAY)
    assert len(demo.left()) >= 3, demo.left()
    demo.process.kill()
    demo.end()
    deadline = time.monotonic() + END_S
    while demo.left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert demo.left() == {}


@pytest.mark.slow
def test_a_run_that_goes_wrong_says_so_and_keeps_its_logs(tmp_path: Path) -> None:
    demo = Demo(tmp_path)
    demo.read_until(UNDER_WAY)
    os.kill(demo.pid_of("edged-sync"), signal.SIGKILL)
    assert demo.end() == 1
    said = "\n".join(demo.lines)
    assert "edged-sync ended with code -9" in said
    assert demo.left() == {}
    place = re.search(r"the logs and the state are in (\S+)", said)
    assert place is not None
    assert (Path(place[1]) / "logs" / "edged.log").is_file()
