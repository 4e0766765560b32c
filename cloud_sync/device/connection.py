"""Keeps the device connected: one link after another, with birth, notices and farewell, until it is told to stop.

A failed or lost link is followed by another after a growing, jittered wait, for ever. Notices (everything but results)
go before results and share their window. Knows nothing of the buffer; what concerns results goes to the ``Listener``.
"""

from __future__ import annotations

import enum
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from cloud_sync.contract.results import PAYLOAD_LIMIT_BYTES
from cloud_sync.device.facts import Teller
from cloud_sync.device.link import ANSWER_TIMEOUT_S, Answered, Broker, Connected, Event, Letter, Link, Lost, Received
from edged.backoff import Backoff

log = logging.getLogger(__name__)

DRAIN_S = 1.5  # with GOODBYE_S two seconds: how long a stop may take
GOODBYE_S = 0.4
STABLE_S = 5.0  # a connection that ends sooner is a failed attempt: two devices with one id throw each other out
TICK_S = 1.0  # paho's keep-alive needs to be asked
TOPIC_AND_HEADER_BYTES = 2_048  # what MQTT adds to a payload: topic, properties, fixed header
NOTICES = 16  # that wait for the window; a full queue drops the oldest, which stands in the log too
FAILURE = 0x80  # reason codes from here on are failures


class Phase(enum.Enum):
    """Where the connection stands."""

    WAITING = "waiting"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DRAINING = "draining"
    LEAVING = "leaving"
    STOPPED = "stopped"


class Move(enum.Enum):
    """What changes the phase."""

    DIAL = "dial"
    ACCEPTED = "accepted"
    LOST = "lost"
    STOP = "stop"
    DRAINED = "drained"
    LEFT = "left"


TRANSITIONS = {
    (Phase.WAITING, Move.DIAL): Phase.CONNECTING,
    (Phase.WAITING, Move.STOP): Phase.STOPPED,
    (Phase.CONNECTING, Move.ACCEPTED): Phase.CONNECTED,
    (Phase.CONNECTING, Move.LOST): Phase.WAITING,
    (Phase.CONNECTING, Move.STOP): Phase.STOPPED,
    (Phase.CONNECTED, Move.LOST): Phase.WAITING,
    (Phase.CONNECTED, Move.STOP): Phase.DRAINING,
    (Phase.DRAINING, Move.DRAINED): Phase.LEAVING,
    (Phase.DRAINING, Move.LOST): Phase.STOPPED,
    (Phase.LEAVING, Move.LEFT): Phase.STOPPED,
    (Phase.LEAVING, Move.LOST): Phase.STOPPED,
}


class Listener(Protocol):
    """Whoever sends results over the connection."""

    @property
    def in_flight(self) -> int:
        """Results without a PUBACK."""

    def opened(self, window: int, limit_bytes: int, at: float) -> None:
        """A connection stands: so many messages at once, payloads of such a size."""

    def closed(self) -> None:
        """The connection is gone, and with it whatever was on its way."""

    def answered(self, answer: Answered, at: float) -> None:
        """A result was answered."""

    def received(self, message: Received, at: float) -> None:
        """A message came for us."""

    def trouble(self, part: str, problem: str) -> None:
        """Something is wrong with a part, or ("") nothing any more."""


