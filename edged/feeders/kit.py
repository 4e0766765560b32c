"""What every feeder is given, and what it gives back when it ends."""

from __future__ import annotations

import enum
import threading
from dataclasses import dataclass
from pathlib import Path

from edged.feeders.account import Account
from edged.feeders.handing import Courier

DRAIN_S = 2.0  # frames that are on their way at a stop get this long


class ExitCode(enum.IntEnum):
    """What the process says when it ends."""

    OK = 0
    FAILED = 1  # an error that is told
    USAGE = 2  # argparse's own
    REFUSED = 65  # EX_DATAERR: all recordings were fed, and some refused
    CONFIG = 78  # EX_CONFIG of sysexits.h: restarting does not help
    SECOND_SIGNAL = 130  # told to stop twice


@dataclass(frozen=True, slots=True)
class Kit:
    """The daemon's socket, the books, and the event that ends every wait."""

    socket_path: Path
    account: Account
    stop: threading.Event

    def courier(self, model: str) -> Courier:
        """A connection to the daemon, for one thread."""
        return Courier(self.socket_path, model, self.account, self.stop)
