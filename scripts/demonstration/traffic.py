"""The two ends of the demo: what feeds frames into the device, and what receives its results.

Both are driven by the demo's loop and have no thread. The feeder knows the spool, the subscriber knows MQTT; neither
judges.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from models.digits.data import Images
from scripts.demonstration.books import Books, file_name
from scripts.demonstration.machine import LOCALHOST, DemoError

RATE_HZ = 50.0  # a person can follow it, and the whole held-out split passes in nine seconds
UNDER_WAY_MAX = 2000  # frames on their way before feeding pauses: forty seconds


class Feeder:
    """Puts images into the spool at a steady rate, each under a name of its own."""

    def __init__(self, spool: Path, images: Images, books: Books) -> None:
        self._files = [_npy(image) for image in images]
        self._spool = spool
        self._books = books
        self._due = time.monotonic()

    def feed(self) -> None:
        """Put in what is due by now."""
        now = time.monotonic()
        while self._due <= now:
            self._due += 1 / RATE_HZ
            if self._books.under_way < UNDER_WAY_MAX:
                number = self._books.feed()
                self._put(file_name(number), self._files[number % len(self._files)])

    def _put(self, name: str, content: bytes) -> None:
        unfinished = self._spool / f".{name}"  # the spool does not look at names that begin with a dot
        unfinished.write_bytes(content)
        unfinished.rename(self._spool / name)


class Subscriber:
    """An ordinary MQTT client that hands the payload of every result of ``stream`` to ``arrived``."""

    def __init__(self, port: int, stream: str, arrived: Callable[[bytes], None]) -> None:
        self._topic = f"edged/v1/+/+/result/{stream}"
        self._arrived = arrived
        self._subscribed = False
        self._client = Client(CallbackAPIVersion.VERSION2, "demo-subscriber", protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.connect(LOCALHOST, port)

    def listen(self, timeout_s: float) -> None:
        """Handle what has arrived, waiting at most ``timeout_s`` for the first. Raises DemoError."""
        code = self._client.loop(timeout_s)
        if code is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise DemoError(f"the subscriber lost the broker: {code.name}")

    def is_subscribed(self) -> bool:
        """Whether the broker has confirmed the subscription. Listens a little."""
        self.listen(0.01)
        return self._subscribed

    def _on_connect(self, client: Client, *_: object) -> None:
        client.subscribe(self._topic, qos=1)

    def _on_subscribe(self, _client: Client, _userdata: object, _mid: int, codes: list[ReasonCode], _: object) -> None:
        self._subscribed = not any(code.is_failure for code in codes)

    def _on_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        self._arrived(bytes(message.payload))


def _npy(image: Images) -> bytes:
    file = io.BytesIO()
    np.save(file, image)
    return file.getvalue()
