"""The ledger: epochs, gaps and the sequence numbers that are set aside. A second, fsynced file beside the segments.

Rules: it is replaced atomically, and before the act that it announces: a gap stands here before its segment is
unlinked, a block of numbers before the first of them is given out, an epoch before its first segment. When every
segment is lost it still says which numbers may have been used. It holds no results and no totals.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from edged.buffer.errors import store_error
from edged.buffer.files import LEDGER, write_durably
from edged.buffer.records import Epoch, Gap, merge

FORMAT = 1
RESERVE = 16384  # numbers a block: one more fsync for so many rows, and the most that an upper bound can overstate
GAPS_KEPT = 64  # of one stream; older ones, delivered long ago, become one
EPOCHS_KEPT = 16  # past epochs without rows and gaps are forgotten; this many links of the chain stay


class StreamGaps(msgspec.Struct, frozen=True):
    """The gaps of one stream in one epoch, ordered and merged."""

    epoch: str
    stream: str
    gaps: tuple[Gap, ...]


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """The content of the file. ``reserved``: no seq above it was given out in the newest epoch."""

    format: int = FORMAT
    device: str
    machine_id: str
    epochs: tuple[Epoch, ...]
    reserved: dict[str, int] = {}
    lanes: tuple[int, ...] = ()  # each has an active segment of the newest epoch, or it was lost
    gaps: tuple[StreamGaps, ...] = ()
    floor_wall_ns: int = 0  # the wall clock has been this late already
    copied: bool = False  # of a backup: the original went on with the same numbers, so the copy may not

    @property
    def epoch(self) -> str:
        """The newest epoch."""
        return self.epochs[-1].id

    def gaps_of(self, epoch: str, stream: str) -> tuple[Gap, ...]:
        """The recorded gaps of a stream, in order."""
        return next((each.gaps for each in self.gaps if each.epoch == epoch and each.stream == stream), ())

    def with_gaps(self, epoch: str, new: Mapping[str, Iterable[Gap]]) -> Ledger:
        """The ledger with more gaps, by stream, merged with their neighbours."""
        by_place = {(each.epoch, each.stream): each.gaps for each in self.gaps}
        for stream, gaps in new.items():
            merged = merge([*by_place.get((epoch, stream), ()), *gaps])
            by_place[(epoch, stream)] = _condensed(merged)
        kept = tuple(StreamGaps(*place, gaps) for place, gaps in by_place.items() if gaps)
        return msgspec.structs.replace(self, gaps=kept)

    def with_epoch(self, reason: str, last: Mapping[str, int], wall_ns: int) -> Ledger:
        """The ledger with a new epoch that follows the newest one."""
        epoch = Epoch(str(uuid.uuid4()), self.epoch, reason, wall_ns, dict(last))
        return msgspec.structs.replace(self, epochs=(*self.epochs, epoch), reserved={}, lanes=())

    def without_epochs(self, held: set[str]) -> Ledger:
        """The ledger without old epochs of which nothing is held any more."""
        recent = {epoch.id for epoch in self.epochs[-EPOCHS_KEPT:]}
        kept = tuple(epoch for epoch in self.epochs if epoch.id in recent or epoch.id in held)
        ids = {epoch.id for epoch in kept}
        gaps = tuple(each for each in self.gaps if each.epoch in ids)
        return msgspec.structs.replace(self, epochs=kept, gaps=gaps)


def first_ledger(device: str, machine_id: str, wall_ns: int) -> Ledger:
    """The ledger of a store that never was."""
    epoch = Epoch(str(uuid.uuid4()), None, "first", wall_ns, {})
    return Ledger(device=device, machine_id=machine_id, epochs=(epoch,))


def read_ledger(directory: Path) -> Ledger | None:
    """Read the ledger; None when there is none. Raises StoreError (code "corrupt") when it is damaged."""
    path = directory / LEDGER
    try:
        ledger = msgspec.json.decode(path.read_bytes(), type=Ledger)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise store_error("corrupt", f"{path}: {error}") from None
    if not ledger.epochs or ledger.format != FORMAT:
        raise store_error("corrupt", f"{path}: format {ledger.format} with {len(ledger.epochs)} epochs")
    return ledger


def write_ledger(directory: Path, ledger: Ledger) -> None:
    """Replace the ledger durably. Raises OSError."""
    write_durably(directory / LEDGER, msgspec.json.encode(ledger))


def _condensed(gaps: list[Gap]) -> tuple[Gap, ...]:
    """Join the oldest neighbours whatever their reasons, so that years of outages do not grow the ledger."""
    while len(gaps) > GAPS_KEPT and gaps[0].last + 1 == gaps[1].first:
        oldest, following = gaps[0], gaps[1]
        bound = oldest.upper_bound or following.upper_bound
        gaps = [Gap(oldest.first, following.last, "gone", bound), *gaps[2:]]
    return tuple(gaps)
