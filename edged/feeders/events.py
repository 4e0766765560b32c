"""An event camera as a feeder: recordings, or the bytes of a camera as they come, handed in as frames.

- A recording is one frame, as the daemon's spool and replay take it; with ``cut`` it is as many windows as the model's
  manifest makes of it. Its key holds its name and content, so that feeding it again gives the first results.
- Live bytes are cut always. A window ends with the first event behind it, or when nothing has come for ``quiet_s``. A
  run has a key of its own.
- ``keep = "all"`` (recordings, pipes): a slower daemon makes the feeder wait, and who writes into the pipe with it.
  ``keep = "latest"`` (serial lines and devices, which cannot wait): windows are dropped, and counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import select
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from edged.domain import Events
from edged.errors import ConfigError, FrameRejected
from edged.feeder_config import STDIN, EventsFeeder
from edged.feeders.daemon import Content, EventRule
from edged.feeders.event_stream import LiveEvents, Piece, Window, Windows, dat_bytes
from edged.feeders.handing import Courier, Latest, Make
from edged.feeders.kit import DRAIN_S, ExitCode, Kit
from edged.sources.decode import decode
from edged.sources.line import open_line

log = logging.getLogger(__name__)

RECORDINGS = (".bs2", ".bin", ".dat", ".aedat")
READ_BYTES = 64 << 10
STDIN_FD = 0
LOOK_S = 0.2  # how soon a stop is seen
REOPEN_S = 0.5  # between two looks at a line that is away
MOST_WINDOW_US = 1 << 32  # a window travels with times of 32 bits

Hand = Callable[[str, Make], object]


def run(settings: EventsFeeder, kit: Kit) -> ExitCode:
    """Feed until the recordings end, or live bytes do, or a stop. Raises ConfigError."""
    courier = kit.courier(settings.model)
    try:
        model = courier.model()
        if model is None:
            return ExitCode.OK
        rule = model.events
        if rule is None or rule.window_us >= MOST_WINDOW_US:
            raise ConfigError(
                f"model {model.name} takes no events", "its manifest says what it takes: edged bundle show"
            )
        with _handing(courier, settings, kit) as hand:
            (_Live if settings.is_live else _Recordings)(settings, kit, rule, hand).run()
    finally:
        courier.close()
    is_short = not settings.is_live and kit.account.counts.refused > 0
    return ExitCode.REFUSED if is_short else ExitCode.OK


@contextlib.contextmanager
def _handing(courier: Courier, settings: EventsFeeder, kit: Kit) -> Iterator[Hand]:
    """How frames are handed in: one after the other, or the latest by a thread of its own."""
    keep = settings.keep or ("latest" if settings.is_live and not _can_wait(settings.path) else "all")
    if keep == "all":
        yield lambda key, make: courier.hand(key, make())
        return
    latest = Latest(courier, kit.account)
    thread = threading.Thread(target=latest.serve, name="courier", daemon=True)
    thread.start()
    try:
        yield latest.put
    finally:
        latest.finish(DRAIN_S)


def _can_wait(path: Path) -> bool:
    """Whether what writes there waits until it is read."""
    return path.name == STDIN or path.is_fifo()


class _Recordings:
    """Plays files, in the order of their names."""

    def __init__(self, settings: EventsFeeder, kit: Kit, rule: EventRule, hand: Hand) -> None:
        self._settings = settings
        self._kit = kit
        self._rule = rule
        self._hand = hand
        self._due = time.monotonic()

    def run(self) -> None:
        """Hand every recording in. Raises ConfigError when there is none."""
        files = _recordings(self._settings.path)
        self._kit.account.say("running")
        for file in files:
            if self._kit.stop.is_set():
                return
            self._feed(file)

    def _feed(self, file: Path) -> None:
        try:
            data = file.read_bytes()
            events = decode(file.name, data)
            assert isinstance(events, Events)
        except (FrameRejected, OSError) as error:
            self._kit.account.count(received=1)
            self._kit.account.refuse(file.name, str(error))
            return
        key = f"{self._settings.name}:{_plain(file.name)}:{hashlib.sha256(data).hexdigest()[:16]}"
        if not self._settings.cut:
            self._wait(int(events.t_us[-1]))
            self._give(key, partial(Content, file.suffix[1:].lower(), data))
            return
        windows = Windows(self._rule, origin_us=0)
        begin = self._due
        for window in (*windows.push(Piece(events, follows=False)), *windows.flush()):
            self._due = begin
            self._wait(window.start_us + self._rule.window_us)
            self._give(f"{key}:{window.start_us}", partial(_content, window))
        self._kit.account.count(received=windows.overfull, dropped=windows.overfull)

    def _wait(self, after_us: int) -> None:
        """Until so much of the recording has passed, at the speed that is wanted."""
        if self._settings.speed:
            self._due += after_us / 1e6 / self._settings.speed
            self._kit.stop.wait(max(0.0, self._due - time.monotonic()))

    def _give(self, key: str, make: Make) -> None:
        if not self._kit.stop.is_set():
            self._kit.account.count(received=1)
            self._hand(key, make)


def _recordings(path: Path) -> list[Path]:
    """The recordings of a directory, or the one. Raises ConfigError."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        found = [file for file in files if file.suffix.lower() in RECORDINGS and stat.S_ISREG(file.stat().st_mode)]
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}", "path names recordings") from None
    if not found:
        hint = f"recordings end in {', '.join(RECORDINGS)}; for live bytes set format"
        raise ConfigError(f"{path} holds no recording", hint)
    if len(found) < len(files):
        log.info("passed over what is no recording", extra={"path": str(path), "files": len(files) - len(found)})
    return found


