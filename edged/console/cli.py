"""``edged status``: asks the running daemon over its own console, and says so when there is none to ask.

Exit code: 0 ready; 1 running, but degraded or not ready; 3 not running or not answering (what is shown then is the
last status that the daemon wrote). Reads ``http.json`` and ``status.json`` in the runtime directory; writes nothing.
"""

from __future__ import annotations

import argparse
import http.client
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import msgspec

from edged.console.terminal import render
from edged.status import Status

READY, NOT_READY, NOT_RUNNING = 0, 1, 3
ANSWER_S = 3.0  # a living daemon answers within milliseconds; a swapping one gets a little longer
WATCH_S = 1.0
CLEAR = "\x1b[H\x1b[2J\x1b[3J"


class Address(msgspec.Struct, frozen=True):
    """Where the console answers: ``http.json`` in the runtime directory."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Report:
    """A status and whether it is of now; ``silence`` says why the daemon did not answer."""

    status: Status | None
    silence: str = ""

    @property
    def exit_code(self) -> int:
        """What ``edged status`` ends with."""
        if self.silence or self.status is None:
            return NOT_RUNNING
        return READY if self.status.state == "ready" else NOT_READY


def add_commands(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],  # argparse has no public name for it
    runtime_dir: Callable[[argparse.Namespace], Path],
) -> None:
    """Add ``status``. The parsed arguments carry ``func``: call it with them, it returns the exit code."""
    parser = subparsers.add_parser(
        "status",
        help="show the whole truth about the running daemon",
        description="Show the state of the daemon. Exit code: 0 ready, 1 degraded or not ready, 3 not running.",
    )
    parser.add_argument("--json", action="store_true", help="print the status as JSON instead of text")
    parser.add_argument("--watch", action="store_true", help="show it again every second, until Ctrl-C")
    parser.set_defaults(func=lambda arguments: run(arguments, runtime_dir(arguments)))


def run(arguments: argparse.Namespace, directory: Path) -> int:
    """Carry out ``edged status``."""
    code = NOT_RUNNING
    try:
        while True:
            report = ask(directory)
            code = report.exit_code
            _show(report, as_json=arguments.json, clear=arguments.watch)
            if not arguments.watch:
                return code
            time.sleep(WATCH_S)
    except KeyboardInterrupt:
        return code


def ask(directory: Path) -> Report:
    """The status of the daemon whose runtime directory this is; its last one when it does not answer."""
    try:
        address = msgspec.json.decode((directory / "http.json").read_bytes(), type=Address)
    except (OSError, msgspec.MsgspecError):
        return Report(_last(directory), f"edged is not running (there is no address in {directory / 'http.json'})")
    where = f"http://{address.host}:{address.port}"
    try:
        return Report(_fetch(address))
    except (OSError, http.client.HTTPException, msgspec.MsgspecError) as error:
        return Report(_last(directory), f"edged is not running, or does not answer at {where} ({error})")


def _fetch(address: Address) -> Status:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/status", headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != http.client.OK:
            raise http.client.HTTPException(f"HTTP status {answer.status}")
        return msgspec.json.decode(body, type=Status)
    finally:
        connection.close()


def _last(directory: Path) -> Status | None:
    try:
        return msgspec.json.decode((directory / "status.json").read_bytes(), type=Status)
    except (OSError, msgspec.MsgspecError):
        return None


def _show(report: Report, *, as_json: bool, clear: bool) -> None:
    on_tty = sys.stdout.isatty()
    if clear and on_tty and not as_json:
        sys.stdout.write(CLEAR)
    if report.silence:
        sys.stdout.flush()
        print(_silence(report), file=sys.stderr)
    if report.status is not None:
        sys.stdout.write(_text(report.status, sys.stdout, as_json=as_json))
    sys.stdout.flush()


def _silence(report: Report) -> str:
    if report.status is None:
        return f"{report.silence}; it left no last status"
    return f"{report.silence}; this is its last status, written at {report.status.wall_time or 'an unknown time'}:"


def _text(status: Status, stream: TextIO, *, as_json: bool) -> str:
    if as_json:
        return msgspec.json.encode(status).decode() + "\n"
    return render(status, colour=stream.isatty() and not os.environ.get("NO_COLOR"))
