"""``edged devices``: which known devices are here, where each stands, and why. Runs beside a daemon, changes nothing.

It looks for itself, so that it also works where no daemon runs; who has a device is told by the daemon.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from edged.devices.watch import Watch
from edged.hardware_config import Board
from edged.status import DeviceFacts

Users = Callable[[Path], Mapping[str, str]]
"""Who has a device, by its path below /sys, as the daemon of a runtime directory tells it."""
HEADINGS = ("device", "kind", "state", "id", "node", "engine", "name")


def add_commands(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],  # argparse has no public name for it
    runtime_dir: Callable[[argparse.Namespace], Path],
    users: Users,
    boards: Callable[[argparse.Namespace], Sequence[Board]],
) -> None:
    """Add ``devices``. The parsed arguments carry ``func``: call it with them, it returns the exit code."""
    parser = subparsers.add_parser(
        "devices",
        help="which devices are here, and why one cannot be used",
        description="Show the known devices. Exit code: 0, or 1 when devices cannot be watched here.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--follow", action="store_true", help="go on: one line for every move, until Ctrl-C")
    parser.set_defaults(func=lambda arguments: run(arguments, users(runtime_dir(arguments)), boards(arguments)))


def run(arguments: argparse.Namespace, users: Mapping[str, str], boards: Sequence[Board]) -> int:
    """Carry out ``edged devices``."""
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(_run(users, boards, as_json=arguments.json, follow=arguments.follow))
    return 0


async def _run(users: Mapping[str, str], boards: Sequence[Board], *, as_json: bool, follow: bool) -> int:
    shown = False

    def on_move(facts: DeviceFacts) -> None:
        if shown:
            print(_json(facts) if as_json else move_line(facts), flush=True)

    watch = Watch(on_move=on_move, boards=boards)
    task = asyncio.create_task(watch.run(), name="devices")
    try:
        await watch.surveyed.wait()
        found = [_with_user(one, users) for one in watch.facts()]
        lines = [_json(one) for one in found] if as_json else table_lines(found)
        print(*lines, sep="\n" if lines else "", end="\n" if lines else "", flush=True)
        if watch.discovery != "udev":
            print(f"edged: {watch.discovery}", file=sys.stderr)
        shown = True
        if follow:
            await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return 1 if watch.discovery.startswith("off") else 0


def _with_user(facts: DeviceFacts, users: Mapping[str, str]) -> DeviceFacts:
    user = users.get(facts.path, "")
    return msgspec.structs.replace(facts, user=user, state="in-use") if user else facts


def _json(facts: DeviceFacts) -> str:
    return msgspec.json.encode(facts).decode()


def table_lines(devices: list[DeviceFacts]) -> list[str]:
    """The devices aligned under their headings, each reason below its device."""
    if not devices:
        return ["No known device is here."]
    rows = [(one.link, one.kind, one.state, one.id, one.node, one.engine, one.name) for one in devices]
    words = [tuple(_plain(word) or "-" for word in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *words, strict=True)]
    lines = ["  ".join(word.ljust(width) for word, width in zip(HEADINGS, widths, strict=True)).rstrip()]
    for device, row in zip(devices, words, strict=True):
        lines.append("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())
        said = [f"{device.user} has it"] if device.user else []
        said += [device.reason] if device.reason else []
        if said:
            lines.append(f"    because: {_plain('; '.join(said))}")
    return lines


def move_line(facts: DeviceFacts) -> str:
    """One move of one device."""
    where = facts.link or os.path.basename(facts.path)  # noqa: PTH119 -- a path of sysfs, not of a file
    return _plain(f"{where} {facts.state}" + (f": {facts.reason}" if facts.reason else ""))


def _plain(text: str) -> str:
    """What a device calls itself cannot move a terminal's cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
