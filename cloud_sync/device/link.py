"""One connection to the broker, from dialling to its end, through paho-mqtt. Never reused, decides nothing.

Each connection has a client of its own, clean start and no session: what was on its way when a connection ended is
read from the buffer again, so paho never repeats, never queues, and holds no more than the window. Everything runs in
the caller's thread except dialling, because name resolution and TLS block; ``socket`` and ``wants_write`` are for the
caller's selector. What happens comes out of ``events``.
"""

from __future__ import annotations

import contextlib
import socket as sockets
import ssl
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 15.0  # from dialling to the broker's word; a TLS handshake on a slow line fits in
RECEIVE_MAXIMUM = 65535  # what MQTT 5 assumes when the broker says nothing
PACKET_MAXIMUM = 268_435_455  # the most that MQTT can express


@dataclass(frozen=True, slots=True)
class Broker:
    """Where to connect and as whom. The password is read anew for every connection, so it can be rotated."""

    host: str
    port: int
    tls: bool
    client_id: str
    keepalive_s: int
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    username: str = ""
    password_file: Path | None = None

    @property
    def url(self) -> str:
        """For a person."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Letter:
    """One message to publish."""

    topic: str
    payload: bytes
    content_type: str
    qos: int = 1
    retain: bool = False
    expiry_s: int | None = None


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker accepts us, and so many messages at once, of such a size."""

    receive_maximum: int
    packet_maximum: int


@dataclass(frozen=True, slots=True)
class Answered:
    """The PUBACK of a message."""

    tag: int
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Received:
    """A message for us."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection could not be made, was refused, or ended. Nothing comes after this."""

    reason: str


Event = Connected | Answered | Received | Lost


