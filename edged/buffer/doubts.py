"""Groups of which nobody knows whether they were committed, and what their entries are told once that is known.

An I/O error at a commit leaves it open. Once the lane's segment was read again the group is there whole or not at all.
Whoever hands the same entries in again then gets the receipts of the first time; an entry of dropped frames has no
identity of its own, and would be counted twice otherwise. Only the last such group of a lane is remembered.
"""

from __future__ import annotations

from collections.abc import Sequence

from edged.buffer.segment import Segment
from edged.domain import Entry, Receipt

Group = Sequence[tuple[Entry, Receipt]]  # the receipts that the entries have if the commit took place


class Doubts:
    """What is in doubt by lane, and what turned out to be stored. For the writer thread."""

    def __init__(self) -> None:
        self._open: dict[int, Group] = {}
        self._stored: dict[int, dict[int, tuple[Entry, Receipt]]] = {}  # by lane and identity of the very object

    def remember(self, lane: int, group: Group) -> None:
        """A commit of this group failed, and perhaps took place."""
        self._open[lane] = group

    def decide(self, lane: int, segment: Segment) -> None:
        """The lane's segment was read again: the group in doubt is there, or it is not. Raises sqlite3.Error."""
        group = self._open.get(lane, ())
        if not group:
            return
        _, first = group[0]
        there = segment.head.epoch == first.epoch and segment.has(first.stream, first.seq)
        del self._open[lane]
        self._stored[lane] = {id(entry): (entry, receipt) for entry, receipt in group} if there else {}

    def claim(self, lane: int, entry: Entry) -> Receipt | None:
        """The receipt of an entry that turned out to be stored, once."""
        found = self._stored.get(lane, {}).pop(id(entry), None)
        return None if found is None else found[1]
