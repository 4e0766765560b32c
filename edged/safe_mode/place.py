"""What safe mode keeps and asks: files in the service's runtime directory, and whether the configuration is right."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edged.safe_mode.history import History

RUNTIME_DIR = Path("/run/edged")
HISTORY = "starts.json"
LAST_WORDS = "last-words"

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


@dataclass(slots=True)
class Place:
    """Where the service keeps what it knows."""

    runtime_dir: Path = RUNTIME_DIR
    config: Path = field(default_factory=lambda: Path("/etc/edged/edged.toml"))


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


def replace_file(file: Path, text: str) -> None:
    """Put a file in place whole, if that is possible."""
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        print(f"<4>{file} cannot be written: {error.strerror}", file=sys.stderr)
