"""The books of the demo: what was fed, what arrived at the subscriber, and whether the two agree.

Every fed file carries its number in its name, and the number tells the true label. What arrived is proved twice: by the
account of the stream (every sequence number once) and by the numbers of the files (every frame once). Numbers are kept
as ranges, so a demo may run for days. No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from cloud_sync.contract.accounting import StreamAccount
from cloud_sync.contract.messages import Row
from cloud_sync.contract.ranges import Ranges
from cloud_sync.contract.results import unpack
from edged.status import Status


@dataclass(frozen=True)
class Totals:
    """The daemon's own durable account of everything that was fed."""

    received: int = 0
    committed: int = 0
    rejected: int = 0
    dropped: int = 0


def totals(status: Status | None) -> Totals:
    """The sum over all sources."""
    sources = [source for pipeline in status.pipelines for source in pipeline.sources] if status else []

    def add(field: str) -> int:
        return sum(getattr(source, field) for source in sources)

    return Totals(add("received"), add("committed"), add("rejected"), add("dropped"))


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


def problems(books: Books, stored: Totals, least_accuracy: float) -> list[str]:
    """Everything that is missing, doubled or wrong when feeding has ended; empty when all is well."""
    found = []
    if not books.fed:
        found.append("nothing was fed")
    if books.missing:
        found.append(f"{books.missing} results are missing")
    if books.doubled:
        found.append(f"{books.doubled} results arrived twice")
    if stored != Totals(received=books.fed, committed=books.fed):
        found.append(f"{books.fed} frames were fed, but the daemon's account is {stored}")
    if books.accuracy < least_accuracy:
        found.append(f"the accuracy is {books.accuracy:.4f}; at least {least_accuracy} is expected")
    return found + books.failures


def summary(books: Books, stored: Totals) -> str:
    """The figures of a run in one line, for machines."""
    return (
        f"demo: received={stored.received} committed={stored.committed} delivered={books.delivered}"
        f" missing={books.missing} doubled={books.doubled} accuracy={books.accuracy:.4f}"
    )


def _number(row: Row) -> int | None:
    """The number in the name of the file: the key is ``<name>.npy#<digest>``."""
    name = (row.key or "").partition(".")[0]
    return int(name) if name.isdecimal() else None
