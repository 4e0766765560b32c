"""Safe mode: what runs in the daemon's place while the daemon cannot, and the decision when that is.

``edged.service`` starts here. ``start`` looks at how the last starts ended. As a rule it becomes the daemon (exec, so
that process, sockets and notifications stay as they are). After a wrong configuration, or after a row of starts that
each ended within a minute, it stays: it tells the reason on the daemon's own sockets, in ``status.json`` (which
edged-sync brings to the broker) and to systemd, and ends by itself when the configuration has become right, or after a
rest that doubles from time to time; systemd then starts it again. ``record`` runs after every end of the service
(ExecStopPost=) and writes down how it ended.

Standard library only, and nothing of the daemon but what it tells systemd with: it must stand where packages are
damaged. Decisions are pure functions of ``History``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

RUNTIME_DIR = Path("/run/edged")
HISTORY = "starts.json"
LAST_WORDS = "last-words"

QUICK_S = 60.0  # a start that held so long ends the row: whatever it fell over, it did work before
ROW = 5  # quick ends in a row: systemd's own usual limit
REST_S, LONGEST_REST_S = 15.0, 600.0
WRONG_CONFIGURATION = 78  # EX_CONFIG, the daemon's exit code
PROBE_S = 30.0  # to read a configuration, on the slowest device
PROBE = """\
import sys
from pathlib import Path
from edged import config
from edged.errors import EdgedError
try:
    config.load(Path(sys.argv[1]))
except EdgedError as error:
    sys.exit(str(error))
"""


@dataclass(frozen=True, slots=True)
class History:
    """How the last starts ended. ``row``: those that ended quickly, since one held; times are of CLOCK_BOOTTIME."""

    started_s: float = 0.0
    row: tuple[str, ...] = ()
    wrong: bool = False  # the daemon said last that its configuration is wrong
    rests: int = 0  # of the present row
    resting: bool = False  # it is safe mode that runs, not the daemon


@dataclass(frozen=True, slots=True)
class Rest:
    """Why the daemon is not started now. ``longest_s``: None until the configuration is right."""

    reason: str
    longest_s: float | None = None


def begun(history: History, now_s: float, *, resting: bool) -> History:
    """A start, of the daemon or of safe mode."""
    return replace(history, started_s=now_s, resting=resting, rests=history.rests + resting)


def ended(history: History, result: str, code: str, status: str, now_s: float) -> History:
    """An end as systemd tells it: $SERVICE_RESULT, $EXIT_CODE, $EXIT_STATUS (systemd.exec(5))."""
    if history.resting:  # one try is due; when it fails too, the row is full again
        return replace(history, resting=False, wrong=False, row=history.row[1 - ROW :])
    if result == "success":  # it was stopped: whoever starts it again begins anew
        return History()
    held = now_s - history.started_s >= QUICK_S
    before = () if held else history.row[1 - ROW :]
    rests = 0 if held else history.rests
    wrong = status == str(WRONG_CONFIGURATION) and code == "exited"
    return History(history.started_s, (*before, _how(result, code, status)), wrong, rests)


def rest(history: History, problem: str, last_words: str) -> Rest | None:
    """Whether to stay in safe mode, and why. ``problem``: what is wrong with the configuration, if it was asked."""
    if problem:
        return Rest(f"the configuration is wrong: {problem}")
    if len(history.row) < ROW:
        return None
    longest_s = min(REST_S * 2**history.rests, LONGEST_REST_S)
    reason = f"the daemon ended {len(history.row)} times within a minute of its start; at last it {history.row[-1]}"
    words = f", after it had said: {last_words}" if last_words else ""
    return Rest(f"{reason}{words}. It is tried again every {longest_s:.0f} s", longest_s)


def _how(result: str, code: str, status: str) -> str:
    match result:
        case "watchdog":
            return "made no progress (the watchdog ended it)"
        case "timeout":
            return "did not get ready, or did not stop, in time"
        case "oom-kill":
            return "was killed for want of memory"
        case "resources":
            return "could not be started for want of resources"
    if code == "exited":
        return f"exited with code {status}"
    return f"was killed by SIG{status.removeprefix('SIG')}" if code in ("killed", "dumped") else f"failed: {result}"


# Files of one boot, in the service's runtime directory


def read_history(runtime_dir: Path) -> History:
    """What is known of earlier starts; nothing, when the file is missing or damaged."""
    try:
        told = json.loads((runtime_dir / HISTORY).read_text(encoding="utf-8"))
        return History(**{**told, "row": tuple(map(str, told["row"]))})
    except (OSError, ValueError, TypeError, KeyError):
        return History()


def write_history(runtime_dir: Path, history: History) -> None:
    """Keep it for the next start. A runtime directory that cannot be written costs the backoff, not the start."""
    replace_file(runtime_dir / HISTORY, json.dumps(asdict(history)))


def replace_file(file: Path, text: str) -> None:
    """Put a file in place whole, if that is possible."""
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        print(f"<4>{file} cannot be written: {error.strerror}", file=sys.stderr)


def leave_words(error: BaseException, runtime_dir: Path = RUNTIME_DIR) -> None:
    """What the daemon says when it falls, for safe mode to tell. Silent where there is no service."""
    inner = error
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    with contextlib.suppress(OSError):
        (runtime_dir / LAST_WORDS).write_text(f"{type(inner).__name__}: {inner}"[:1000], encoding="utf-8")


def take_words(runtime_dir: Path) -> str:
    """The last words of the daemon before, on one line."""
    try:
        return " ".join((runtime_dir / LAST_WORDS).read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError):
        return ""


def problem_of(config: Path) -> str:
    """What is wrong with a configuration, as the daemon's own reader says; empty: nothing."""
    command = [sys.executable, "-I", "-c", PROBE, str(config)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S, check=False)
    except subprocess.TimeoutExpired:
        return f"it could not be read within {PROBE_S:.0f} s"
    lines = done.stderr.strip().splitlines()
    known = done.returncode == 1 and not done.stderr.startswith("Traceback")
    return "" if done.returncode == 0 else "; ".join(line.strip() for line in (lines if known else lines[-1:]))