class Link:
    """One connection. ``wake`` is called from the dialling thread when there is something in ``events``."""

    def __init__(self, broker: Broker, will: Letter, wake: Callable[[], None]) -> None:
        self.events: deque[Event] = deque()
        self._broker = broker
        self._wake = wake
        self._dialled = False
        self._over = False
        self._client = self._make_client(will)

    def dial(self) -> None:
        """Begin to connect, in a thread of its own. A thread stuck in name resolution does not keep the process."""
        threading.Thread(target=self._connect, name="dial", daemon=True).start()

    @property
    def socket(self) -> sockets.socket | None:
        """To wait on; None while dialling and after the end."""
        return self._client.socket() if self._dialled and not self._over else None  # type: ignore[return-value]  # paho's own union of socket kinds

    @property
    def wants_write(self) -> bool:
        """Whether the socket should be watched for writing."""
        return self._client.want_write()

    def read(self) -> None:
        """Take in what arrived, including what TLS has decrypted already."""
        while (sock := self.socket) is not None:
            self._client.loop_read()
            pending = getattr(sock, "pending", None)
            if self.socket is None or pending is None or not pending():
                return

    def write(self) -> None:
        """Send what the socket takes."""
        self._client.loop_write()

    def tick(self) -> None:
        """Keep the connection alive; call at least every second."""
        if self._dialled:
            self._client.loop_misc()

    def publish(self, letter: Letter) -> int:
        """Send a message at once; returns the tag of its PUBACK. What cannot be sent any more ends in Lost."""
        properties = _properties(PacketTypes.PUBLISH, letter)
        info = self._client.publish(letter.topic, letter.payload, letter.qos, letter.retain, properties)
        if info.rc not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_AGAIN):
            self._end(f"cannot send: {info.rc.name}")
        return info.mid

    def subscribe(self, topic: str) -> None:
        """Ask for messages. Call once it is known what to do with them."""
        self._client.subscribe(topic, qos=1)

    def leave(self) -> None:
        """Say goodbye, so that the broker does not speak our will; ``wants_write`` until that is sent."""
        if self.socket is not None:
            self._client.disconnect()

    def drop(self) -> None:
        """End the connection without a word, at once or as soon as dialling is done."""
        self._over = True
        if self._dialled:
            self._hang_up()

    def _make_client(self, will: Letter) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._broker.client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(0)  # the uplink's window is the bound; paho must not queue
        properties = _properties(PacketTypes.WILLMESSAGE, will)
        client.will_set(will.topic, will.payload, will.qos, will.retain, properties)
        client.on_socket_open = _send_without_delay
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        return client

    def _connect(self) -> None:
        broker = self._broker
        try:
            if broker.tls:
                self._client.tls_set(_text(broker.ca), _text(broker.cert), _text(broker.key))
            if broker.username:
                self._client.username_pw_set(broker.username, _password(broker.password_file))
            self._client.connect(broker.host, broker.port, broker.keepalive_s, clean_start=True)
            self._dialled = True
            if self._over:  # given up meanwhile; the broker must not take this for a second device of our name
                self._hang_up()
        except (OSError, ValueError) as error:  # ssl.SSLError and socket.gaierror are OSErrors
            self._end(f"cannot connect to {broker.url}: {_explain(error)}")
        self._wake()

    def _hang_up(self) -> None:
        client = self._client
        with contextlib.suppress(OSError, ValueError):
            if sock := client.socket():
                sock.close()
        # The client and we refer to each other; without this its sockets wait for the garbage collector.
        client.on_connect = client.on_disconnect = client.on_publish = client.on_message = None

    def _end(self, reason: str) -> None:
        if not self._over:
            self._over = True
            self.events.append(Lost(reason))

    def _on_connect(self, _client: Client, _userdata: Any, _flags: ConnectFlags, code: ReasonCode, said: Any) -> None:
        if code.is_failure:
            self._end(f"{self._broker.url} refuses us: {_words(code, said)}")
            return
        receive = int(getattr(said, "ReceiveMaximum", RECEIVE_MAXIMUM))
        self.events.append(Connected(receive, int(getattr(said, "MaximumPacketSize", PACKET_MAXIMUM))))

    def _on_disconnect(
        self, _client: Client, _userdata: Any, flags: DisconnectFlags, code: ReasonCode, said: Any
    ) -> None:
        who = "the broker ended the connection" if flags.is_disconnect_packet_from_server else "the connection broke"
        self._end(f"{who}: {_words(code, said)}")

    def _on_publish(self, _client: Client, _userdata: Any, tag: int, code: ReasonCode, said: Any) -> None:
        self.events.append(Answered(tag, code.value, _words(code, said)))

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        self.events.append(Received(message.topic, bytes(message.payload)))


def _properties(packet: int, letter: Letter) -> Properties:
    properties = Properties(packet)  # type: ignore[no-untyped-call]  # paho's only class without annotations
    properties.ContentType = letter.content_type
    properties.PayloadFormatIndicator = 1  # UTF-8
    if letter.expiry_s is not None:
        properties.MessageExpiryInterval = letter.expiry_s
    return properties


def _send_without_delay(_client: Client, _userdata: Any, sock: Any) -> None:
    # Without it Nagle's algorithm holds a message back for 44 ms (measured with mosquitto).
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)


def _words(code: ReasonCode, said: Any) -> str:
    """A reason code for a person: its name, its number and what the broker adds."""
    added = str(getattr(said, "ReasonString", "") or "")
    return f"{code.getName()} (0x{code.value:02x}){': ' + added if added else ''}"


def _explain(error: Exception) -> str:
    if isinstance(error, sockets.gaierror):
        return f"the name cannot be resolved: {error.strerror}"
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "; is this device's clock right?" if "not yet valid" in error.verify_message else ""
        return f"the broker's certificate is refused: {error.verify_message}{hint}"
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)


def _password(path: Path | None) -> str | None:
    return path.read_text(encoding="utf-8").rstrip("\r\n") if path else None


def _text(path: Path | None) -> str | None:
    return str(path) if path else None
