"""A real broker, a real feeder, a real daemon: every message of QoS 1 is stored exactly once, whoever is killed."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.support.broker import Broker
from tests.support.device import ROOT, Device, wait_until
from tests.support.feeder import Feeder, committed, rows, settled, wait_committed

CARELESS = [str(ROOT / "tests" / "support" / "careless_feeder.py")]
IN_FLIGHT = 8
ACKED = "Received PUBACK from edged-feed-yard"


def feeder_table(port: int, **more: str) -> str:
    settings = {"in_flight": str(IN_FLIGHT), **more}
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    return (
        f'[[feeder]]\ntype = "mqtt"\nname = "yard"\nmodel = "digits"\nbroker = "mqtt://127.0.0.1:{port}"\n{lines}'
        '[[feeder.topic]]\nfilter = "json/+"\npayload = "json"\nvalues = "image"\nkey = "field:id"\n'
        '[[feeder.topic]]\nfilter = "raw/+"\npayload = "raw"\ndtype = "uint8"\nkey = "property:id"\nshape = [8, 8]\n'
        '[[feeder.topic]]\nfilter = "png"\npayload = "png"\nkey = "digest"\n'
    )


class Sensor:
    """Publishes at QoS 1 and waits for each PUBACK."""

    def __init__(self, broker: Broker) -> None:
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()

    def say(self, topic: str, payload: bytes, **properties: str) -> None:
        said = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's only class without annotations
        said.UserProperty = list(properties.items())
        self._client.publish(topic, payload, qos=1, properties=said).wait_for_publish(10)

    def image(self, number: int) -> None:
        image = np.full((8, 8), number % 16).tolist()
        self.say("json/door", json.dumps({"id": number, "image": image}).encode())

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    place = tmp_path / "broker"
    extra = f"persistence_location {place}/\nautosave_interval 3600\nmax_queued_messages 0"
    broker = Broker(place, extra=extra)
    conf = place / "mosquitto.conf"
    conf.write_text(conf.read_text().replace("persistence false", "persistence true"))
    place.chmod(0o777)  # started by root, it becomes the user mosquitto
    with broker:
        yield broker


@pytest.fixture
def device(tmp_path: Path, broker: Broker) -> Iterator[Device]:
    with Device(tmp_path / "device", broker.port, tables=feeder_table(broker.port)) as device:
        yield device


@pytest.fixture
def sensor(broker: Broker) -> Iterator[Sensor]:
    sensor = Sensor(broker)
    yield sensor
    sensor.close()


def keys(device: Device) -> Counter[str]:
    return Counter(row["key"] for row in rows(device))


def expected(numbers: range) -> Counter[str]:
    return Counter(f"yard:json/door:{number}" for number in numbers)


@pytest.mark.slow
@pytest.mark.timeout(300)  # seconds on a machine at rest; three processes are started and killed again and again
def test_every_message_is_stored_exactly_once_whoever_is_killed(device: Device, broker: Broker, sensor: Sensor) -> None:
    with Feeder(device, "yard") as feeder:
        device.start("daemon")
        feeder.start()
        feeder.wait_for("running")
        for number in range(60):  # the feeder is killed, twice
            sensor.image(number)
            if number in (20, 40):
                feeder.kill()
                feeder.start()
        wait_committed(device, 60)
        for number in range(60, 120):  # the daemon is killed, twice
            sensor.image(number)
            if number in (80, 100):
                kill_daemon(device)
                device.revive()
        wait_committed(device, 120)
        feeder.stop()
        for number in range(120, 180):  # the broker is killed, when it has written down what it promised
            sensor.image(number)
        save(broker)
        feeder.start()
        wait_committed(device, 130)
        broker.stop(signal.SIGKILL)
        acked = broker.log.count(ACKED)
        broker.start()
        wait_committed(device, 180)
        wait_until(lambda: broker.log.count(ACKED) >= acked + 60, 60, feeder.log)
        counts = feeder.stop()
    assert keys(device) == expected(range(180))
    assert counts["received"] == counts["handed"] + counts["refused"] + counts["dropped"] + counts.get("skipped", 0)
    assert counts["duplicates"] > 0  # the broker had forgotten what was acknowledged since it wrote


def kill_daemon(device: Device) -> None:
    device.kill("daemon")
    wait_until(lambda: device.pid("daemon") is None, 10)


def save(broker: Broker) -> None:
    """Let mosquitto write its sessions and messages, as it does at SIGUSR1."""
    assert broker._process is not None
    broker._process.send_signal(signal.SIGUSR1)
    wait_until(lambda: (broker.directory / "mosquitto.db").exists(), 10, lambda: broker.log[-2000:])
    time.sleep(0.3)  # it writes a new file and renames it


@pytest.mark.slow
@pytest.mark.parametrize("program", [("-m", "edged.feeders"), CARELESS], ids=["ours", "control"])
def test_what_is_acknowledged_before_the_commit_is_lost_with_the_feeder(
    device: Device, broker: Broker, sensor: Sensor, program: list[str]
) -> None:
    with Feeder(device, "yard", program=program) as feeder:
        device.start("daemon")
        feeder.start()
        feeder.wait_for("running")
        kill_daemon(device)
        for number in range(30):
            sensor.image(number)
        wait_until(lambda: broker.log.count("Sending PUBLISH to edged-feed-yard") >= IN_FLIGHT, 20, feeder.log)
        time.sleep(0.5)
        feeder.kill()
        device.revive()
        feeder.start()
        if program != CARELESS:
            wait_committed(device, 30)
        device.wait_ready()
        settled(device)
        found = keys(device)
    lost = expected(range(30)) - found
    assert all(count == 1 for count in found.values())
    assert bool(lost) == (program == CARELESS), lost


def test_payloads_of_every_kind_are_taken_and_bad_ones_named_without_blocking_the_line(
    device: Device, sensor: Sensor
) -> None:
    good = np.arange(64, dtype=np.uint8).reshape(8, 8) % 16
    bad: list[tuple[str, bytes, dict[str, str], str]] = [
        ("json/door", b"{", {}, "not JSON"),
        ("json/door", b'{"id": 1}', {}, "no values"),
        ("json/door", b'{"image": [1]}', {}, "no key"),
        ("json/door", b'{"id": 2, "image": [1, 2, 3]}', {}, "the frame has shape (3,)"),
        ("raw/door", bytes(64), {}, "no key"),
        ("raw/door", bytes(63), {"id": "1"}, "do not fill the shape"),
        ("png", b"no image", {}, "not a readable PNG"),
    ]
    with Feeder(device, "yard") as feeder:
        device.start("daemon")
        feeder.start()
        feeder.wait_for("running")
        for topic, payload, properties, _ in bad:
            sensor.say(topic, payload, **properties)
        sensor.say("raw/door", good.tobytes(), id="7")
        sensor.say("raw/door", good.tobytes(), id="7")
        sensor.say("json/door", json.dumps({"id": "a", "image": good.ravel().tolist()}).encode())
        sensor.say("json/door", json.dumps({"id": "b", "image": good.tolist()}).encode())
        sensor.say("png", png(good))
        wait_committed(device, 4)
        for *_, said in bad:
            feeder.wait_for(said)
        counts = feeder.stop()
    found = {row["key"]: row for row in rows(device)}
    results = {key: row["body"]["label"] for key, row in found.items() if row["kind"] == "result"}
    assert {"yard:raw/door:7", "yard:json/door:a", "yard:json/door:b"} < set(results)
    assert len(results) == 4 and len({results[key] for key in results}) == 1
    assert found["yard:json/door:2"]["kind"] == "rejected"  # it reached the model, and the stream says what it was
    assert counts == {
        "received": 12, "handed": 5, "duplicates": 1, "refused": 7, "dropped": 0, "connections": 1,
    }  # fmt: skip


def png(image: np.ndarray[Any, Any]) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_a_broker_that_refuses_is_told_and_asked_again(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("wrong\n")
    with Broker(tmp_path / "broker", users={"yard": "right", "sensor": "x"}) as broker:
        tables = feeder_table(broker.port, username='"yard"', password_file=f'"{secret}"')
        with Device(tmp_path / "device", broker.port, tables=tables) as device, Feeder(device, "yard") as feeder:
            device.start("daemon")
            feeder.start()
            feeder.wait_for("refuses us: Not authorized")
            secret.write_text("right\n")
            feeder.wait_for("running")
            command_line = Path(f"/proc/{feeder.pid}/cmdline").read_bytes()
            feeder.stop()
        assert "wrong" not in feeder.log() and "right" not in feeder.log()
        assert b"right" not in command_line
    assert committed(device) == 0
