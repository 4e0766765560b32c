"""The command line ``edged``: parses, dispatches, and turns errors into a message, a hint and an exit code.

Every command imports what it needs when it runs, so that ``edged status`` stays quick and small.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edged import __version__
from edged import config as settings
from edged.backup import cli as backup_cli
from edged.buffer import cli as buffer_cli
from edged.bundle import cli as bundle_cli
from edged.bundle import model_cli
from edged.console import cli as console_cli
from edged.devices import cli as devices_cli
from edged.errors import ConfigError, EdgedError
from edged.hardware_config import Board

if TYPE_CHECKING:
    from edged.bundle.loaded import Bundle
    from edged.ports import Engine

DEFAULT_CONFIG = Path("/etc/edged/edged.toml")

EXIT_FAILED = 1
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: systemd shows it by name
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.func(arguments)
    except EdgedError as error:
        print(f"edged: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_FAILED
    except BrokenPipeError:
        sys.stderr.close()  # the reader (head, less) has seen enough; Python would complain at exit
        return 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edged", description="Edge inference with spiking neural networks.")
    parser.add_argument("--version", action="version", version=f"edged {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run = commands.add_parser("run", help="run the daemon until SIGTERM or SIGINT")
    run.set_defaults(func=_run)
    check = commands.add_parser("check", help="check the configuration and all that it names, without running")
    check.set_defaults(func=_check)
    engines = commands.add_parser("engines", help="which engines are here, why not, and what they can run")
    engines.add_argument("--prove", action="store_true", help="let the models prove themselves, not only load")
    engines.add_argument("--json", action="store_true", help="one JSON object a line")
    engines.set_defaults(func=_engines)
    doctor = commands.add_parser("doctor", help="look at everything and say what to do; the exit code says if it works")
    doctor.add_argument("--json", action="store_true", help="one JSON object instead of text")
    doctor.add_argument("--quick", action="store_true", help="start no engine, and read the buffer's pages only")
    doctor.set_defaults(func=_doctor)
    diag = commands.add_parser("diag", help="write one bundle for support, without secrets")
    diag.add_argument("--out", type=Path, metavar="FILE.tar.gz", help="(default: edged-diag-DEVICE-TIME.tar.gz here)")
    diag.set_defaults(func=_diag)
    backup_cli.add_commands(commands)
    console_cli.add_commands(commands, _runtime_dir)
    devices_cli.add_commands(commands, _runtime_dir, _device_users, _boards)
    buffer_cli.add_commands(commands, _buffer_dir)
    for command in (*commands.choices.values(), *model_cli.add_commands(commands, _model_place)):
        command.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help=f"(default: {DEFAULT_CONFIG})")
    bundle_cli.add_commands(commands, _open_engine)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    config = settings.load(arguments.config)
    from edged import app
    from edged.host import journal
    from edged.safe_mode.place import leave_words

    journal.set_up()
    try:
        return app.run(config)
    except Exception as error:  # whatever ends the daemon is noted, and goes on
        leave_words(error, config.device.runtime_dir)  # whoever starts the service again may have to tell
        raise


def _check(arguments: argparse.Namespace) -> int:
    config = settings.load(arguments.config)
    from edged.check import check

    problems = 0
    for finding in check(config):
        problems += bool(finding.problem)
        print(f"{'PROBLEM' if finding.problem else 'ok':8}{finding.what}")
        if finding.problem:
            print(f"        {finding.problem}")
    return EXIT_FAILED if problems else 0


def _engines(arguments: argparse.Namespace) -> int:
    config = settings.load(arguments.config)
    import msgspec

    from edged import inventory

    for found in inventory.look(config, thorough=arguments.prove):
        lines = [msgspec.json.encode(found).decode()] if arguments.json else inventory.show([found])
        print(*lines, sep="\n", flush=True)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from edged.doctor import cli as doctor_cli

    return doctor_cli.run(arguments)


def _diag(arguments: argparse.Namespace) -> int:
    from edged.diag import cli as diag_cli

    return diag_cli.run(arguments)


def _runtime_dir(arguments: argparse.Namespace) -> Path:
    return settings.load(arguments.config).device.runtime_dir


def _device_users(runtime_dir: Path) -> dict[str, str]:
    report = console_cli.ask(runtime_dir)
    if report.silence or report.status is None:
        return {}
    return {device.path: device.user for device in report.status.devices if device.user}


def _boards(arguments: argparse.Namespace) -> tuple[Board, ...]:
    return settings.load(arguments.config).board


def _buffer_dir(arguments: argparse.Namespace) -> Path:
    return settings.load(arguments.config).device.buffer_dir


def _model_place(arguments: argparse.Namespace) -> model_cli.Place:
    from edged.bundle.store.trust import Trust

    config = settings.load(arguments.config)
    device, models = config.device, config.models
    trust = Trust(device.trust_dir, models.trusted_keys, models.allow_unsigned)
    return model_cli.Place(
        device.models_dir, device.incoming_dir, device.runtime_dir, trust, frozenset(config.installed_models)
    )


@contextlib.asynccontextmanager
async def _open_engine(name: str, bundle: Bundle, max_batch: int) -> AsyncIterator[Engine]:
    """A worker for the length of a block, with a cache of its own: nothing of a running daemon is touched."""
    from edged.bundle.plans import ensure_plans
    from edged.engines.engine import open_engine
    from edged.engines.life import Job, WorkerSpec

    with tempfile.TemporaryDirectory(prefix="edged-selftest-") as cache:
        plans = await ensure_plans(bundle, Path(cache))
        async with open_engine(WorkerSpec(name), Job(bundle, max_batch, plans, Path(cache))) as engine:
            yield engine
