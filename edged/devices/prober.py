"""``python -m edged.devices.prober``: asks boards on Ethernet whether they answer, for a daemon that has no network.

One connection, which it serves to its end: the daemon names a board, this process asks it and tells the answer. Which
boards there are it reads itself, from the configuration or its command line: the daemon cannot have another address
asked. systemd starts it with a connection of the daemon (``edged-boards.socket``); elsewhere the daemon does.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edged.devices.reach import reach
from edged.errors import ConfigError
from edged.hardware_config import Board
from edged.settings import InvalidSettings, Problem, parse, read_toml

CONNECTION = 3  # SD_LISTEN_FDS_START: the first descriptor that systemd hands over
PACKET = 4096
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: systemd shows it by name


class Boards(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the configuration that this process reads."""

    board: tuple[Board, ...] = ()


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask this board. ``number`` comes back with the answer."""

    number: int
    board: str


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As ``edged.devices.probe.Verdict``: why a board cannot be used, or nothing, and what is worth knowing."""

    number: int
    problem: str = ""
    note: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one connection until the other side ends it. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="edged-boards", description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", type=Path, help="the daemon's configuration")
    which.add_argument("--boards", help="the boards of it, as JSON")
    parser.add_argument("--fd", type=int, default=CONNECTION, help="the connection")
    options = parser.parse_args(arguments)
    try:
        boards = load(options.config) if options.config else of_json(options.boards)
    except ConfigError as error:
        print(f"edged-boards: {error.message}", file=sys.stderr)
        return EXIT_CONFIG
    with socket.socket(fileno=options.fd) as connection:
        connection.setblocking(False)
        asyncio.run(serve(connection, boards))
    return 0


def load(path: Path) -> tuple[Board, ...]:
    """The boards of a configuration; of the rest, this process may not even see what it names. Raises ConfigError."""
    problems: list[Problem] = []
    found = parse(Boards, {key: value for key, value in read_toml(path).items() if key == "board"}, problems)
    if found is None:
        raise InvalidSettings(str(path), problems)
    return found.board


def as_json(boards: Sequence[Board]) -> str:
    """Boards for the command line."""
    return msgspec.json.encode(boards).decode()


def of_json(text: str) -> tuple[Board, ...]:
    """What ``as_json`` made."""
    return msgspec.json.decode(text, type=tuple[Board, ...])


async def serve(connection: socket.socket, boards: Sequence[Board]) -> None:
    """Answer questions, several at a time, until the daemon hangs up."""
    known = {board.name: board for board in boards}
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        while packet := await loop.sock_recv(connection, PACKET):
            question = msgspec.json.decode(packet, type=Question)
            tasks.create_task(_answer(connection, question, known.get(question.board)))


async def _answer(connection: socket.socket, question: Question, board: Board | None) -> None:
    if board is None:
        answer = Answer(number=question.number, problem="it is not in the configuration of edged-boards")
    else:
        verdict = await reach(board.probe, board.address, board.at, board.deadline_s)
        answer = Answer(number=question.number, problem=verdict.problem, note=verdict.note)
    await asyncio.get_running_loop().sock_sendall(connection, msgspec.json.encode(answer))


if __name__ == "__main__":
    sys.exit(main())
