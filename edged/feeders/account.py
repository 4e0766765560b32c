"""What became of a feeder's frames: counters that close, one status line, told to the journal and to systemd.

received = handed + refused + dropped + skipped + what is on its way. ``duplicates`` are among the handed. Counters are
those of this process; the durable account of what was handed in is the daemon's. Thread-safe.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace

from edged.feeders.daemon import Handed, Refused
from edged.host.systemd import Notifier

log = logging.getLogger(__name__)

TELL_EVERY_S = 60.0  # the counters in the journal, where they changed: an hour of history in 60 lines
LOOK_EVERY_S = 1.0
SWING_S = 10.0  # a state that comes and goes is logged once in this time
MOST_REASONS = 8  # kinds of refusal that are logged a minute; a sensor gone mad must not fill the journal


@dataclass(frozen=True, slots=True)
class Counts:
    """One look at the counters."""

    received: int = 0
    handed: int = 0
    duplicates: int = 0
    refused: int = 0
    dropped: int = 0
    skipped: int = 0
    connections: int = 0

    def line(self) -> str:
        """``name=number`` words; received, handed, refused and dropped always, the others where they happened."""
        always = ("received", "handed", "refused", "dropped")
        return " ".join(f"{name}={count}" for name, count in asdict(self).items() if count or name in always)


class Account:
    """The counters of one feeder, and what it does now."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._counts = Counts()
        self._state = "starting"
        self._logged: dict[str, float] = {}  # when states were logged
        self._told: Counter[str] = Counter()

    def count(self, **more: int) -> None:
        """Add to counters by their names."""
        with self._lock:
            changed = {name: getattr(self._counts, name) + count for name, count in more.items()}
            self._counts = replace(self._counts, **changed)

    def end(self, key: str, outcome: Handed | Refused) -> None:
        """A frame has ended."""
        if isinstance(outcome, Handed):
            self.count(handed=1, duplicates=int(outcome.duplicate))
        else:
            self.refuse(key, outcome.reason)

    def refuse(self, what: str, reason: str) -> None:
        """Something that arrived will never be a frame with a result: counted, and told by name."""
        self.count(refused=1)
        kind = reason.partition(":")[0]
        with self._lock:
            self._told[kind] += 1
            is_new = self._told[kind] == 1 and len(self._told) <= MOST_REASONS
        if is_new:
            log.warning("refused", extra={"feeder": self.name, "frame": what, "reason": reason})

    def say(self, state: str) -> None:
        """What the feeder does now; logged where it changed, and not again and again where it swings."""
        with self._lock:
            changed, self._state = state != self._state, state
            now = time.monotonic()
            is_told = changed and now - self._logged.get(state, -SWING_S) >= SWING_S
            if is_told:
                self._logged = {other: at for other, at in self._logged.items() if now - at < SWING_S} | {state: now}
        if is_told:
            log.info("%s", state, extra={"feeder": self.name})

    @property
    def counts(self) -> Counts:
        """The counters now."""
        with self._lock:
            return self._counts

    def line(self) -> str:
        """State and counters."""
        return f"{self._state}; {self.counts.line()}"

    def forget_reasons(self) -> None:
        """Let refusals be told again; says how many of each kind were not."""
        with self._lock:
            told, self._told = self._told, Counter()
        for kind, count in told.items():
            if count > 1:
                log.warning("refused more of the same", extra={"feeder": self.name, "count": count, "reason": kind})


def report(account: Account, notifier: Notifier, stop: threading.Event, every_s: float = TELL_EVERY_S) -> None:
    """Keep systemd's status line current, and the journal's counters once in ``every_s``, until ``stop``."""
    looks, last = 0, Counts()
    while not stop.wait(LOOK_EVERY_S):
        notifier.status(account.line())
        looks += 1
        if looks * LOOK_EVERY_S >= every_s:
            looks = 0
            account.forget_reasons()
            if account.counts != last:
                last = account.counts
                log.info("%s", account.line(), extra={"feeder": account.name})
