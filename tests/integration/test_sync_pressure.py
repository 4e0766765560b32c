"""A subscriber hears of every change of the device's pressure, also of one that came while there was no link."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from cloud_sync.contract.messages import AlarmEvent, Health
from edged.status import PressureFacts, Status
from tests.support.broker import Broker, Ear, Heard
from tests.support.sync import BASE, Store, Sync


def tell(directory: Path, level: str, reason: str = "") -> None:
    """Write the daemon's status, as the daemon does."""
    facts = Status(device="cam-1", version="1", state="ready", pressure=PressureFacts(level=level, reason=reason))
    (directory / "run").mkdir(exist_ok=True)
    part = directory / "run" / "part"
    part.write_bytes(msgspec.json.encode(facts))
    part.replace(directory / "run" / "status.json")


def alarms(heard: list[Heard]) -> list[tuple[str, str]]:
    """Severity and message of each alarm of the pressure."""
    told = [message.payload for message in heard if message.topic == f"{BASE}/event/pressure"]
    events = [msgspec.json.decode(payload, type=AlarmEvent) for payload in told]
    return [(event.data.severity, event.data.message) for event in events]


def has(level: str) -> Callable[[list[Heard]], bool]:
    """Whether this level was told."""
    return lambda heard: any(f"is {level}:" in said for _, said in alarms(heard))


def test_every_change_of_pressure_is_an_event_and_stands_in_the_health(tmp_path: Path, broker: Broker) -> None:
    tell(tmp_path, "normal")
    with (
        Store(tmp_path / "state") as store,
        Ear(broker, f"{BASE}/#") as ear,
        Sync(tmp_path, broker.url) as sync,
    ):
        store.fill(1)
        heard = ear.wait(lambda heard: any(message.topic == f"{BASE}/health" for message in heard))
        health = next(message.payload for message in heard if message.topic == f"{BASE}/health")
        daemon = msgspec.json.decode(health, type=Health).daemon
        assert daemon is not None and daemon.pressure is not None and daemon.pressure.level == "normal"
        assert alarms(heard) == []
        for level, reason in (("tight", "temperature (cpu) 86.0 °C"), ("critical", "temperature (cpu) 96.0 °C")):
            tell(tmp_path, level, reason)
            ear.wait(has(level))
        tell(tmp_path, "normal")
        heard = ear.wait(lambda heard: len(alarms(heard)) == 3)
        sync.wait(lambda status: status["alarms"] == 3)
    assert alarms(heard) == [
        ("warning", "the device's pressure is tight: temperature (cpu) 86.0 °C"),
        ("critical", "the device's pressure is critical: temperature (cpu) 96.0 °C"),
        ("warning", "the device's pressure is normal"),
    ]


def test_what_changed_without_a_link_is_told_with_the_next_one(tmp_path: Path, broker: Broker) -> None:
    tell(tmp_path, "critical", "memory used (service) 97.0 %")
    with Store(tmp_path / "state") as store:
        store.fill(1)
        with Ear(broker, f"{BASE}/#") as ear, Sync(tmp_path, broker.url):
            heard = ear.wait(lambda heard: bool(alarms(heard)))
    assert alarms(heard) == [("critical", "the device's pressure is critical: memory used (service) 97.0 %")]
