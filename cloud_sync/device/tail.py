"""The buffer as the uplink sees it: how far each stream reaches, and the rows behind a number.

Every call is short and leaves nothing open, so the daemon's log never waits for the network. Raises StoreError.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cloud_sync.contract.messages import Predecessor
from cloud_sync.contract.results import Part
from cloud_sync.device.batch import take
from cloud_sync.device.uplink import LaneKey, Stored, Turn
from edged.buffer.reader import BufferReader, Epoch

OLD_EVERY_S = 1.0  # past epochs change only when the daemon sheds or salvages; each costs a look at the segments


class Tail:
    """Follows one buffer directory. The daemon may not have made it yet."""

    def __init__(self, directory: Path) -> None:
        self._reader = BufferReader(directory)
        self._epochs: dict[str, Epoch] = {}
        self._old: list[Stored] = []
        self._old_of = ""
        self._old_at = float("-inf")

    def look(self, now: float) -> tuple[Sequence[str], list[Stored]]:
        """The epochs, oldest first, and how far every stream of them reaches."""
        self._epochs = {epoch.id: epoch for epoch in self._reader.epochs()}
        order = list(self._epochs)
        if not order:
            return [], []
        *old, newest = order
        if newest != self._old_of or now - self._old_at >= OLD_EVERY_S:
            self._old = [stored for epoch in old for stored in self._positions(epoch)]
            self._old_of, self._old_at = newest, now
        return order, self._old + self._positions(newest)

    def part(self, turn: Turn, limit_bytes: int) -> Part | None:
        """What to send for a turn; None when the buffer does not hold it."""
        items = self._reader.read(turn.key.epoch, turn.key.stream, turn.after, turn.rows)
        return take(turn.after, turn.up_to, items, limit_bytes)

    def predecessor(self, key: LaneKey) -> Predecessor | None:
        """What the device knows of the stream in the epoch before; a stream that it does not name had no rows."""
        epoch = self._epochs.get(key.epoch)
        if epoch is None or epoch.predecessor is None:
            return None
        last = epoch.predecessor_last.get(key.stream, 0)
        return Predecessor(epoch=epoch.predecessor, last=last, reason=epoch.reason)

    def _positions(self, epoch: str) -> list[Stored]:
        return [
            Stored(LaneKey(epoch, position.stream), position.last, position.priority)
            for position in self._reader.streams(epoch)
        ]
