"""Runs edged-sync: joins buffer, uplink, connection and files in one thread with one wait. Decides little itself.

The order of a round: wait → take what the link brought → step the connection → look at the buffer → send while there is
room → write cursor and status. The daemon is never waited for and never written to, except for the ack cursor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import select
import socket
import time
from dataclasses import dataclass

import msgspec

from cloud_sync.contract.messages import Ack, decode
from cloud_sync.contract.results import ENVELOPE_BYTES, PAYLOAD_LIMIT_BYTES, Origin, Part, pack
from cloud_sync.contract.topics import Channel, ContractError, DeviceTopics
from cloud_sync.device.connection import Connection, Phase
from cloud_sync.device.cursors import Cursors
from cloud_sync.device.facts import (
    DaemonStatus,
    Severity,
    Teller,
    letter,
    now,
    safe_mode,
    stream_facts,
    write_status,
)
from cloud_sync.device.link import Answered, Broker, Received
from cloud_sync.device.settings import Settings
from cloud_sync.device.tail import Tail
from cloud_sync.device.uplink import Turn, Uplink
from cloud_sync.device.watch import Watch
from edged.backoff import Backoff
from edged.errors import EdgedError
from edged.status import LinkFacts

log = logging.getLogger(__name__)

ROWS = 256  # a message; more would hold back the fresh rows of other streams, fewer make many envelopes
HEALTH_EVERY_S = 60.0  # five of them fit into a report's life of 300 s
STATUS_EVERY_S = 1.0
HEARTBEAT_S = 10.0  # LinkFacts promises it
TERSE_BYTES = ENVELOPE_BYTES + 1_024  # an ordinary row fits, a large body does not
CURSOR_EVERY_S = 1.0  # the most that is sent twice after a kill; each write costs two fsyncs


@dataclass(slots=True)
class Counts:
    """What this process did."""

    messages: int = 0
    rows: int = 0
    refused: int = 0
    alarms: int = 0


@dataclass(slots=True)
class Due:
    """When each recurring thing is to be done next, on the monotonic clock."""

    health: float = 0.0
    status: float = 0.0
    heartbeat: float = 0.0
    cursor: float = 0.0
    look: float = 0.0


class Service:
    """edged-sync. ``run`` lasts until ``stop`` is called, from a signal handler for instance."""

    def __init__(self, settings: Settings) -> None:
        sync = settings.sync
        self._settings = settings
        self._topics = DeviceTopics(sync.root, sync.fleet, settings.device.id)
        self._teller = Teller(self._topics)
        self._daemon = DaemonStatus(settings.daemon_status)
        self._tail = Tail(settings.buffer_dir)
        self._watch = Watch(settings.buffer_dir)
        self._trouble: dict[str, str] = {}  # what is wrong beside the connection, by the part that is concerned
        self._counts = Counts()
        self._due = Due()
        self._limit_bytes = PAYLOAD_LIMIT_BYTES
        self._told_info = b""
        self._info_due = True
        self._told_pressure = "normal"
        self._told: LinkFacts | None = None  # what the status file says, but for its time
        self._stopping = False
        central = sync.ack == "central"
        self._cursors = Cursors(settings.own_dir, central=central)
        acked, published, problem = self._cursors.read()
        self.trouble("cursor", problem)
        self._uplink = Uplink(acked, published, central=central, rows=ROWS, jitter=_jitter)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._connection = Connection(
            _broker(settings),
            self._teller,
            Backoff(_jitter),
            self,
            window=sync.in_flight,
            subscribe=self._topics.ack if central else "",
            wake=self._wake,
        )

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
            while self._connection.phase is not Phase.STOPPED:
                self._wait()
                self._round(time.monotonic())
        finally:
            self._save(time.monotonic(), last=True)
            if self._connection.link is not None:
                self._connection.link.drop()
            self._watch.close()

    # What the connection tells us

    @property
    def in_flight(self) -> int:
        """Results without a PUBACK."""
        return self._uplink.in_flight

    def opened(self, window: int, limit_bytes: int, at: float) -> None:
        """A connection stands."""
        self._limit_bytes = limit_bytes
        self._told_info, self._info_due, self._due.health = b"", True, at
        self._look(at)
        self._uplink.opened(window, at)
        log.info("connected to %s; %d rows wait", self._settings.sync.broker, self._uplink.backlog)

    def closed(self) -> None:
        """The connection is gone."""
        self._uplink.closed()

    def answered(self, answer: Answered, at: float) -> None:
        """A result was answered."""
        if self._uplink.puback(answer.tag, answer.code, answer.reason, at):
            self._counts.refused += 1

    def received(self, message: Received, at: float) -> None:
        """A message came for us; the only kind that we ask for is an ack."""
        try:
            ack = decode(Ack, message.payload)
        except ContractError as error:
            self._alarm("ack", error.message)
            return
        problems = self._uplink.confirm(ack.epoch, ack.acks, at)
        if not problems:
            self.trouble("alarm ack", "")
        for problem in problems:
            self._alarm("ack", f"store {ack.store!r}: {problem}")

    def trouble(self, part: str, problem: str) -> None:
        """Remember what is wrong with a part, or that nothing is; say it once."""
        if problem and self._trouble.get(part) != problem:
            log.warning("%s", problem)
            self._trouble[part] = problem
        elif not problem:
            self._trouble.pop(part, None)

    # One round

    def _round(self, at: float) -> None:
        self._connection.take_events(at)
        if self._watch.changed() or at >= self._due.look:
            self._look(at)
        if self._connection.phase is Phase.CONNECTED:
            self._tell(at)
        self._connection.step(at, stop=self._stopping)
        while self._connection.has_room and (turn := self._uplink.next(at)) is not None:
            self._send(turn, at)
        self._save(at)

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        watch, link = self._watch.fileno(), self._connection.link
        if watch is not None:
            poll.register(watch, select.POLLIN)
        sock = link.socket if link is not None else None
        if sock is not None and link is not None:
            poll.register(sock, select.POLLIN | (select.POLLOUT if link.wants_write else 0))
        ready = dict(poll.poll(self._patience_s() * 1000))
        if self._wake_read.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._wake_read.recv(4096)
        if watch in ready:
            self._watch.woke()
        if sock is not None and link is not None and (happened := ready.get(sock.fileno(), 0)):
            if happened & ~select.POLLOUT:
                link.read()
            if happened & select.POLLOUT:
                link.write()

    def _patience_s(self) -> float:
        due = [self._connection.due(), self._due.look, self._due.heartbeat]
        if self._connection.phase is Phase.CONNECTED and (retry := self._uplink.deadline()) is not None:
            due.append(retry)
        return max(0.0, min(min(due) - time.monotonic(), self._watch.patience_s()))

    def _look(self, at: float) -> None:
        try:
            epochs, stored = self._tail.look(at)
        except EdgedError as error:
            self.trouble("buffer", str(error))
        else:
            self.trouble("buffer", "" if epochs else "there is no buffer yet; is the daemon running?")
            self._uplink.refresh(epochs, stored, at)
        self._due.look = at + self._watch.regular_s()

    def _send(self, turn: Turn, at: float) -> None:
        try:
            part = self._tail.part(turn, min(self._limit_bytes, TERSE_BYTES) if turn.terse else self._limit_bytes)
            topic = self._topics.result(turn.key.stream)
        except EdgedError as error:
            self._uplink.absent(turn.key, str(error), at)
            return
        if part is None:
            self._uplink.absent(turn.key, f"row {turn.after + 1} is not in the buffer", at)
            return
        tag = self._connection.publish(letter(Channel.RESULT, topic, self._pack(turn, part)))
        self._uplink.sent(turn.key, part.last, tag)
        self._counts.messages += 1
        self._counts.rows += len(part.rows)

    def _pack(self, turn: Turn, part: Part) -> bytes:
        epoch, stream = turn.key
        predecessor = self._tail.predecessor(turn.key)
        origin = Origin(self._topics.fleet, self._settings.device.id, epoch, predecessor, stream)
        return pack(origin, part, historical=turn.historical)

    # What we tell

    def _tell(self, at: float) -> None:
        if self._info_due:
            self._info_due = False
            info = self._teller.info(self._daemon.facts)
            if info.payload != self._told_info:
                self._told_info = info.payload
                self._connection.notify(info)
        if at >= self._due.health:
            self._due.health = at + HEALTH_EVERY_S
            self._connection.notify(self._teller.health(self._daemon.facts, self._facts()))
        self._tell_pressure()

    def _tell_pressure(self) -> None:
        """An event for every change of level; for what changed while there was no link, a late one."""
        pressure = self._daemon.facts.pressure if self._daemon.facts else None
        if pressure is None or pressure.level in (self._told_pressure, "off"):
            return
        self._told_pressure = pressure.level
        self._counts.alarms += 1
        message = f"the device's pressure is {pressure.level}" + (f": {pressure.reason}" if pressure.reason else "")
        severity: Severity = "critical" if pressure.level == "critical" else "warning"
        self._connection.notify(self._teller.alarm("pressure", severity, message))

    def _alarm(self, name: str, message: str) -> None:
        self._counts.alarms += 1
        self.trouble(f"alarm {name}", message)
        self._connection.notify(self._teller.alarm(name, "warning", message))

    def _save(self, at: float, *, last: bool = False) -> None:
        if last or at >= self._due.cursor:
            self._due.cursor = at + CURSOR_EVERY_S
            self.trouble("cursor", self._cursors.write(self._uplink.acked(), self._uplink.published()))
        if last or at >= self._due.status:
            self._due.status = at + STATUS_EVERY_S
            self._info_due |= self._daemon.refresh()
            self._tell_safe_mode()
            facts = self._facts()
            seen = msgspec.structs.replace(facts, wall_time="")
            if last or at >= self._due.heartbeat or seen != self._told:
                self._told = seen
                self._due.heartbeat = at + HEARTBEAT_S
                self._write_status(facts)

    def _tell_safe_mode(self) -> None:
        """Speak the presence again when the daemon fell into safe mode, or left it."""
        reason = safe_mode(self._daemon.facts)
        if reason != self._teller.safe_mode:
            self._teller.safe_mode = reason
            self._connection.notify(self._teller.birth())

    def _write_status(self, facts: LinkFacts) -> None:
        try:
            write_status(self._settings.own_dir / "status.json", facts)
        except OSError as error:
            self.trouble("status file", f"{error.filename}: {error.strerror}")
        else:
            self.trouble("status file", "")

    def _facts(self) -> LinkFacts:
        lanes, connection = self._uplink.lanes, self._connection
        held = [f"stream {lane.key.stream!r}: {lane.reason}" for lane in lanes if lane.reason]
        reasons = [connection.reason, *held, *self._trouble.values()]
        return LinkFacts(
            state=connection.phase.value,
            reason="; ".join(reason for reason in reasons if reason),
            broker=self._settings.sync.broker,
            session=self._teller.session,
            pid=os.getpid(),
            wall_time=now(),
            connections=connection.connections,
            published_messages=self._counts.messages,
            published_rows=self._counts.rows,
            refused_messages=self._counts.refused,
            in_flight=connection.on_the_way,
            backlog_rows=self._uplink.backlog,
            alarms=self._counts.alarms,
            streams=stream_facts(lanes),
        )

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
