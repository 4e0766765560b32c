"""Live bytes of an event camera from a serial line and a FIFO that come, go and return; the daemon is left out."""

from __future__ import annotations

import os
import pty
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edged.domain import Events
from edged.errors import ConfigError
from edged.feeder_config import EventsFeeder
from edged.feeders.account import Account
from edged.feeders.daemon import EventRule
from edged.feeders.events import _Live
from edged.feeders.handing import Make
from edged.feeders.kit import Kit
from edged.sources.decode import decode
from tests.support.device import wait_until
from tests.support.event_files import saccade

RULE = EventRule(1000, "first_event")


@dataclass
class Line:
    """A feeder on a line, in a thread, whose windows end up in a list."""

    path: Path
    stop: threading.Event = field(default_factory=threading.Event)
    account: Account = field(default_factory=lambda: Account("yard"))
    windows: dict[str, list[int]] = field(default_factory=dict)
    failed: list[BaseException] = field(default_factory=list)

    def hand(self, key: str, make: Make) -> None:
        content = make()
        events = decode(f"a.{content.format}", content.data)
        assert isinstance(events, Events)
        self.windows[key] = events.t_us.tolist()

    def run(self) -> None:
        settings = EventsFeeder(name="yard", model="m", path=self.path, format="bs2", quiet_s=0.3)
        try:
            _Live(settings, Kit(Path("/none"), self.account, self.stop), RULE, self.hand).run()
        except ConfigError as error:
            self.failed.append(error)

    def wait(self, windows: list[list[int]]) -> None:
        wait_until(lambda: list(self.windows.values()) == windows, 20, lambda: f"{self.windows} {self.account.line()}")


@pytest.fixture
def feed() -> Iterator[Callable[[Path], Line]]:
    lines: list[tuple[Line, threading.Thread]] = []

    def start(path: Path) -> Line:
        line = Line(path)
        thread = threading.Thread(target=line.run, daemon=True)
        thread.start()
        lines.append((line, thread))
        return line

    yield start
    for line, thread in lines:
        line.stop.set()
        thread.join(10)
        assert not thread.is_alive()


def events(*times: int) -> bytes:
    return saccade([(1, 1, 1, t) for t in times])


def test_a_serial_line_may_go_and_return(tmp_path: Path, feed: Callable[[Path], Line]) -> None:
    path = tmp_path / "tty"
    line = feed(path)  # it is not there yet
    wait_until(lambda: "waiting for" in line.account.line(), 10)
    for expected in ([[0, 900], [0]], [[0, 900], [0], [0, 5]]):
        master, slave = pty.openpty()
        path.symlink_to(os.ttyname(slave))
        connections = line.account.counts.connections
        wait_until(lambda before=connections: line.account.counts.connections > before, 10)  # type: ignore[misc]  # default
        stream = events(0x0D0A, 0x0D0A + 900, 0x0D0A + 1000) if len(expected) == 2 else events(7, 12)
        for byte in stream:  # one by one, with a carriage return and a line feed among them
            os.write(master, bytes([byte]))
        line.wait(expected)  # the last window ended when nothing came any more
        path.unlink()
        os.close(slave)
        os.close(master)
    assert line.account.counts.dropped == 0
    assert line.account.counts.received == 3


def test_a_fifo_is_one_stream_whoever_writes_to_it(tmp_path: Path, feed: Callable[[Path], Line]) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    line = feed(path)
    path.write_bytes(events(5, 10)[:7])
    path.write_bytes(events(5, 10)[7:])
    line.wait([[0, 5]])
    path.write_bytes(events(2000, 1500, 1600))  # time runs backwards: bytes were lost
    line.wait([[0, 5], [0, 100]])
    assert (line.account.counts.received, line.account.counts.dropped) == (3, 1)
    assert line.account.counts.connections == 1


def test_a_file_is_no_line(tmp_path: Path, feed: Callable[[Path], Line]) -> None:
    (tmp_path / "file").write_bytes(events(1))
    line = feed(tmp_path / "file")
    wait_until(lambda: bool(line.failed), 10)
    assert "is no line and no FIFO" in str(line.failed[0])
