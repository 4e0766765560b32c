"""Runs edged-sync: joins buffer, uplink, link and files in one thread with one wait. Decides as little as possible.

The order of a round: wait → take what the link brought → step the phase → look at the buffer → send while the window
is open → write cursor and status. The daemon is never waited for and never written to, except for the ack cursor.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import random
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field

from cloud_sync.contract.messages import Ack, decode
from cloud_sync.contract.results import PAYLOAD_LIMIT_BYTES, Origin, pack
from cloud_sync.contract.topics import Channel, ContractError, DeviceTopics
from cloud_sync.device.backoff import Backoff
from cloud_sync.device.cursors import Cursors
from cloud_sync.device.facts import DaemonStatus, Teller, letter, now, stream_facts, write_status
from cloud_sync.device.link import (
    ANSWER_TIMEOUT_S,
    Answered,
    Broker,
    Connected,
    Event,
    Letter,
    Link,
    Lost,
    Received,
)
from cloud_sync.device.settings import Settings
from cloud_sync.device.tail import Tail
from cloud_sync.device.uplink import Turn, Uplink
from cloud_sync.device.watch import Watch
from edged.errors import EdgedError
from edged.status import LinkFacts

log = logging.getLogger(__name__)

ROWS = 256  # a message; more would hold back fresh rows of other streams, fewer make many envelopes
HEALTH_EVERY_S = 60.0  # five of them fit into a report's life of 300 s
STATUS_EVERY_S = 1.0
HEARTBEAT_S = 10.0  # LinkFacts promises it
CURSOR_EVERY_S = 1.0  # at most as many rows are sent twice after a kill; each write costs two fsyncs
DRAIN_S = 1.5  # with GOODBYE_S two seconds: how long SIGTERM may take
GOODBYE_S = 0.4
TICK_S = 1.0  # paho's keep-alive needs to be asked
TOPIC_AND_HEADER_BYTES = 2_048  # what MQTT adds to a payload: topic, properties, fixed header
LETTERS = 16  # notices that wait for the window; a full queue drops the oldest, which is in the log too


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


@dataclass(slots=True)
class Counts:
    """What this process did."""

    connections: int = 0
    messages: int = 0
    rows: int = 0
    refused: int = 0
    alarms: int = 0


@dataclass(slots=True)
class Due:
    """When each recurring thing is to be done next, on the monotonic clock."""

    dial: float = 0.0
    deadline: float = 0.0  # of connecting, draining or leaving
    health: float = 0.0
    status: float = 0.0
    heartbeat: float = 0.0
    cursor: float = 0.0
    tick: float = 0.0
    look: float = 0.0


@dataclass(slots=True)
class Notices:
    """Messages that are not results: waiting, and on their way."""

    waiting: deque[Letter] = field(default_factory=lambda: deque(maxlen=LETTERS))
    flying: dict[int, str] = field(default_factory=dict)  # tag → topic


class Service:
    """edged-sync. ``run`` lasts until ``stop`` is called, from a signal handler for instance."""

    def __init__(self, settings: Settings) -> None:
        sync = settings.sync
        self._settings = settings
        self._central = sync.ack == "central"
        self._topics = DeviceTopics(sync.root, sync.fleet, settings.device.id)
        self._broker = _broker(settings)
        self._teller = Teller(self._topics)
        self._daemon = DaemonStatus(settings.daemon_status)
        self._cursors = Cursors(settings.own_dir, central=self._central)
        self._tail = Tail(settings.buffer_dir)
        self._watch = Watch(settings.buffer_dir)
        self._backoff = Backoff(_jitter)
        self._uplink = self._make_uplink()
        self._link: Link | None = None
        self._phase = Phase.WAITING
        self._reason = "not connected yet"
        self._trouble: dict[str, str] = {}  # what else is wrong, by the part that is concerned
        self._notices = Notices()
        self._counts = Counts()
        self._due = Due()
        self._window = 0
        self._limit_bytes = PAYLOAD_LIMIT_BYTES
        self._told_info = b""
        self._told_status: LinkFacts | None = None
        self._stopping = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)

    @property
    def wake_fd(self) -> int:
        """For ``signal.set_wakeup_fd``: writing to it ends the wait."""
        return self._wake_write.fileno()

    def stop(self) -> None:
        """Finish what is on its way and end ``run``."""
        self._stopping = True

    def run(self) -> None:
        """Bring results to the broker until stopped. Raises nothing for anything that may pass."""
        try:
            while self._phase is not Phase.STOPPED:
                self._wait()
                self._round(time.monotonic())
        finally:
            self._save(time.monotonic(), last=True)
            if self._link is not None:
                self._link.drop()
            self._watch.close()

    def _round(self, at: float) -> None:
        self._take_events(at)
        self._step(at)
        if at >= self._due.look or self._uplink_wants(at):
            self._look(at)
        if self._phase is Phase.CONNECTED:
            self._send_notices()
            self._send_results(at)
        self._save(at)

    # What we wait for

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        if (fd := self._watch.fileno()) is not None:
            poll.register(fd, select.POLLIN)
        sock = self._link.socket if self._link is not None else None
        if sock is not None and self._link is not None:
            poll.register(sock, select.POLLIN | (select.POLLOUT if self._link.wants_write else 0))
        ready = dict(poll.poll(max(0.0, self._patience_s()) * 1000))
        if self._wake_read.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._wake_read.recv(4096)
        if fd in ready:
            self._watch.woke()
            self._due.look = 0.0
        if self._link is not None and sock is not None and (event := ready.get(sock.fileno(), 0)):
            if event & ~select.POLLOUT:
                self._link.read()
            if event & select.POLLOUT and self._link.socket is not None:
                self._link.write()

    def _patience_s(self) -> float:
        at = time.monotonic()
        if self._link is not None and self._link.events:
            return 0.0
        due = [at + self._watch.patience_s(), self._due.tick, self._due.heartbeat]
        if self._phase is Phase.WAITING:
            due.append(self._due.dial)
        if self._phase in (Phase.CONNECTING, Phase.DRAINING, Phase.LEAVING):
            due.append(self._due.deadline)
        if self._phase is Phase.CONNECTED and (retry := self._uplink.deadline()) is not None:
            due.append(retry)
        return min(due) - at

    # What the link brings

    def _take_events(self, at: float) -> None:
        while self._link is not None and self._link.events:
            self._take(self._link.events.popleft(), at)

    def _take(self, event: Event, at: float) -> None:
        match event:
            case Connected():
                self._connected(event, at)
            case Answered():
                self._answered(event, at)
            case Received():
                self._received(event, at)
            case Lost():
                self._lost(event.reason, at)

    def _connected(self, event: Connected, at: float) -> None:
        assert self._link is not None
        self._move(Move.ACCEPTED, "")
        self._backoff.reset()
        self._counts.connections += 1
        self._window = min(self._settings.sync.in_flight, event.receive_maximum)
        self._limit_bytes = min(PAYLOAD_LIMIT_BYTES, event.packet_maximum - TOPIC_AND_HEADER_BYTES)
        self._notices = Notices()
        self._notices.waiting.append(self._teller.birth())
        self._told_info, self._due.health = b"", at
        self._look(at)
        self._uplink.opened(self._window, at)
        if self._central:
            self._link.subscribe(self._topics.ack)
        log.info("connected to %s, %d numbers behind", self._broker.url, self._uplink.backlog)

    def _answered(self, event: Answered, at: float) -> None:
        topic = self._notices.flying.pop(event.tag, None)
        if topic is not None:
            # 0x10 is no failure of a notice: it is retained, or nobody wants to know.
            self._note(topic, f"{topic}: {event.reason}" if event.code >= 0x80 else "")
            return
        if self._uplink.puback(event.tag, event.code, event.reason, at):
            self._counts.refused += 1

    def _received(self, event: Received, at: float) -> None:
        if event.topic != self._topics.ack:
            return
        try:
            ack = decode(Ack, event.payload)
        except ContractError as error:
            self._alarm("ack", error.message)
            return
        for problem in self._uplink.confirm(ack.epoch, ack.acks, at):
            self._alarm("ack", f"store {ack.store!r}: {problem}")

    def _lost(self, reason: str, at: float) -> None:
        assert self._link is not None
        self._link.drop()
        self._link = None
        self._uplink.closed()
        self._notices = Notices()
        self._due.dial = at + self._backoff.wait_s()
        log.log(logging.INFO if self._phase is Phase.LEAVING else logging.WARNING, "%s", reason)
        self._move(Move.LOST, reason)

    # Phases

    def _step(self, at: float) -> None:
        if self._stopping and self._phase in (Phase.WAITING, Phase.CONNECTING, Phase.CONNECTED):
            self._move(Move.STOP, "stopped")
            self._due.deadline = at + DRAIN_S
        match self._phase:
            case Phase.WAITING if at >= self._due.dial:
                self._dial(at)
            case Phase.CONNECTING if at >= self._due.deadline:
                self._lost(f"{self._broker.url} does not answer", at)
            case Phase.DRAINING if not self._on_the_way or at >= self._due.deadline:
                self._say_goodbye(at)
            case Phase.LEAVING if not self._notices.flying or at >= self._due.deadline:
                self._leave()
            case _:
                pass
        if self._link is not None and at >= self._due.tick:
            self._link.tick()
        if at >= self._due.tick:
            self._due.tick = at + TICK_S

    def _dial(self, at: float) -> None:
        self._link = Link(self._broker, self._teller.begin_session(), self._wake)
        self._due.deadline = at + ANSWER_TIMEOUT_S
        self._move(Move.DIAL, self._reason)
        self._link.dial()

    def _say_goodbye(self, at: float) -> None:
        self._move(Move.DRAINED, "stopped")
        self._due.deadline = at + GOODBYE_S
        self._post(self._teller.farewell())

    def _leave(self) -> None:
        assert self._link is not None
        self._link.leave()
        self._move(Move.LEFT, "stopped")

    def _move(self, move: Move, reason: str) -> None:
        self._phase = TRANSITIONS[self._phase, move]
        self._reason = reason
        self._due.status = 0.0

    # The buffer

    def _uplink_wants(self, at: float) -> bool:
        retry = self._uplink.deadline()
        return self._phase is Phase.CONNECTED and retry is not None and at >= retry

    def _look(self, at: float) -> None:
        try:
            epochs, stored = self._tail.look(at)
        except EdgedError as error:
            self._note("buffer", error.message)
        else:
            self._note("buffer", "" if epochs else "there is no buffer yet; is the daemon running?")
            self._uplink.refresh(epochs, stored, at)
        self._due.look = at + self._watch.patience_s()

    def _send_results(self, at: float) -> None:
        while self._on_the_way < self._window and (turn := self._uplink.next(at)) is not None:
            if not self._send(turn, at):
                return

    def _send(self, turn: Turn, at: float) -> bool:
        """Send one message; False when that was the end of the connection."""
        try:
            part = self._tail.part(turn, self._limit_bytes)
        except EdgedError as error:
            self._uplink.absent(turn.key, error.message, at)
            return True
        if part is None:
            self._uplink.absent(turn.key, f"row {turn.after + 1} is not in the buffer", at)
            return True
        sync, key = self._settings.sync, turn.key
        origin = Origin(sync.fleet, self._settings.device.id, key.epoch, self._tail.predecessor(key), key.stream)
        payload = pack(origin, part, historical=turn.historical)
        tag = self._post_now(letter(Channel.RESULT, self._topics.result(key.stream), payload))
        self._uplink.sent(key, part.last, tag)
        self._counts.messages += 1
        self._counts.rows += len(part.rows)
        return self._link is not None and self._link.socket is not None

    # Everything that is not a result

    @property
    def _on_the_way(self) -> int:
        return self._uplink.in_flight + len(self._notices.flying)

    def _post(self, message: Letter) -> None:
        tag = self._post_now(message)
        if message.qos:
            self._notices.flying[tag] = message.topic

    def _post_now(self, message: Letter) -> int:
        assert self._link is not None
        return self._link.publish(message)

    def _send_notices(self) -> None:
        at, waiting = time.monotonic(), self._notices.waiting
        if at >= self._due.health:
            self._due.health = at + HEALTH_EVERY_S
            waiting.append(self._teller.health(self._daemon.facts, self._facts()))
        if self._daemon.facts is not None or not self._told_info:
            info = self._teller.info(self._daemon.facts)
            if info.payload != self._told_info:
                self._told_info = info.payload
                waiting.append(info)
        while waiting and self._on_the_way < self._window:
            self._post(waiting.popleft())

    def _alarm(self, name: str, message: str) -> None:
        self._counts.alarms += 1
        self._note(f"alarm {name}", message)
        if self._phase is Phase.CONNECTED:
            self._notices.waiting.append(self._teller.alarm(name, "warning", message))

    def _note(self, part: str, problem: str) -> None:
        """Remember what is wrong with a part, or that nothing is; say it once."""
        if problem and self._trouble.get(part) != problem:
            log.warning("%s", problem)
            self._trouble[part] = problem
        elif not problem:
            self._trouble.pop(part, None)

    # Files

    def _save(self, at: float, *, last: bool = False) -> None:
        self._daemon.refresh()
        if last or at >= self._due.cursor:
            self._due.cursor = at + CURSOR_EVERY_S
            self._note("cursor", self._cursors.write(self._uplink.acked(), self._uplink.published()))
        if not last and at < self._due.status:
            return
        facts = self._facts()
        if facts != self._told_status or last or at >= self._due.heartbeat:
            self._write_status(facts)
            self._due.heartbeat = at + HEARTBEAT_S
        self._due.status = at + STATUS_EVERY_S

    def _write_status(self, facts: LinkFacts) -> None:
        self._told_status = facts
        try:
            self._settings.own_dir.mkdir(mode=0o2770, exist_ok=True)
            write_status(self._settings.own_dir / "status.json", facts)
        except OSError as error:
            self._note("status file", f"{error.filename}: {error.strerror}")
        else:
            self._note("status file", "")

    def _facts(self) -> LinkFacts:
        lanes = self._uplink.lanes
        held = [f"stream {lane.key.stream!r}: {lane.reason}" for lane in lanes if lane.reason]
        reasons = [self._reason, *held, *self._trouble.values()]
        return LinkFacts(
            state=self._phase.value,
            reason="; ".join(reason for reason in reasons if reason),
            broker=self._broker.url,
            session=self._teller.session,
            pid=os.getpid(),
            wall_time=now(),
            connections=self._counts.connections,
            published_messages=self._counts.messages,
            published_rows=self._counts.rows,
            refused_messages=self._counts.refused,
            in_flight=self._on_the_way,
            backlog_rows=self._uplink.backlog,
            alarms=self._counts.alarms,
            streams=stream_facts(lanes),
        )

    def _make_uplink(self) -> Uplink:
        acked, published, problem = self._cursors.read()
        self._trouble = {"cursor": problem} if problem else {}
        return Uplink(acked, published, central=self._central, rows=ROWS, jitter=_jitter)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_write.send(b"\0")


def _broker(settings: Settings) -> Broker:
    sync = settings.sync
    return Broker(
        host=settings.host,
        port=settings.port,
        tls=settings.tls,
        client_id=f"{sync.root}/{sync.fleet}/{settings.device.id}",
        keepalive_s=sync.keepalive_s,
        ca=sync.ca,
        cert=sync.cert,
        key=sync.key,
        username=sync.username,
        password_file=sync.password_file,
    )


def _jitter() -> float:
    return random.uniform(0.5, 1.0)  # noqa: S311  spreads devices in time, guards nothing
