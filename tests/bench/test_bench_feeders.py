"""How much a feeder brings: messages a second from a broker to a stored result, and windows a second of live events.

``scripts/test --bench tests/bench/test_bench_feeders.py``
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edged.feeders.daemon import EventRule
from edged.feeders.event_stream import LiveEvents, Windows, dat_bytes
from tests.support.broker import Broker
from tests.support.device import Device
from tests.support.feeder import Feeder, wait_committed

pytestmark = pytest.mark.bench

MESSAGES = 500
EVENTS = 2_000_000


@pytest.mark.parametrize("in_flight", [1, 8, 32])
def test_messages_a_second(tmp_path: Path, in_flight: int, capsys: pytest.CaptureFixture[str]) -> None:
    image = np.full((8, 8), 7).tolist()
    with Broker(tmp_path / "broker", extra="max_queued_messages 0") as broker:
        tables = (
            f'[[feeder]]\ntype = "mqtt"\nname = "yard"\nmodel = "digits"\nbroker = "{broker.url}"\n'
            f"in_flight = {in_flight}\n"
            '[[feeder.topic]]\nfilter = "a"\npayload = "json"\nvalues = "v"\nkey = "field:id"\n'
        )
        with Device(tmp_path / "device", broker.port, tables=tables) as device, Feeder(device, "yard") as feeder:
            device.start("daemon")
            feeder.start()
            feeder.wait_for("running")
            client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
            client.connect("127.0.0.1", broker.port)
            client.loop_start()
            begun = time.monotonic()
            for number in range(MESSAGES):
                client.publish("a", json.dumps({"id": number, "v": image}), qos=1)
            wait_committed(device, MESSAGES, 300)
            took = time.monotonic() - begun
            client.loop_stop()
            feeder.stop()
    with capsys.disabled():
        print(f"\nMQTT → stored result, in_flight {in_flight}: {MESSAGES / took:.0f} messages a second")


def test_windows_of_live_events(capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(3)
    words = np.empty((EVENTS, 2), "<u4")
    words[:, 0] = np.cumsum(random.integers(0, 2, EVENTS))  # two million events a second
    words[:, 1] = random.integers(0, 34, EVENTS) << 14 | random.integers(0, 34, EVENTS)
    stream, windows = LiveEvents("dat"), Windows(EventRule(10_000, "first_event"))
    data = b"% Version 2\n\x0c\x08" + words.tobytes()
    begun, sent = time.monotonic(), 0
    for begin in range(0, len(data), 64 << 10):
        for piece in stream.feed(data[begin : begin + (64 << 10)]):
            sent += sum(len(dat_bytes(window.events)) for window in windows.push(piece))
    took = time.monotonic() - begun
    with capsys.disabled():
        print(f"\nlive .dat → windows of 10 ms: {EVENTS / took / 1e6:.1f} million events a second, {sent >> 20} MB out")
