"""Messages that are with us and not handed in yet: bounded by their bytes, between one connection and several threads.

The broker's Receive Maximum bounds their number in the steady state; after a reconnection mosquitto 2.0 sends
everything that was in flight at once, whatever it says (measured with 2.0.11), so the bound is kept here. Beyond it
whoever brings a message of QoS 1 waits, and the broker with him; one of QoS 0 is not taken.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, Protocol, TypeVar

MOST_BYTES = 64 << 20  # two of the largest frames, or some hundred thousand readings of a sensor
OWN_BYTES = 512  # of an empty message, its topic and its place here, about


class Item(Protocol):
    """What waits here."""

    @property
    def size_bytes(self) -> int:
        """Memory that it takes, about."""

    @property
    def is_stale(self) -> bool:
        """Whether nobody needs it any more."""


T = TypeVar("T", bound=Item)


class Inbox(Generic[T]):
    """A queue of items. Thread-safe."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._changed = threading.Condition()
        self._items: deque[T] = deque()
        self._bytes = 0

    def put(self, item: T, *, waits: bool) -> bool:
        """Take an item in; where there is no room, wait for it (or until the item is stale), or return False."""
        with self._changed:
            while self._items and self._bytes + item.size_bytes > self._most_bytes:
                if not waits or item.is_stale:
                    return False
                self._changed.wait()
            self._items.append(item)
            self._bytes += item.size_bytes
            self._changed.notify_all()
            return True

    def get(self, timeout_s: float) -> T | None:
        """The oldest item; None when there is none for so long."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._items, timeout_s):
                return None
            item = self._items.popleft()
            self._bytes -= item.size_bytes
            self._changed.notify_all()
            return item

    def purge(self) -> int:
        """Forget the stale items; how many they were. Wakes who waits with one."""
        with self._changed:
            kept = [item for item in self._items if not item.is_stale]
            gone = len(self._items) - len(kept)
            self._items = deque(kept)
            self._bytes = sum(item.size_bytes for item in kept)
            self._changed.notify_all()
            return gone
