"""The command ``edged-feed``: hands frames from a network or a stream to the daemon.

``run NAME`` starts the feeder of that name in the configuration; ``events``, ``mqtt`` and ``rtsp`` take the same
settings as flags. SIGTERM and SIGINT let what is on its way arrive (two seconds at most) and end with 0; a second
signal ends at once. The exit codes are named in ``ExitCode``.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from edged import __version__
from edged.config import Device
from edged.errors import ConfigError, EdgedError
from edged.feeder_config import EventsFeeder, FeederConfig, MqttFeeder, MqttTopic, RtspFeeder
from edged.feeders import events
from edged.feeders.account import Account, report
from edged.feeders.kit import ExitCode, Kit
from edged.host import journal
from edged.host.systemd import Notifier
from edged.settings import InvalidSettings, Problem, parse, read_toml

log = logging.getLogger(__name__)

DEFAULT_CONFIG = Path("/etc/edged/edged.toml")
DEFAULT_SOCKET = Device(id="default").runtime_dir / "http.sock"
KINDS: dict[str, type[EventsFeeder | MqttFeeder | RtspFeeder]] = {
    "events": EventsFeeder,
    "mqtt": MqttFeeder,
    "rtsp": RtspFeeder,
}


TOPIC = "topic_"  # flags of the one topic that a command line can name


class File(msgspec.Struct, frozen=True, kw_only=True):
    """What a feeder reads of the configuration; the rest is the daemon's."""

    device: Device
    feeder: tuple[FeederConfig, ...] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        settings, socket_path = _settings(options)
        return _run(settings, socket_path)
    except EdgedError as error:
        print(f"edged-feed: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return ExitCode.CONFIG if isinstance(error, ConfigError) else ExitCode.FAILED


def _run(settings: FeederConfig, socket_path: Path) -> int:
    journal.set_up()
    stop = threading.Event()
    account = Account(settings.name)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: _stop(stop))
    threading.excepthook = _end_with
    notifier = Notifier()
    notifier.ready(account.line())
    reporter = threading.Thread(target=report, args=(account, notifier, stop), name="report", daemon=True)
    reporter.start()
    try:
        return _feed(settings, Kit(socket_path, account, stop))
    finally:
        stop.set()
        notifier.stopping(account.line())
        account.say("ended")
        account.forget_reasons()
        print(f"edged-feed: {settings.name}: {account.counts.line()}", file=sys.stderr, flush=True)


def _feed(settings: FeederConfig, kit: Kit) -> int:
    """Import what this feeder needs, and nothing else."""
    if isinstance(settings, EventsFeeder):
        return events.run(settings, kit)
    if isinstance(settings, MqttFeeder):
        from edged.feeders import mqtt

        return mqtt.run(settings, kit)
    from edged.feeders import rtsp

    return rtsp.run(settings, kit)


def _end_with(defect: threading.ExceptHookArgs) -> None:
    """A defect in any thread ends the process, so that it is started again: half a feeder would only look alive."""
    where = defect.thread.name if defect.thread else "?"
    log.critical("defect in a thread", extra={"thread": where}, exc_info=defect.exc_value)
    os._exit(ExitCode.FAILED)


def _stop(stop: threading.Event) -> None:
    if stop.is_set():
        os._exit(ExitCode.SECOND_SIGNAL)
    stop.set()


def _settings(options: argparse.Namespace) -> tuple[FeederConfig, Path]:
    """The settings of one feeder, and the daemon's socket. Raises ConfigError."""
    if options.command == "run":
        return _from_file(options.config, options.name)
    own = ("command", "socket")
    given = {name: value for name, value in vars(options).items() if value is not None and name not in own}
    return _from_flags(options.command, given), options.socket


def _from_file(path: Path, name: str) -> tuple[FeederConfig, Path]:
    table = read_toml(path)
    problems: list[Problem] = []
    own = {key: value for key, value in table.items() if key in File.__struct_fields__}
    file = parse(File, own, problems, base=path.resolve().parent)
    if file is None:
        raise InvalidSettings(str(path), problems)
    found = [feeder for feeder in file.feeder if feeder.name == name]
    if len(found) != 1:
        names = ", ".join(feeder.name for feeder in file.feeder) or "none"
        raise ConfigError(f"{path}: {len(found)} feeders have the name {name!r}", f"feeders: {names}")
    return found[0], file.device.runtime_dir / "http.sock"


def _from_flags(kind: str, given: dict[str, Any]) -> FeederConfig:
    problems: list[Problem] = []
    table: dict[str, Any] = {"name": kind}
    for flag, value in given.items():
        if flag.startswith(TOPIC):
            table.setdefault("topic", [{}])[0][flag.removeprefix(TOPIC)] = value
        else:
            table[flag] = value
    settings = parse(KINDS[kind], table, problems, base=Path.cwd())
    if settings is None:
        raise InvalidSettings("flags", problems)
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edged-feed", description="Hands frames to the daemon's local socket.")
    parser.add_argument("--version", action="version", version=f"edged-feed {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the feeder of that name in the configuration")
    run.add_argument("name")
    run.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help=f"(default: {DEFAULT_CONFIG})")
    for kind, schema in KINDS.items():
        doc = (schema.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(kind, help=doc, description=f"{doc} The settings are those of docs/feeders.md.")
        command.add_argument("--socket", type=Path, default=DEFAULT_SOCKET, help=f"(default: {DEFAULT_SOCKET})")
        _add_flags(command, schema, "")
    return parser


def _add_flags(command: argparse.ArgumentParser, schema: Any, prefix: str) -> None:
    """One flag for each field of a schema; what the value must be is the schema's to say."""
    for field in msgspec.structs.fields(schema):
        if field.type is bool:
            command.add_argument(_flag(field.name), dest=field.name, action="store_true", default=None)
        elif schema is MqttFeeder and field.name == "topic":
            _add_flags(command, MqttTopic, TOPIC)
        else:
            kept = _is_text(field.type)
            command.add_argument(
                _flag(prefix + field.name),
                dest=prefix + field.name,
                type=str if kept else _number,
                metavar="TEXT" if kept else "NUMBER",
            )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_text(kind: Any) -> bool:
    """Whether a field takes a text as it is: text, one of several words, a path."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    parts = get_args(bare) if isinstance(bare, UnionType) else (bare,)
    return any(part in (str, Path) or get_origin(part) is Literal for part in parts)


def _number(text: str) -> object:
    """A number, or several with commas between them; anything else is left for the schema to refuse."""
    try:
        return tomllib.loads(f"value = [{text}]" if "," in text else f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
