"""Hands frames to the daemon until each has ended; what happens while the daemon is slower is said here, in two ways.

- ``Courier`` keeps at it: longer waits between attempts, never for ever, always with the same key, so that nothing is
  lost and nothing is stored twice. Who calls it waits, and so does whoever feeds him.
- ``Latest`` is for what cannot wait: one frame waits for the daemon, a newer one takes its place, and the former is
  counted as dropped.

A frame at which the daemon fails again and again (``Broken``) is given up: it must not hold up the others for ever.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

from edged.backoff import Backoff
from edged.feeders.account import Account
from edged.feeders.daemon import Away, Broken, Content, Daemon, Handed, Model, Refused

FIRST_S, MOST_S = 0.1, 2.0  # a daemon that restarts is back in seconds, and an attempt costs it one connection
GIVE_UP = 10  # attempts at a frame that breaks the daemon: about ten seconds
TELL_AFTER = 3  # attempts, until a wait is told: a full queue and a short restart are no news

Make = Callable[[], Content]


class Courier:
    """Hands frames in, one after the other. For one thread; ``stop`` ends every wait."""

    def __init__(self, socket_path: Path, model: str, account: Account, stop: threading.Event) -> None:
        self._daemon = Daemon(socket_path, model)
        self._account = account
        self._stop = stop

    def model(self) -> Model | None:
        """What the model takes, as soon as the daemon says so; None when stopped before."""
        waits = self._waits()
        while not self._stop.is_set():
            try:
                return self._daemon.model()
            except Away as error:
                waits.wait(error)
        return None

    def hand(self, key: str, content: Content) -> Handed | Refused | None:
        """Hand a frame in until it has ended, and count its end; None when stopped before."""
        waits = self._waits()
        while not self._stop.is_set():
            outcome: Handed | Refused
            try:
                outcome = self._daemon.hand(key, content)
            except Away as error:
                if not isinstance(error, Broken) or waits.broken < GIVE_UP:
                    waits.wait(error)
                    continue
                outcome = Refused(f"the daemon failed at it {GIVE_UP} times: {error}", is_stored=False)
            self._account.say("running")
            self._account.end(key, outcome)
            return outcome
        return None

    def close(self) -> None:
        """Give the connection back."""
        self._daemon.close()

    def _waits(self) -> _Waits:
        return _Waits(self._account, self._stop)


class _Waits:
    """The waits between the attempts at one thing."""

    def __init__(self, account: Account, stop: threading.Event) -> None:
        self.broken = 0
        self._attempts = 0
        self._account = account
        self._stop = stop
        self._backoff = Backoff(lambda: random.uniform(0.5, 1), FIRST_S, MOST_S)  # noqa: S311 -- spreads retries only

    def wait(self, error: Away) -> None:
        """The next wait; a longer one is told."""
        self._attempts += 1
        self.broken += isinstance(error, Broken)
        if self._attempts >= TELL_AFTER:
            self._account.say(f"waiting for the daemon: {error}")
        self._stop.wait(self._backoff.wait_s())


class Latest:
    """A place for one frame, between whoever brings it and the thread that hands it in with ``serve``.

    A frame is brought as a function that makes its content, so that a dropped one costs nothing.
    """

    def __init__(self, courier: Courier, account: Account) -> None:
        self._courier = courier
        self._account = account
        self._changed = threading.Condition()
        self._waiting: tuple[str, Make] | None = None
        self._busy = False
        self._over = False

    def put(self, key: str, make: Make) -> None:
        """Let a frame wait; the one that waited until now is dropped. Returns at once."""
        with self._changed:
            if self._waiting is not None:
                self._account.count(dropped=1)
            self._waiting = (key, make)
            self._changed.notify_all()

    def serve(self) -> None:
        """Hand in what waits, until ``finish`` or a stop."""
        while (frame := self._next()) is not None:
            key, make = frame
            if self._courier.hand(key, make()) is None:  # stopped; nobody hands this one in any more
                self._account.count(dropped=1)
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def finish(self, timeout_s: float) -> None:
        """No more frames will come: wait until the last is handed in, ``timeout_s`` at most."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting is None and not self._busy, timeout_s)
            if self._waiting is not None:
                self._waiting = None
                self._account.count(dropped=1)

    def _next(self) -> tuple[str, Make] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._over)
            frame, self._waiting = self._waiting, None
            self._busy = frame is not None
            return frame