# The command


@dataclass(slots=True)
class Place:
    """Where the service keeps what it knows."""

    runtime_dir: Path = RUNTIME_DIR
    config: Path = field(default_factory=lambda: Path("/etc/edged/edged.toml"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. ``start`` returns only where safe mode has run."""
    parser = argparse.ArgumentParser(prog="edged-safe-mode", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["start", "record"])
    parser.add_argument("--config", type=Path, default=Path("/etc/edged/edged.toml"))
    parser.add_argument("--runtime-dir", type=Path, default=RUNTIME_DIR, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    place = Place(options.runtime_dir, options.config)
    return start(place) if options.command == "start" else record(place, os.environ)


def record(place: Place, environment: Mapping[str, str]) -> int:
    """Write down how the service ended."""
    result, code, status = (environment.get(name, "") for name in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"))
    history = read_history(place.runtime_dir)
    write_history(place.runtime_dir, ended(history, result, code, status, boottime_s()))
    return 0


def start(place: Place) -> int:
    """Become the daemon, or run safe mode for as long as it is needed."""
    history = read_history(place.runtime_dir)
    needed = rest(history, problem_of(place.config) if history.wrong else "", take_words(place.runtime_dir))
    write_history(place.runtime_dir, begun(history, boottime_s(), resting=needed is not None))
    if needed is None:
        with contextlib.suppress(OSError):
            (place.runtime_dir / LAST_WORDS).unlink()
        command = [sys.executable, "-I", "-m", "edged", "run", "--config", str(place.config)]
        os.execv(command[0], command)  # noqa: S606  a shell would only stand between systemd and the daemon
    from edged.safe_mode_page import serve  # only now: the daemon starts without a web server's modules

    serve(needed, place)
    return 0


def boottime_s() -> float:
    """Seconds since the boot, also of a device without a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


if __name__ == "__main__":
    sys.exit(main())