class Connection:
    """The connection of one device. ``subscribe``: the topic to listen to, "" for none."""

    def __init__(
        self,
        broker: Broker,
        teller: Teller,
        backoff: Backoff,
        listener: Listener,
        *,
        window: int,
        subscribe: str,
        wake: Callable[[], None],
    ) -> None:
        self.phase = Phase.WAITING
        self.reason = "not connected yet"
        self.connections = 0
        self.link: Link | None = None
        self._broker = broker
        self._teller = teller
        self._backoff = backoff
        self._listener = listener
        self._most = window
        self._window = 0
        self._subscribe = subscribe
        self._wake = wake
        self._notices: deque[Letter] = deque(maxlen=NOTICES)
        self._flying: dict[int, str] = {}  # notices on their way: tag → topic
        self._dial_at = 0.0
        self._connected_at = 0.0
        self._deadline = 0.0
        self._tick_at = 0.0

    @property
    def on_the_way(self) -> int:
        """Messages of any kind without a PUBACK."""
        return self._listener.in_flight + len(self._flying)

    @property
    def has_room(self) -> bool:
        """Whether a result may be sent now."""
        return self.phase is Phase.CONNECTED and not self._notices and self.on_the_way < self._window

    def notify(self, letter: Letter) -> None:
        """Send a notice as soon as there is room; nothing while there is no connection."""
        if self.phase is Phase.CONNECTED:
            self._notices.append(letter)

    def publish(self, letter: Letter) -> int:
        """Send a result at once; returns the tag of its answer."""
        assert self.link is not None
        return self.link.publish(letter)

    def take_events(self, at: float) -> None:
        """Take what the link brought."""
        while self.link is not None and self.link.events:
            self._take(self.link.events.popleft(), at)

    def step(self, at: float, *, stop: bool) -> None:
        """Do what time or ``stop`` demands, and send notices."""
        if stop and (self.phase, Move.STOP) in TRANSITIONS:
            self._move(Move.STOP, "stopped")
            self._deadline = at + DRAIN_S
        match self.phase:
            case Phase.WAITING if at >= self._dial_at:
                self._dial(at)
            case Phase.CONNECTING if at >= self._deadline:
                self._lost(f"{self._broker.url} does not answer", at)
            case Phase.CONNECTED:
                self._send_notices()
            case Phase.DRAINING if not self.on_the_way or at >= self._deadline:
                self._say_goodbye(at)
            case Phase.LEAVING if not self._flying or at >= self._deadline:
                self._leave()
            case _:
                pass
        if at >= self._tick_at:
            self._tick_at = at + TICK_S
            if self.link is not None:
                self.link.tick()

    def due(self) -> float:
        """When ``step`` wants to be called again at the latest."""
        if self.link is not None and self.link.events:
            return 0.0
        match self.phase:
            case Phase.WAITING:
                return min(self._tick_at, self._dial_at)
            case Phase.CONNECTING | Phase.DRAINING | Phase.LEAVING:
                return min(self._tick_at, self._deadline)
            case _:
                return self._tick_at

    def _take(self, event: Event, at: float) -> None:
        match event:
            case Connected():
                self._accepted(event, at)
            case Answered() if event.tag in self._flying:
                topic = self._flying.pop(event.tag)
                # 0x10 is no failure of a notice: it is retained, or nobody wants to know.
                self._listener.trouble(topic, f"{topic}: {event.reason}" if event.code >= FAILURE else "")
            case Answered():
                self._listener.answered(event, at)
            case Received():
                self._listener.received(event, at)
            case Lost():
                self._lost(event.reason, at)

    def _accepted(self, event: Connected, at: float) -> None:
        assert self.link is not None
        self._move(Move.ACCEPTED, "")
        self._connected_at = at
        self.connections += 1
        self._window = min(self._most, event.receive_maximum)
        self._notices.clear()
        self._flying.clear()
        self.notify(self._teller.birth())
        if self._subscribe:
            self.link.subscribe(self._subscribe)
        self._listener.opened(self._window, min(PAYLOAD_LIMIT_BYTES, event.packet_maximum - TOPIC_AND_HEADER_BYTES), at)

    def _lost(self, reason: str, at: float) -> None:
        assert self.link is not None
        self.link.drop()
        self.link = None
        self._flying.clear()
        if self.phase is Phase.CONNECTED and at - self._connected_at >= STABLE_S:
            self._backoff.reset()
        elif self.phase is Phase.CONNECTED:
            # Most brokers say nothing when they end a connection because the same id came again.
            lasted_s = at - self._connected_at
            reason += f"; it lasted {lasted_s:.1f} s: does another client use the id {self._broker.client_id!r}?"
        self._dial_at = at + self._backoff.wait_s()
        log.log(logging.WARNING if reason != self.reason else logging.DEBUG, "%s", reason)
        self._move(Move.LOST, reason)
        self._listener.closed()

    def _dial(self, at: float) -> None:
        self.link = Link(self._broker, self._teller.begin_session(), self._wake)
        self._deadline = at + ANSWER_TIMEOUT_S
        self._move(Move.DIAL, self.reason)
        self.link.dial()

    def _send_notices(self) -> None:
        while self._notices and self.on_the_way < self._window:
            self._post(self._notices.popleft())

    def _post(self, letter: Letter) -> None:
        assert self.link is not None
        tag = self.link.publish(letter)
        if letter.qos:
            self._flying[tag] = letter.topic

    def _say_goodbye(self, at: float) -> None:
        self._move(Move.DRAINED, "stopped")
        self._deadline = at + GOODBYE_S
        self._post(self._teller.farewell())

    def _leave(self) -> None:
        assert self.link is not None
        self.link.leave()
        self._move(Move.LEFT, "stopped")

    def _move(self, move: Move, reason: str) -> None:
        self.phase = TRANSITIONS[self.phase, move]
        self.reason = reason
