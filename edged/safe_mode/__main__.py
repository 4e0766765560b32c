"""Safe mode: what runs in the daemon's place while the daemon cannot, and the decision when that is.

``edged.service`` starts here. ``start`` looks at how the last starts ended. As a rule it becomes the daemon (exec, so
that process, sockets and notifications stay as they are). After a wrong configuration, or after a row of starts that
each ended within a minute, it stays: it tells the reason on the daemon's own sockets, in ``status.json`` (which
edged-sync brings to the broker) and to systemd, and ends by itself when the configuration has become right, or after a
rest that doubles from time to time; systemd then starts it again. ``record`` runs after every end of the service
(ExecStopPost=) and writes down how it ended.

Standard library only, and nothing of the daemon but what it tells systemd with: it must stand where packages are
damaged.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from edged.safe_mode.history import begun, ended, rest
from edged.safe_mode.place import LAST_WORDS, RUNTIME_DIR, Place, problem_of, read_history, take_words, write_history


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
    from edged.safe_mode.page import serve  # only now: the daemon starts without a web server's modules

    serve(needed, place)
    return 0


def boottime_s() -> float:
    """Seconds since the boot, also of a device without a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


if __name__ == "__main__":
    sys.exit(main())