def _content(window: Window) -> Content:
    return Content("dat", dat_bytes(window.events))


def _plain(name: str) -> str:
    """A name as part of a key."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)[:64]


class _Live:
    """Reads a stream until it ends. A serial line may go and return; a FIFO stays open, whoever writes to it."""

    def __init__(self, settings: EventsFeeder, kit: Kit, rule: EventRule, hand: Hand) -> None:
        self._settings = settings
        self._kit = kit
        self._rule = rule
        self._hand = hand
        self._run = uuid.uuid4().hex[:12]
        self._windows = Windows(rule)
        self._lost = 0
        self._number = 0
        self._is_stdin = settings.path.name == STDIN

    def run(self) -> None:
        """Read and hand in until the end of standard input, or a stop."""
        while not self._kit.stop.is_set():
            fd = self._opened()
            if fd is None:
                self._kit.stop.wait(REOPEN_S)
                continue
            self._kit.account.count(connections=1)
            self._kit.account.say("running")
            try:
                self._read_all(fd)
            except FrameRejected as error:
                self._kit.account.refuse("the stream", str(error))
                self._kit.account.say(f"the stream is refused: {error}")
            finally:
                self._give(self._windows.flush())
                if not self._is_stdin:
                    os.close(fd)
            if self._is_stdin:
                return
            self._kit.stop.wait(REOPEN_S)

    def _opened(self) -> int | None:
        if self._is_stdin:
            return STDIN_FD
        try:
            return open_line(self._settings.path, self._settings.baud)
        except OSError as error:
            self._kit.account.say(f"waiting for {self._settings.path}: {error.strerror}")
            return None

    def _read_all(self, fd: int) -> None:
        """Read until the stream ends. Raises FrameRejected when it is of another kind."""
        stream = LiveEvents(self._settings.format)
        is_named_fifo = not self._is_stdin and stat.S_ISFIFO(os.fstat(fd).st_mode)
        heard = time.monotonic()
        while not self._kit.stop.is_set():
            if self._windows.is_open and time.monotonic() - heard >= self._settings.quiet_s:
                self._give(self._windows.flush())
            if not select.select([fd], [], [], LOOK_S)[0]:
                continue
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                self._kit.account.say(f"{self._settings.path} is gone: {error.strerror}")
                return
            if data:
                heard = time.monotonic()
                for piece in stream.feed(data):
                    self._give(self._windows.push(piece))
            elif is_named_fifo:  # a FIFO that nobody writes to reads as ended, at once and again
                self._kit.stop.wait(LOOK_S)
            else:
                return

    def _give(self, windows: Iterator[Window]) -> None:
        for window in windows:
            self._number += 1
            self._kit.account.count(received=1)
            self._hand(f"{self._settings.name}:{self._run}:{self._number:09}", partial(_content, window))
        lost = self._windows.broken + self._windows.overfull
        if lost > self._lost:
            self._kit.account.count(received=lost - self._lost, dropped=lost - self._lost)
            log.warning(
                "windows lost", extra={"holes": self._windows.broken, "too_many_events": self._windows.overfull}
            )
            self._lost = lost
