"""Runs the demo: broker, subscriber, daemon, sync; feeds the held-out digits; judges; stops everything.

The subscriber listens before the first frame is fed and counts until every result has arrived. Anything missing,
doubled or wrong is told and makes the exit code 1. The last line is for machines.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edged.config import slug
from edged.errors import EdgedError
from edged.status import Status
from models.digits import data
from scripts.demonstration import machine
from scripts.demonstration.books import Books, problems, summary, totals
from scripts.demonstration.machine import LOCALHOST, DemoError, Machine
from scripts.demonstration.screen import Screen
from scripts.demonstration.traffic import RATE_HZ, Feeder, Subscriber

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "digits" / "bundle"

READY_S = 60.0  # the first start builds the plan of the model
DRAIN_S = 30.0  # for what is under way when feeding ends
ACCURACY_MIN = 0.97  # of the whole held-out split, as promised
ACCURACY_MIN_PART = 0.94  # of a part of it, where a few hard digits weigh more
STREAM = "digits"


@dataclass(frozen=True)
class Addresses:
    """Where the parts of one demo listen."""

    broker_port: int
    http_port: int


class Interrupt:
    """Ctrl-C, SIGTERM or SIGHUP. The first is only noted: an exception may be lost wherever a signal falls.

    While frames are fed it ends the feeding; before that, ``check`` ends everything. The second one always does.
    """

    def __init__(self) -> None:
        self.seen = False
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._handle)

    def check(self) -> None:
        """Raise KeyboardInterrupt when there was one."""
        if self.seen:
            raise KeyboardInterrupt

    def _handle(self, *_: object) -> None:
        self.check()
        self.seen = True


def main() -> int:
    """Run the demo and return its exit code."""
    arguments = _arguments()
    interrupt = Interrupt()
    place = Path(tempfile.mkdtemp(prefix="edged-demo-"))
    try:
        code = _Demo(place, arguments.seconds, interrupt).run()
    except (DemoError, EdgedError) as error:
        print(f"demo: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # whoever read along (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    if code == 1:
        print(f"demo: the logs and the state are in {place}", file=sys.stderr)
    else:
        shutil.rmtree(place, ignore_errors=True)
    return code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Shows edged at work on this machine.")
    parser.add_argument("--seconds", type=_seconds, help="end after so many seconds of feeding (else: Ctrl-C)")
    parser.add_argument("--setup-only", action="store_true", help="install what is missing and stop there")
    return parser.parse_args()


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError("must be seconds, more than 0")
    return seconds


class _Demo:
    """One run, from the first process to the verdict."""

    def __init__(self, place: Path, seconds: float | None, interrupt: Interrupt) -> None:
        self._place = place
        self._seconds = seconds
        self._interrupt = interrupt
        self._images, labels = data.held_out()
        self._books = Books(STREAM, [data.LABELS[label] for label in labels])
        self._screen = Screen()
        self._status: Status | None = None

    def run(self) -> int:
        machine.bring_up_loopback()
        (self._place / "spool").mkdir()
        with Machine(self._place, self._interrupt.check) as processes:
            self._screen.say("demo: starting broker, subscriber, daemon and sync")
            addresses = self._addresses()
            subscriber = self._start(processes, addresses)
            self._follow(processes, subscriber)
        stored = totals(self._status)
        least = ACCURACY_MIN if self._books.fed >= len(self._images) else ACCURACY_MIN_PART
        wrong = problems(self._books, stored, least)
        for problem in wrong:
            print(f"demo: WRONG: {problem}")
        print(summary(self._books, stored), flush=True)
        return 1 if wrong else 0

    def _addresses(self) -> Addresses:
        addresses = Addresses(machine.choose_port(1883), machine.choose_port(8080))
        for usual, chosen in ((1883, addresses.broker_port), (8080, addresses.http_port)):
            if usual != chosen:
                self._screen.say(f"demo: port {usual} is taken, using {chosen}")
        return addresses

    def _start(self, processes: Machine, addresses: Addresses) -> Subscriber:
        broker_config, config = self._place / "mosquitto.conf", self._place / "edged.toml"
        machine.write_broker_config(broker_config, addresses.broker_port)
        config.write_text(_config(addresses))
        processes.start("mosquitto", [machine.program("mosquitto"), "-c", str(broker_config)])
        processes.wait_for("the broker", lambda: machine.listens(addresses.broker_port), READY_S)
        subscriber = Subscriber(addresses.broker_port, STREAM, self._books.arrived)
        processes.wait_for("the subscriber", subscriber.is_subscribed, READY_S)
        scripts = Path(sys.executable).parent
        processes.start("edged", [str(scripts / "edged"), "run", "--config", str(config)])
        processes.start("edged-sync", [str(scripts / "edged-sync"), "run", "--config", str(config)])
        processes.wait_for("the daemon", self._is_ready, READY_S)
        self._screen.say(
            f"demo: page http://{LOCALHOST}:{addresses.http_port}/   broker {LOCALHOST}:{addresses.broker_port}"
            f"   state {self._place}" + ("" if self._seconds else "   (Ctrl-C ends)")
        )
        return subscriber

    def _follow(self, processes: Machine, subscriber: Subscriber) -> None:
        """Feed, listen and show until the time is over, then until everything has arrived."""
        feeder = Feeder(self._place / "spool", self._images, self._books)
        self._interrupt.check()
        start = time.monotonic()
        end = start + self._seconds if self._seconds else float("inf")
        for now in self._ticks(processes, subscriber, start):
            if now >= end or self._interrupt.seen:
                break
            feeder.feed()
        deadline = time.monotonic() + DRAIN_S
        for now in self._ticks(processes, subscriber, start):
            if now >= deadline or self._is_settled():
                break
        self._screen.show(time.monotonic() - start, self._status, self._books)

    def _ticks(self, processes: Machine, subscriber: Subscriber, start: float) -> Iterator[float]:
        shown = time.monotonic()
        while True:
            now = time.monotonic()
            yield now
            subscriber.listen(1 / RATE_HZ)
            if now - shown >= self._screen.period_s:
                shown = now
                processes.check()
                self._status = self._ask() or self._status
                self._screen.show(now - start, self._status, self._books)

    def _is_settled(self) -> bool:
        if self._books.under_way:
            return False
        self._status = self._ask() or self._status
        return totals(self._status).committed >= self._books.fed

    def _is_ready(self) -> bool:
        self._status = self._ask()
        return self._status is not None and self._status.state == "ready"

    def _ask(self) -> Status | None:
        """The daemon's own account, from the same address as the page; None while it does not answer."""
        try:
            address = msgspec.json.decode((self._place / "run" / "http.json").read_bytes(), type=_HttpAddress)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        connection = http.client.HTTPConnection(address.host, address.port, timeout=2)
        try:
            connection.request("GET", "/status")
            return msgspec.json.decode(connection.getresponse().read(), type=Status)
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def _config(addresses: Addresses) -> str:
    """One file for both services of the device; what lies in the demo's own folder is named relative to it."""
    return f"""\
[device]
id = "{slug(socket.gethostname())}"
state_dir = "state"
runtime_dir = "run"

[http]
port = {addresses.http_port}

[[pipeline]]
name = "{STREAM}"
model = {json.dumps(str(MODEL))}

[[pipeline.source]]
type = "spool"
name = "held-out"
path = "spool"

[sync]
broker = "mqtt://{LOCALHOST}:{addresses.broker_port}"
fleet = "demo"
"""


class _HttpAddress(msgspec.Struct):
    host: str
    port: int


if __name__ == "__main__":
    sys.exit(main())
