"""Sensors behind a broker as a feeder: MQTT 5, QoS 1, a session that outlives us, and acknowledged after the commit.

- **Nothing is lost**: the broker keeps a message until our PUBACK, and that is sent when the daemon has stored the
  frame's end. Whoever dies meanwhile, the message comes again, and the daemon answers with the first result.
- **Nothing is unbounded**: the broker's Receive Maximum is ``in_flight``, and what is with us has a bound in bytes
  (``inbox``). What publishers send at QoS 0 has no promise: beyond the bound it is dropped and counted.
- **Nothing blocks the line**: what can never be a frame is told, counted and acknowledged.
- PUBACKs go out in the order of the messages (MQTT 5, 4.6), and only on the connection that brought them: packet
  identifiers are used again, so a late PUBACK could speak for a message that nobody has stored. What a connection
  leaves behind is skipped: the broker brings it again.

Each connection has a client of its own. Subscribes anew each time; the broker sends retained messages once only.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, topic_matches_sub
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edged.backoff import Backoff
from edged.errors import EdgedError, FrameRejected
from edged.feeder_config import PORTS, MqttFeeder, MqttTopic, address
from edged.feeders.credentials import password
from edged.feeders.handing import Courier
from edged.feeders.inbox import OWN_BYTES, Inbox
from edged.feeders.kit import DRAIN_S, ExitCode, Kit
from edged.feeders.message import Message, frame_of

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
PACKET_BYTES = 27 << 20  # a frame has 26 MiB at most; the broker keeps larger messages to itself
COURIERS = 8  # threads that hand in; commits share an fsync, so more gain little
LOOK_S = 0.2  # how soon a stop is seen


@dataclass(slots=True)
class Acks:
    """The PUBACKs of one connection, in the order of its messages."""

    client: Client
    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: deque[Pending] = field(default_factory=deque)
    is_over: bool = False

    def add(self, one: Pending) -> None:
        """A message of QoS 1 has come."""
        with self.lock:
            self.waiting.append(one)

    def done(self, one: Pending) -> None:
        """A message has ended: acknowledge it, and those behind it that waited for it."""
        with self.lock:
            one.is_done = True
            while not self.is_over and self.waiting and self.waiting[0].is_done:
                self.client.ack(self.waiting.popleft().mid, 1)

    def end(self) -> None:
        """The connection is over: what was not acknowledged comes again."""
        with self.lock:
            self.is_over = True


@dataclass(slots=True)
class Pending:
    """A message that is with us. ``is_done``: its end is stored, or it never will be a frame."""

    message: Message
    mid: int
    qos: int
    acks: Acks
    is_done: bool = False

    @property
    def size_bytes(self) -> int:
        """Memory that it takes, about."""
        return len(self.message.payload) + OWN_BYTES

    @property
    def is_stale(self) -> bool:
        """Whether its connection is over, so that it comes again."""
        return self.acks.is_over


def run(settings: MqttFeeder, kit: Kit) -> ExitCode:
    """Feed until a stop. Raises ConfigError where a password cannot be read."""
    courier = kit.courier(settings.model)
    model = courier.model()
    courier.close()
    if model is None:
        return ExitCode.OK
    arrived: Inbox[Pending] = Inbox()
    workers = [
        threading.Thread(target=_hand_all, args=(settings, model.shape, kit, arrived), name=f"courier-{i}", daemon=True)
        for i in range(min(COURIERS, settings.in_flight))
    ]
    for worker in workers:
        worker.start()
    password(settings.password_file, settings.password_env)  # a mistake is told at once; later, a file may be missing
    backoff = Backoff(lambda: random.uniform(0.5, 1))  # noqa: S311 -- spreads reconnections only
    while not kit.stop.is_set():
        connection = _Connection(settings, kit, arrived)
        connection.run(workers)
        if connection.was_up:
            backoff.reset()
        kit.stop.wait(backoff.wait_s())
    return ExitCode.OK


def _hand_all(settings: MqttFeeder, shape: tuple[int, ...], kit: Kit, arrived: Inbox[Pending]) -> None:
    """One thread that hands messages in until a stop."""
    courier = kit.courier(settings.model)
    while not kit.stop.is_set():
        one = arrived.get(LOOK_S)
        if one is not None and _hand(settings, shape, kit, courier, one.message) and one.qos:
            one.acks.done(one)
    courier.close()


def _hand(settings: MqttFeeder, shape: tuple[int, ...], kit: Kit, courier: Courier, message: Message) -> bool:
    """Whether a message has ended: its frame did, or it is none."""
    rule = rule_of(settings.topic, message.topic)
    try:
        if rule is None:
            raise FrameRejected("no rule: the topic is matched by no filter of this feeder")
        key, content = frame_of(settings.name, rule, shape, message)
    except FrameRejected as error:
        kit.account.refuse(message.topic, str(error))
        return True
    return courier.hand(key, content) is not None


def rule_of(rules: Sequence[MqttTopic], topic: str) -> MqttTopic | None:
    """The first rule whose filter matches a topic."""
    return next((rule for rule in rules if topic_matches_sub(rule.filter, topic)), None)


class _Connection:
    """One connection, from dialling to its end. paho's thread moves it; ``over`` says that it has ended."""

    def __init__(self, settings: MqttFeeder, kit: Kit, arrived: Inbox[Pending]) -> None:
        self.was_up = False
        self._settings = settings
        self._kit = kit
        self._arrived = arrived
        self._over = threading.Event()
        self._about = {"feeder": settings.name, "broker": settings.broker}
        self._client = self._make_client()
        self._acks = Acks(self._client)

    def run(self, workers: Sequence[threading.Thread]) -> None:
        """Connect and stay connected until the end or a stop. At a stop, what is on its way may arrive."""
        try:
            self._connect()
        except (OSError, ValueError, EdgedError) as error:  # ssl.SSLError and socket.gaierror are OSErrors
            self._kit.account.say(f"cannot connect to {self._settings.broker}: {error}")
            return
        self._client.loop_start()
        while not self._over.wait(LOOK_S) and not self._kit.stop.is_set():
            pass
        if self._kit.stop.is_set():
            for worker in workers:
                worker.join(DRAIN_S / len(workers))
        self._acks.end()
        self._kit.account.count(skipped=self._arrived.purge())
        self._client.disconnect()
        self._client.loop_stop()

    def _make_client(self) -> Client:
        settings = self._settings
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id or f"edged-feed-{settings.name}",
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.on_socket_open = _send_without_delay
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _connect(self) -> None:
        settings = self._settings
        where = address(settings.broker)
        if where.scheme == "mqtts":
            ca, cert, key = (str(path) if path else None for path in (settings.ca, settings.cert, settings.key))
            self._client.tls_set(ca, cert, key)
        if settings.username:
            self._client.username_pw_set(settings.username, password(settings.password_file, settings.password_env))
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's only class without annotations
        properties.SessionExpiryInterval = int(settings.session_hours * 3600)
        properties.ReceiveMaximum = settings.in_flight
        properties.MaximumPacketSize = PACKET_BYTES
        port = where.port or PORTS[where.scheme]
        host = where.hostname or ""
        self._client.connect(host, port, settings.keepalive_s, clean_start=False, properties=properties)

    def _end(self, reason: str) -> None:
        self._kit.account.say(reason)
        self._over.set()

    def _on_connect(self, client: Client, _userdata: Any, flags: ConnectFlags, code: ReasonCode, _said: Any) -> None:
        if code.is_failure:
            self._end(f"{self._settings.broker} refuses us: {code.getName()}")
            return
        if self._kit.account.counts.connections and not flags.session_present:
            log.warning("the broker has forgotten our session: what came meanwhile is lost", extra=self._about)
        self._kit.account.count(connections=1)
        log.info("connected", extra=self._about)
        # Retained messages come with a new subscription only, not with each connection again.
        wanted = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        client.subscribe([(topic.filter, wanted) for topic in self._settings.topic])

    def _on_subscribe(self, client: Client, _userdata: Any, _mid: int, codes: list[ReasonCode], _said: Any) -> None:
        refused = [
            f"{topic.filter} ({code.getName()})"
            for topic, code in zip(self._settings.topic, codes, strict=True)
            if code.is_failure
        ]
        if refused:
            self._end(f"the broker refuses to let us subscribe to {', '.join(refused)}")
            client.disconnect()
            return
        self.was_up = True
        self._kit.account.say("running")

    def _on_disconnect(
        self, _client: Client, _data: Any, _flags: DisconnectFlags, code: ReasonCode, _said: Any
    ) -> None:
        if not self._kit.stop.is_set() and not self._over.is_set():
            self._end(f"the connection to {self._settings.broker} ended: {code.getName()}")
        self._over.set()

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        self._kit.account.count(received=1)
        said = dict(getattr(message.properties, "UserProperty", []))
        one = Pending(Message(message.topic, bytes(message.payload), said), message.mid, message.qos, self._acks)
        if one.qos:
            self._acks.add(one)
        if not self._arrived.put(one, waits=one.qos > 0):
            self._kit.account.count(**{"skipped" if one.qos else "dropped": 1})


def _send_without_delay(_client: Client, _userdata: Any, sock: Any) -> None:
    # Without it Nagle's algorithm holds a PUBACK back until the one before is confirmed, up to 44 ms.
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
