"""``edged model install | list | trial | commit | rollback | remove``: the commands of the model store.

With a running daemon a command asks it (it alone writes the store); without one, the command takes the store's lock and
does the same itself, as the user who owns the state. Parsers only; errors are EdgedErrors for the caller to print.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from edged.bundle.archive import pack
from edged.bundle.store import control, incoming, requests
from edged.bundle.store.record import Record, Slot
from edged.bundle.store.store import LOCK_TIMEOUT_S, ModelStore, StoreHeld, read_store
from edged.bundle.store.trust import Trust
from edged.errors import BundleError, EdgedError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

DIGEST_SHOWN = 12
FAILED = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a device keeps its models, and who may sign them."""

    models: Path
    incoming: Path
    runtime: Path
    trust: Trust
    used: Collection[str]  # models that pipelines name


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``list``."""

    name: str
    version: str
    state: str
    digest: str
    release_counter: int
    signer: str
    trial_starts: int
    proved_on: tuple[str, ...]
    reason: str


FindPlace = Callable[[argparse.Namespace], Place]


def add_commands(
    subparsers: _SubParsersAction[argparse.ArgumentParser], place: FindPlace
) -> list[argparse.ArgumentParser]:
    """Add ``model`` and return its commands. Every parser sets ``func``: arguments in, exit code out."""
    model = subparsers.add_parser("model", help="install models, try them, and return to the previous one")
    commands = model.add_subparsers(dest="model_command", required=True, metavar="COMMAND")

    install = commands.add_parser("install", help="verify a signed bundle and stage it; it does not run yet")
    install.add_argument("bundle", type=Path, help="a bundle directory or file")
    install.add_argument("--trial", action="store_true", help="put it on trial at once")
    install.set_defaults(func=lambda args: run_install(args, place(args)))

    listing = commands.add_parser("list", help="show what is installed")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(func=lambda args: run_list(args, place(args)))

    trial = commands.add_parser("trial", help="run what is staged until it proved itself, or is taken back")
    _add_choice(trial)
    trial.set_defaults(func=lambda a: _run(place(a), requests.Trial(a.name, a.digest)))

    commit = commands.add_parser("commit", help="end a trial well before its time; its self-test must have passed")
    commit.add_argument("name", help="the model's name")
    commit.set_defaults(func=lambda a: _run(place(a), requests.Commit(a.name)))

    rollback = commands.add_parser("rollback", help="end a trial, or return to the previous version")
    rollback.add_argument("name", help="the model's name")
    rollback.set_defaults(func=lambda a: _run(place(a), requests.Rollback(a.name)))

    remove = commands.add_parser("remove", help="remove one bundle, or a model that no pipeline uses")
    _add_choice(remove)
    remove.set_defaults(func=lambda a: _run(place(a), requests.Remove(a.name, a.digest)))
    return list(commands.choices.values())


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the model's name")
    parser.add_argument("--digest", default="", help="the bundle whose digest begins like this")


def run_install(args: argparse.Namespace, place: Place) -> int:
    """Pack what is a directory, leave it in ``incoming``, and ask for it."""
    incoming.make(place.incoming)
    with _packed(args.bundle, place.incoming) as file:
        return _run(place, requests.Install(file.name, trial=args.trial))


def run_list(args: argparse.Namespace, place: Place) -> int:
    """Show every slot; exit code 1 when a record cannot be read."""
    records, problems = read_store(place.models)
    rows = [_listed(record, slot) for record in records for slot in record.slots]
    if args.json:
        floors = {record.name: record.floor for record in records}
        table = {"models": rows, "release_floor": floors, "problems": problems}
        print(msgspec.json.format(msgspec.json.encode(table), indent=2).decode())
    else:
        print("\n".join(_table(rows)) if rows else "no model is installed")
        for name, problem in problems.items():
            print(f"{name}: PROBLEM: {problem}")
    return FAILED if problems else 0


def _listed(record: Record, slot: Slot) -> Listed:
    engines = {f"{p.engine} {p.engine_version}" for p in record.proofs if p.digest == slot.digest}
    return Listed(
        name=record.name,
        version=slot.version,
        state=slot.state.value,
        digest=slot.digest,
        release_counter=slot.release_counter,
        signer=slot.signer or "UNSIGNED",
        trial_starts=slot.trial_starts,
        proved_on=tuple(sorted(engines)),
        reason=slot.reason,
    )


def _table(rows: list[Listed]) -> Iterator[str]:
    cells = [("model", "state", "release", "digest", "signed by", "proved on")]
    for row in rows:
        proved = ", ".join(row.proved_on) or "-"
        what = (f"{row.name}@{row.version}", row.state, str(row.release_counter), row.digest[:DIGEST_SHOWN])
        cells.append((*what, row.signer, proved))
    widths = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
    for line, reason in zip(cells, ("", *(row.reason for row in rows)), strict=True):
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        if reason:
            yield f"    {reason}"


def _run(place: Place, request: requests.Request) -> int:
    done = _done(place, request)
    print(done.message)
    return 0


def _done(place: Place, request: requests.Request) -> requests.Done:
    """Ask the daemon; where there is none, do it oneself. Raises EdgedError."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        answer = control.ask(place.runtime, request)
        if isinstance(answer, requests.Refusal):
            raise EdgedError(answer.message, answer.hint)
        if answer is not None:
            return answer
        try:
            return _alone(place, request)
        except StoreHeld:  # a daemon that starts or stops: it will listen, or let go
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _alone(place: Place, request: requests.Request) -> requests.Done:
    with _as_owner(place.models):
        store = ModelStore(place.models, place.trust)
        store.open(timeout_s=0)
        try:
            return requests.perform(store, request, place.incoming, used=place.used, running=False)
        finally:
            store.close()


@contextlib.contextmanager
def _as_owner(directory: Path) -> Iterator[None]:
    """As root: work as the user whom the state belongs to, so that the daemon can use what is written."""
    there = next(parent for parent in (directory, *directory.parents) if parent.exists())
    owner = there.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@contextlib.contextmanager
def _packed(bundle: Path, directory: Path) -> Iterator[Path]:
    """A copy in ``incoming``, for the daemon to take; locked while this command lives (``incoming.prepare``)."""
    with _locked_file(directory) as copy:
        file = Path(copy.name)
        try:
            if bundle.is_dir():
                with tempfile.TemporaryDirectory(prefix="edged-pack-") as scratch:
                    pack(bundle, Path(scratch) / file.name)
                    _copy(Path(scratch) / file.name, copy)
            else:
                _copy(bundle, copy)
            copy.flush()
            owner = directory.stat()
            if os.geteuid() == 0:
                os.chown(file, owner.st_uid, owner.st_gid)
            file.chmod(0o640)
            yield file
        finally:
            file.unlink(missing_ok=True)


def _locked_file(directory: Path) -> BinaryIO:
    while True:
        try:
            fd, name = tempfile.mkstemp(prefix=incoming.COMMAND_PREFIX, suffix=".tar", dir=directory)
        except OSError as error:
            hint = "run it as root or as the daemon's user"
            raise EdgedError(f"{directory} cannot be written: {error.strerror}", hint) from None
        os.close(fd)
        file = Path(name).open("wb")  # noqa: SIM115 - the caller closes it
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # else a daemon that starts took it for a leftover, a moment ago
            return file
        file.close()


def _copy(source: Path, target: BinaryIO) -> None:
    try:
        with source.open("rb") as file:
            shutil.copyfileobj(file, target)
    except OSError as error:
        raise BundleError(f"{source} cannot be copied to the device: {error.strerror}") from None
