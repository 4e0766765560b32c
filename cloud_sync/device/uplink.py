"""Decides what goes to the broker next and how far it was delivered. Pure: no network, no store, no clock of its own.

Rules:

- A *lane* is one stream in one epoch. Its rows go out in order; a stream's older epochs go first.
- A lane begins with one message (*probing*). Only when that was taken does the window open (*flowing*), so a refusal
  finds nothing else on the way. A refused lane waits (*held*), then probes with a single row.
- Some brokers answer a message that is too large by ending the connection. So a connection that ends with messages on
  their way halves their size; from a single row it grows again. A single row that ends it several times goes *terse*,
  without its body if that is large: a stream never stops at one row.
- A PUBACK delivers only with reason 0x00. 0x10 (nobody subscribes) and ≥ 0x80 are refusals: the lane goes back to the
  first row that was not taken. Whatever comes in for messages behind a refused one no longer counts.
- ``published`` is what the broker has; ``acked`` is what may be unlinked. They are the same unless the centre acks.
- The highest priority goes first, equal ones take turns; a held lane stops nobody else.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

TAKEN = 0x00
NO_SUBSCRIBER = 0x10
TOO_LARGE = 0x95
STUCK = 3  # connections that a row may end before it is taken for the reason; a network that fails thrice is common
HOLD_FIRST_S = 1.0
HOLD_MOST_S = 10.0  # a subscriber that appears waits no longer than this for the backlog
PATIENCE_S = 120.0  # how long the centre may be silent before what it has not acked is sent again


class LaneKey(NamedTuple):
    """One stream in one epoch."""

    epoch: str
    stream: str


class LaneState(enum.Enum):
    """How a lane sends."""

    PROBING = "probing"
    FLOWING = "flowing"
    HELD = "held"


class Signal(enum.Enum):
    """What moves a lane from state to state."""

    OPENED = "opened"  # a new connection
    TAKEN = "taken"
    REFUSED = "refused"
    DUE = "due"  # the wait after a refusal is over


TRANSITIONS = {
    (LaneState.PROBING, Signal.OPENED): LaneState.PROBING,
    (LaneState.FLOWING, Signal.OPENED): LaneState.PROBING,
    (LaneState.HELD, Signal.OPENED): LaneState.PROBING,
    (LaneState.PROBING, Signal.TAKEN): LaneState.FLOWING,
    (LaneState.FLOWING, Signal.TAKEN): LaneState.FLOWING,
    (LaneState.PROBING, Signal.REFUSED): LaneState.HELD,
    (LaneState.FLOWING, Signal.REFUSED): LaneState.HELD,
    (LaneState.HELD, Signal.DUE): LaneState.PROBING,
}


@dataclass(frozen=True, slots=True)
class Stored:
    """How far a lane reaches in the buffer now."""

    key: LaneKey
    last: int
    priority: int


@dataclass(frozen=True, slots=True)
class Turn:
    """What to send next: rows of ``key`` behind ``after``, at most up to ``up_to`` and at most ``rows`` of them."""

    key: LaneKey
    after: int
    up_to: int
    rows: int
    historical: bool
    terse: bool


@dataclass(slots=True)
class Flight:
    """One message on its way. A void one no longer counts, but occupies the window until its PUBACK."""

    key: LaneKey
    after: int
    last: int
    taken: bool = False
    void: bool = False


@dataclass(slots=True)
class Lane:
    """One stream in one epoch: ``acked`` ≤ ``published`` ≤ ``stored``; ``sent`` is how far messages went out."""

    key: LaneKey
    acked: int
    published: int
    sent: int = 0
    stored: int = 0
    priority: int = 0
    historical_to: int = 0
    state: LaneState = LaneState.PROBING
    reason: str = ""
    retry_at: float = 0.0
    refusals: int = 0
    batch: int = 1  # rows in the next message
    batch_most: int = 1
    stuck: int = 0  # how often its next row alone has ended a connection
    heard_at: float = 0.0  # when the centre last acked something, or had nothing to ack
    served: int = 0
    flights: deque[Flight] = field(default_factory=deque)

    @property
    def delivered(self) -> bool:
        """Whether the broker has everything."""
        return self.published >= self.stored

    def move(self, signal: Signal) -> None:
        """Change the state as the table says. Raises KeyError for a move that it does not hold."""
        self.state = TRANSITIONS[self.state, signal]


class Uplink:
    """All lanes, the window they share, and the cursor. ``jitter`` is a number between 0.5 and 1."""

    def __init__(
        self,
        acked: Mapping[LaneKey, int],
        published: Mapping[LaneKey, int],
        *,
        central: bool,
        rows: int,
        jitter: Callable[[], float],
    ) -> None:
        self._acked = dict(acked)
        self._published = dict(published)
        self._central = central
        self._rows = rows
        self._jitter = jitter
        self._lanes: dict[LaneKey, Lane] = {}
        self._order: list[str] = []
        self._flights: dict[int, Flight] = {}
        self._window = 0
        self._turns = 0

    @property
    def in_flight(self) -> int:
        """Messages without a PUBACK."""
        return len(self._flights)

    @property
    def lanes(self) -> Sequence[Lane]:
        """All lanes, for whoever shows them."""
        return list(self._lanes.values())

    @property
    def backlog(self) -> int:
        """Sequence numbers that the broker does not have yet."""
        return sum(max(0, lane.stored - lane.published) for lane in self._lanes.values())

    def acked(self) -> dict[LaneKey, int]:
        """The cursor to hand back to the daemon, for the epochs that the buffer still holds."""
        return self._kept(self._acked) | {lane.key: lane.acked for lane in self._lanes.values() if lane.acked}

    def published(self) -> dict[LaneKey, int]:
        """What the broker has, to go on from after a restart."""
        return self._kept(self._published) | {
            lane.key: lane.published for lane in self._lanes.values() if lane.published
        }

    def refresh(self, epochs: Sequence[str], stored: Sequence[Stored], now: float) -> None:
        """Take note of what the buffer holds. ``epochs``: oldest first."""
        self._order = list(epochs)
        known = {position.key for position in stored}
        for key in [key for key, lane in self._lanes.items() if key not in known and not lane.flights]:
            lane = self._lanes.pop(key)
            self._acked[key], self._published[key] = lane.acked, lane.published
        for position in stored:
            lane = self._lanes.get(position.key) or self._add(position.key, now)
            lane.stored = max(lane.stored, position.last)
            lane.priority = position.priority

    def opened(self, window: int, now: float) -> None:
        """A connection stands; at most ``window`` messages may be on their way. What is stored by now is historical."""
        self._window = window
        self._flights.clear()
        for lane in self._lanes.values():
            lane.flights.clear()
            lane.move(Signal.OPENED)
            lane.refusals, lane.reason = 0, ""
            lane.sent = self._start(lane)
            lane.historical_to = lane.stored
            lane.heard_at = now

    def closed(self) -> None:
        """The connection is gone; nothing is on its way any more."""
        self._window = 0
        self._flights.clear()
        for lane in self._lanes.values():
            if lane.flights:
                lane.stuck = lane.stuck + 1 if lane.batch == 1 else 0
                lane.batch, lane.batch_most = 1, max(1, lane.batch // 2)
            lane.flights.clear()

    def next(self, now: float) -> Turn | None:
        """What to send now, or None: nothing to send, window full, or everything held."""
        if len(self._flights) >= self._window:
            return None
        ready = [lane for lane in self._heads() if self._ready(lane, now)]
        if not ready:
            return None
        lane = max(ready, key=lambda lane: (lane.priority, -lane.served))
        self._turns += 1
        lane.served = self._turns
        historical = lane.sent < lane.historical_to
        return Turn(
            key=lane.key,
            after=lane.sent,
            up_to=min(lane.stored, lane.historical_to) if historical else lane.stored,
            rows=lane.batch,
            historical=historical,
            terse=lane.stuck >= STUCK,
        )

    def sent(self, key: LaneKey, last: int, tag: int) -> None:
        """A message that covers the lane up to ``last`` is on its way; ``tag`` names it until its PUBACK."""
        lane = self._lanes[key]
        flight = Flight(key, lane.sent, last)
        lane.sent = last
        lane.flights.append(flight)
        self._flights[tag] = flight

    def absent(self, key: LaneKey, reason: str, now: float) -> None:
        """What comes next cannot be read from the buffer; try again later."""
        self._hold(self._lanes[key], reason, now)

    def puback(self, tag: int, code: int, reason: str, now: float) -> bool:
        """A message was answered. Returns whether it was one of ours and was refused."""
        flight = self._flights.pop(tag, None)
        if flight is None:
            return False
        lane = self._lanes[flight.key]
        if flight.void:
            return code != TAKEN
        if code == TAKEN:
            flight.taken = True
            self._advance(lane)
            return False
        lane.sent = flight.after
        while lane.flights:
            behind = lane.flights.pop()
            behind.void = True
            if behind is flight:
                break
        if code == TOO_LARGE and lane.batch == 1:
            lane.stuck = STUCK
        self._hold(lane, reason, now)
        return True

    def confirm(self, epoch: str, acks: Mapping[str, int], now: float) -> list[str]:
        """The centre holds these. Returns what is wrong with it: an ack is honoured only up to what was published."""
        problems = []
        for stream, seq in acks.items():
            lane = self._lanes.get(LaneKey(epoch, stream))
            if lane is None:
                continue  # an epoch that has gone, or a stream of long ago
            if seq > lane.published:
                problems.append(f"stream {stream!r}: acked up to {seq}, but only {lane.published} was published")
            honoured = min(seq, lane.published)
            if self._central and honoured > lane.acked:
                lane.acked, lane.heard_at = honoured, now
        return problems

    def deadline(self) -> float | None:
        """When a held lane wants to probe again."""
        return min((lane.retry_at for lane in self._heads() if lane.state is LaneState.HELD), default=None)

    def _add(self, key: LaneKey, now: float) -> Lane:
        acked = self._acked.pop(key, 0)
        published = max(acked, self._published.pop(key, 0))
        rows = self._rows
        lane = Lane(key, acked, published if self._central else acked, heard_at=now, batch=rows, batch_most=rows)
        lane.sent = self._start(lane)
        self._lanes[key] = lane
        return lane

    def _start(self, lane: Lane) -> int:
        return lane.acked if self._central else lane.published

    def _kept(self, cursor: Mapping[LaneKey, int]) -> dict[LaneKey, int]:
        """Those of the lanes that are not there now which may come back."""
        return {key: seq for key, seq in cursor.items() if seq and (not self._order or key.epoch in self._order)}

    def _heads(self) -> list[Lane]:
        """The oldest lane of every stream that is not delivered whole."""
        rank = {epoch: place for place, epoch in enumerate(self._order)}
        heads: dict[str, Lane] = {}
        for lane in sorted(self._lanes.values(), key=lambda lane: rank.get(lane.key.epoch, len(rank))):
            head = heads.get(lane.key.stream)
            if head is None or (head.delivered and head.sent >= head.stored):
                heads[lane.key.stream] = lane
        return list(heads.values())

    def _ready(self, lane: Lane, now: float) -> bool:
        if self._central:
            self._heed_silence(lane, now)
        if lane.sent >= lane.stored or self._has_void(lane):
            return False
        if lane.state is LaneState.HELD and now >= lane.retry_at:
            lane.move(Signal.DUE)
            lane.historical_to = lane.stored
        return lane.state is LaneState.FLOWING or (lane.state is LaneState.PROBING and not lane.flights)

    def _heed_silence(self, lane: Lane, now: float) -> None:
        """Send again what the centre has not acked for long: a broker drops queues without a word."""
        if lane.acked >= lane.published:
            lane.heard_at = now
        elif now - lane.heard_at >= PATIENCE_S:
            lane.sent, lane.heard_at = lane.acked, now

    def _has_void(self, lane: Lane) -> bool:
        return any(flight.void and flight.key == lane.key for flight in self._flights.values())

    def _advance(self, lane: Lane) -> None:
        while lane.flights and lane.flights[0].taken:
            lane.published = max(lane.published, lane.flights.popleft().last)
        if not self._central:
            lane.acked = lane.published
        if lane.state is not LaneState.HELD:
            lane.move(Signal.TAKEN)
            lane.refusals, lane.reason, lane.stuck = 0, "", 0
            lane.batch_most = min(self._rows, lane.batch_most + 1)
            lane.batch = min(lane.batch_most, 2 * lane.batch)

    def _hold(self, lane: Lane, reason: str, now: float) -> None:
        if lane.state is not LaneState.HELD:
            lane.move(Signal.REFUSED)
        lane.refusals += 1
        lane.batch = 1
        lane.reason = reason
        lane.retry_at = now + min(HOLD_MOST_S, HOLD_FIRST_S * 2 ** min(lane.refusals - 1, 10)) * self._jitter()
