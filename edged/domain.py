"""The nouns that every part of the daemon shares: frames, entries, receipts, predictions.

Frozen values only: no I/O, no clocks, no behaviour beyond their own consistency.
Times named ``*_ns`` are CLOCK_BOOTTIME nanoseconds unless they say ``wall``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    # Types only: edged-sync needs the nouns but no array, and NumPy is a third of its memory and of its start.
    import numpy as np
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"


class Kind(enum.Enum):
    """How a received frame ended. Every frame ends in exactly one of these, and its stream says so."""

    RESULT = "result"
    ERROR = "error"  # accepted, but ended two workers
    REJECTED = "rejected"  # unreadable or unfit for the model
    DROPPED = "dropped"  # shed from a full queue; one entry may stand for many frames


class Policy(enum.Enum):
    """What a full queue does with frames: make the source wait, or shed the oldest or the newest."""

    BLOCK = "block"
    DROP_OLDEST = "drop-oldest"
    DROP_NEWEST = "drop-newest"


@dataclass(frozen=True, slots=True)
class FrameId:
    """Identity of a frame: unique within its source for ever. The same identity is never stored twice."""

    source: str
    key: str


@dataclass(frozen=True, slots=True)
class Events:
    """A recording of an event camera, in order of time. All arrays have shape (N,)."""

    x: NDArray[np.uint16]
    y: NDArray[np.uint16]
    polarity: NDArray[np.uint8]  # 1 on, 0 off
    t_us: NDArray[np.int64]  # microseconds since the start of the recording


Payload: TypeAlias = "Array | Events"


@dataclass(frozen=True, slots=True)
class Frame:
    """One unit of input on its way to a model: decoded, but not yet encoded for that model."""

    id: FrameId
    payload: Payload
    received_ns: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says about one frame. ``scores`` are the readout of each class, ``index`` their arg max."""

    index: int
    label: str
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One row for the buffer, before it has a sequence number.

    ``frame`` is None for a DROPPED entry, which stands for ``count`` frames of ``source``.
    ``body`` is a UTF-8 JSON object: the prediction, or the reason why there is none.
    """

    stream: str
    kind: Kind
    source: str
    frame: FrameId | None
    received_ns: int
    body: bytes
    model: str = ""  # name@version
    digest: str = ""  # sha256 of the bundle, hex
    engine: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that an entry is stored durably. ``duplicate``: the frame had been stored before; this is the first row."""

    epoch: str
    stream: str
    seq: int
    kind: Kind
    body: bytes
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Totals:
    """Durable account of one source: received = committed + rejected + dropped (errors are committed)."""

    received: int = 0
    committed: int = 0
    rejected: int = 0
    dropped: int = 0
