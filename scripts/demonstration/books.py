"""The books of the demo: what was fed, what arrived at the subscriber, and whether the two agree.

Every fed file carries its number in its name, and the number tells the true label. What arrived is proved twice: by the
account of the stream (every sequence number once) and by the numbers of the files (every frame once). Numbers are kept
as ranges, so a demo may run for days. No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cloud_sync.contract.accounting import StreamAccount
from cloud_sync.contract.messages import Row
from cloud_sync.contract.ranges import Ranges
from cloud_sync.contract.results import unpack


class _Answer(msgspec.Struct):
    label: str


def file_name(number: int) -> str:
    """The name of the file with the ``number``-th frame, counted from 0. Names sort in the order of feeding."""
    return f"{number:09d}.npy"


class Books:
    """Counts one run. ``labels`` are the true labels of the images, which are fed in turn, again and again."""

    def __init__(self, stream: str, labels: Sequence[str]) -> None:
        self._labels = labels
        self._account = StreamAccount(stream)
        self._seen = Ranges()
        self._repeated = 0
        self.fed = 0
        self.right = 0
        self.failures: list[str] = []  # rows that are no prediction of a frame of ours

    def feed(self) -> int:
        """Count one more frame and return its number."""
        self.fed += 1
        return self.fed - 1

    def arrived(self, payload: bytes) -> None:
        """Account for one message. Raises ContractError when it is not what the contract says."""
        data = unpack(payload).data
        new = self._account.feed_event(data).new
        for row in data.rows:
            if row.seq in new:
                self._enter(row)

    def _enter(self, row: Row) -> None:
        number = _number(row)
        if row.kind != "result" or number is None or number >= self.fed:
            self.failures.append(f"seq {row.seq}: {row.kind} of {row.key}: {bytes(row.result).decode()}")
            return
        if number in self._seen:
            self._repeated += 1
            return
        self._seen.add(number, number)
        answer = msgspec.json.decode(row.result, type=_Answer)
        self.right += answer.label == self._labels[number % len(self._labels)]

    @property
    def delivered(self) -> int:
        """Frames whose result arrived."""
        return len(self._seen)

    @property
    def under_way(self) -> int:
        """Frames that were fed and whose result has not arrived."""
        return self.fed - self.delivered

    @property
    def holes(self) -> int:
        """Sequence numbers below the newest that did not arrive, whether or not a gap says why."""
        return sum(len(epoch.missing) + len(epoch.lost) + len(epoch.gaps) for epoch in self._account.report())

    @property
    def missing(self) -> int:
        """What did not arrive, once feeding has ended and everything under way had its time."""
        return max(self.under_way, self.holes)

    @property
    def doubled(self) -> int:
        """Sequence numbers that came twice, and frames that came under two sequence numbers."""
        return self._repeated + sum(len(epoch.doubled) for epoch in self._account.report())

    @property
    def accuracy(self) -> float:
        """Right predictions among those delivered; 0 before the first."""
        return self.right / self.delivered if self.delivered else 0.0


def _number(row: Row) -> int | None:
    """The number in the name of the file: the key is ``<name>.npy#<digest>``."""
    name = (row.key or "").partition(".")[0]
    return int(name) if name.isdecimal() else None
