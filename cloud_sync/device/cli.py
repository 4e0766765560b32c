"""The command ``edged-sync``: reads the settings, sets up logging and signals, runs the service.

SIGTERM and SIGINT let what is on its way arrive (two seconds at most), say goodbye and end with 0; a second signal
ends at once. The exit codes are named in ``ExitCode``.
"""

from __future__ import annotations

import argparse
import enum
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from cloud_sync.device.settings import Settings, load
from edged import __version__
from edged.errors import ConfigError


class ExitCode(enum.IntEnum):
    """What the process says when it ends."""

    OK = 0
    USAGE = 2  # argparse's own
    CONFIG = 78  # EX_CONFIG of sysexits.h: restarting does not help
    SECOND_SIGNAL = 130  # told to stop twice


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        settings = load(options.config)
    except ConfigError as error:
        print(f"edged-sync: {error}", file=sys.stderr)
        return ExitCode.CONFIG
    if options.command == "check":
        print(f"{options.config}: device {settings.device.id!r} delivers to {settings.sync.broker}")
        return ExitCode.OK
    _log_to_stderr(options.verbose)
    return _run(settings)


def _run(settings: Settings) -> int:
    from cloud_sync.device.service import Service  # paho is not needed to check a configuration

    service = Service(settings)

    def stop(_signum: int, _frame: object) -> None:
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, lambda *_: os._exit(ExitCode.SECOND_SIGNAL))
        service.stop()

    signal.set_wakeup_fd(service.wake_fd, warn_on_full_buffer=False)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)
    service.run()
    return ExitCode.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edged-sync", description="Brings what the buffer holds to the broker.")
    parser.add_argument("--version", action="version", version=f"edged-sync {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="deliver until stopped")
    check = commands.add_parser("check", help="check the configuration and end")
    for command in (run, check):
        command.add_argument("--config", type=Path, default=Path("/etc/edged/edged.toml"), metavar="FILE")
    run.add_argument("--verbose", action="store_true", help="log more")
    return parser


def _log_to_stderr(verbose: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
