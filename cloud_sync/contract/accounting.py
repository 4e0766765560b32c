"""Proves from one stream alone what arrived: every number delivered once, or covered by a gap that says why.

A consumer feeds what each event covers and acts on those rows only that ``feed`` calls new. Events may come twice, in
another order, or not at all. A row that was delivered stays delivered, even if a gap covers it later: the device may
shed what it has sent but not seen acknowledged. Pure: keeps no rows, only their numbers, as ranges.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cloud_sync.contract.messages import Predecessor, ResultData
from cloud_sync.contract.ranges import Ranges
from cloud_sync.contract.topics import ContractError


@dataclass(frozen=True, slots=True)
class Fed:
    """What one event brought: numbers seen for the first time, and numbers that had been delivered before."""

    new: Ranges
    repeated: Ranges


@dataclass(frozen=True, slots=True)
class EpochReport:
    """The account of one epoch. ``missing`` may still arrive; ``lost`` cannot, for the epoch has ended.

    ``end_unknown``: the epoch has ended, and the device does not know at which number.
    """

    epoch: str
    delivered: Ranges
    doubled: Ranges
    gaps: Ranges
    missing: Ranges
    lost: Ranges
    end_unknown: bool

    @property
    def complete(self) -> bool:
        """Every number up to the last known one was delivered or is covered by a gap."""
        return not self.missing and not self.lost and not self.end_unknown


@dataclass(slots=True)
class _Epoch:
    begin: int
    delivered: Ranges = field(default_factory=Ranges)
    doubled: Ranges = field(default_factory=Ranges)
    gaps: Ranges = field(default_factory=Ranges)
    claimed: int = 0  # the last number that any event or a successor spoke of
    ended: bool = False
    end: int | None = None


class StreamAccount:
    """The account of one stream of one device over all its epochs.

    ``from_start``: expect every epoch from number 1, and the predecessors of the first; else begin with what comes.
    """

    def __init__(self, stream: str, *, from_start: bool = True) -> None:
        self.stream = stream
        self._from_start = from_start
        self._epochs: dict[str, _Epoch] = {}

    def feed(
        self,
        epoch: str,
        stream: str,
        first: int,
        last: int,
        rows: Iterable[int],
        gaps: Iterable[tuple[int, int]] = (),
        predecessor: Predecessor | None = None,
    ) -> Fed:
        """Account for one event that claims to cover ``first`` to ``last``; what it does not bring is missing.

        Raises ContractError for another stream, or numbers outside of what it claims; then nothing has changed.
        """
        arrived, covered = [(row, row) for row in rows], list(gaps)
        self._check(stream, first, last, arrived + covered)
        self._end_predecessor(predecessor)
        account = self._epochs.get(epoch)
        if account is None:
            begin = 1 if self._from_start or self._epochs else first
            account = self._epochs[epoch] = _Epoch(begin)
        fed = _deliver(account, arrived)
        for gap_first, gap_last in covered:
            account.gaps.add(gap_first, gap_last)
        account.claimed = max(account.claimed, last)
        return fed

    def feed_event(self, data: ResultData) -> Fed:
        """Account for a result event."""
        rows = [row.seq for row in data.rows]
        gaps = [(gap.first, gap.last) for gap in data.gaps]
        return self.feed(data.epoch, data.stream, data.first, data.last, rows, gaps, data.predecessor)

    def report(self) -> list[EpochReport]:
        """The account of every epoch, in the order in which they were heard of."""
        return [_report(name, account) for name, account in self._epochs.items()]

    @property
    def complete(self) -> bool:
        """Nothing is missing and nothing is lost."""
        return all(report.complete for report in self.report())

    def _check(self, stream: str, first: int, last: int, spans: list[tuple[int, int]]) -> None:
        if stream != self.stream:
            raise ContractError(f"an event of stream {stream!r} was fed to the account of {self.stream!r}")
        if not 1 <= first <= last:
            raise ContractError(f"stream {stream!r}: an event covers {first} to {last}")
        for begin, end in spans:
            if not first <= begin <= end <= last:
                raise ContractError(f"stream {stream!r}: {begin} to {end} lies outside of {first} to {last}")

    def _end_predecessor(self, predecessor: Predecessor | None) -> None:
        if predecessor is None:
            return
        account = self._epochs.get(predecessor.epoch)
        if account is None:
            if not self._from_start:
                return
            account = self._epochs[predecessor.epoch] = _Epoch(1)
        account.ended = True
        if predecessor.last is not None:
            account.end = max(account.end or 0, predecessor.last)
            account.claimed = max(account.claimed, predecessor.last)


def _deliver(account: _Epoch, rows: list[tuple[int, int]]) -> Fed:
    arrived, twice = Ranges(), Ranges()
    for seq, _ in rows:
        (twice if seq in arrived else arrived).add(seq, seq)
    repeated = (arrived & account.delivered) | twice
    new = arrived - account.delivered
    for first, last in arrived:
        account.delivered.add(first, last)
    for first, last in repeated:
        account.doubled.add(first, last)
    return Fed(new, repeated)


def _report(name: str, account: _Epoch) -> EpochReport:
    absent = (account.delivered | account.gaps).missing(account.begin, account.claimed)
    return EpochReport(
        epoch=name,
        delivered=account.delivered | Ranges(),
        doubled=account.doubled | Ranges(),
        gaps=account.gaps - account.delivered,
        missing=Ranges() if account.ended else absent,
        lost=absent if account.ended else Ranges(),
        end_unknown=account.ended and account.end is None,
    )
