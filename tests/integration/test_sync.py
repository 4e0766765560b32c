"""edged-sync as a process, a real store beside it and a real broker before it, through everything that goes wrong."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any, Self

import jsonschema  # type: ignore[import-untyped]  # the package carries no types
import pytest

from cloud_sync.contract.asyncapi import CHANNELS, document
from cloud_sync.contract.messages import Ack, encode
from cloud_sync.contract.topics import parse
from edged.buffer.cursor import AckCursor, write_cursor
from tests.support.broker import Broker, Ear, Heard
from tests.support.sync import BASE, Store, Sync, account, entry, events, frames, has

Told = list[dict[str, Any]]


def presence(heard: list[Heard]) -> Told:
    return [json.loads(message.payload) for message in heard if message.topic == f"{BASE}/status"]


def arrives_in_order(heard: list[Heard], stream: str = "digits") -> bool:
    """Whether every number of the stream was first seen after the one before it, epoch by epoch."""
    highest: dict[str, int] = {}
    for event in events(heard):
        data = event.data
        if data.stream != stream:
            continue
        if data.first > highest.get(data.epoch, 0) + 1:
            return False
        highest[data.epoch] = max(highest.get(data.epoch, 0), data.last)
    return True


def check_every_message(heard: list[Heard]) -> set[str]:
    """Each message is what the AsyncAPI document says; returns the channels that were heard."""
    components, channels = document()["components"], set()
    for message in heard:
        channel = parse(message.topic).channel
        spoken = CHANNELS[channel]
        schema = {"$ref": f"#/components/schemas/{spoken.message.__name__}", "components": components}
        jsonschema.Draft202012Validator(schema).validate(json.loads(message.payload))
        assert message.content_type == spoken.content_type
        channels.add(channel.value)
    return channels


def test_everything_that_is_said_follows_the_contract(tmp_path: Path, store: Store, broker: Broker) -> None:
    status = {"device": "cam-1", "version": "0.1.0", "state": "ready", "latest": [], "uptime_s": 3.0}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text(json.dumps(status))
    store.fill(700)
    with Ear(broker, f"{BASE}/#") as ear, Sync(tmp_path, broker.url) as sync:
        ear.wait(has(700))
        store.commit([entry(9000)])
        ear.wait(has(701))
        sync.wait(lambda status: status["backlog_rows"] == 0 and status["in_flight"] == 0)
        sync.stop()
        heard = ear.wait(lambda heard: len(presence(heard)) == 2)
    assert check_every_message(heard) == {"status", "info", "result", "health"}
    assert account(heard).complete
    assert len(frames(heard)) == len(set(frames(heard))) == 701
    assert arrives_in_order(heard)
    first, *_, last = events(heard)
    assert (first.data.historical, last.data.historical) == (True, False)
    assert len(events(heard)) < 20, "a backlog goes out many rows a message"
    assert not any(len(message.payload) > 131_072 for message in heard)
    (health,) = [json.loads(message.payload) for message in heard if message.topic.endswith("/health")]
    assert health["daemon"]["state"] == "ready"
    assert health["link"]["state"] == "connected"
    assert sync.acked == {"digits": 701}


def test_birth_and_farewell_carry_one_session_and_are_retained(tmp_path: Path, broker: Broker) -> None:
    with Ear(broker, f"{BASE}/#") as ear:
        with Sync(tmp_path, broker.url):
            ear.wait(presence)
        heard = ear.wait(lambda heard: len(presence(heard)) == 2)
        online, offline = presence(heard)
        assert (online["state"], offline["state"], offline["reason"]) == ("online", "offline", "stopped")
        assert online["session"] == offline["session"]
        time.sleep(0.3)
        assert len(presence(ear.heard)) == 2, "a farewell takes the will back"
        with Ear(broker, f"{BASE}/status") as late:
            (retained,) = late.wait(lambda heard: heard)
        assert retained.retain
        assert json.loads(retained.payload) == offline


def test_a_killed_process_is_declared_lost_by_its_will(tmp_path: Path, broker: Broker) -> None:
    with Ear(broker, f"{BASE}/status") as ear, Sync(tmp_path, broker.url) as sync:
        ear.wait(presence)
        sync.kill()
        online, offline = presence(ear.wait(lambda heard: len(heard) == 2))
        assert (offline["state"], offline["reason"], offline["session"]) == ("offline", "lost", online["session"])
        sync.start()
        *_, again = presence(ear.wait(lambda heard: len(heard) == 3))
        assert again["state"] == "online"
        assert again["session"] != online["session"]


def test_safe_mode_is_told_in_the_status_topic_and_so_is_its_end(tmp_path: Path, broker: Broker) -> None:
    def write(state: str, *reasons: str) -> None:
        told = {"device": "cam-1", "version": "0.1.0", "state": state, "reasons": reasons}
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "status.json.part").write_text(json.dumps(told))
        (tmp_path / "run" / "status.json.part").replace(tmp_path / "run" / "status.json")

    write("degraded", "engine lost")
    with Ear(broker, f"{BASE}/status") as ear, Sync(tmp_path, broker.url):
        ear.wait(presence)
        write("safe-mode", "the configuration is wrong: device.id is missing")
        ear.wait(lambda heard: len(presence(heard)) == 2)
        write("ready")
        told = presence(ear.wait(lambda heard: len(presence(heard)) == 3))
    assert [one["safe_mode"] for one in told] == ["", "the configuration is wrong: device.id is missing", ""]
    assert {one["state"] for one in told} == {"online"}
    assert len({one["session"] for one in told}) == 1


def test_a_fresh_row_leaves_at_once(tmp_path: Path, store: Store, broker: Broker) -> None:
    with Ear(broker, f"{BASE}/result/#") as ear, Sync(tmp_path, broker.url):
        waits = []
        for number in range(20):
            store.commit([entry(number)])
            committed = time.monotonic()
            heard = ear.wait(has(number + 1))
            waits.append(heard[-1].at - committed)
    # A timer would take tens of milliseconds a row; the slowest are left out because the machine is shared.
    assert sorted(waits)[10] < 0.05, waits
    assert not any(event.data.historical for event in events(heard)[1:])


def test_without_a_broker_the_reason_is_told_and_the_backlog_waits_in_order(tmp_path: Path, store: Store) -> None:
    broker = Broker(tmp_path / "broker")
    store.fill(300)
    with Sync(tmp_path, broker.url) as sync:
        sync.wait(lambda status: "Connection refused" in status["reason"] and status["backlog_rows"] == 300)
        store.fill(200)
        with broker, Ear(broker, f"{BASE}/#") as ear:
            heard = ear.wait(has(500))
            sync.wait(lambda status: status["state"] == "connected" and status["backlog_rows"] == 0)
    assert account(heard).complete
    assert arrives_in_order(heard)
    assert any(event.data.historical for event in events(heard))


@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_broker_that_restarts_is_found_again(tmp_path: Path, store: Store, broker: Broker, times: int) -> None:
    with Ear(broker, f"{BASE}/#") as ear, Sync(tmp_path, broker.url) as sync:
        for turn in range(times):
            store.fill(100)
            ear.wait(has(150 * turn + 100))
            sync.wait(lambda status: status["backlog_rows"] == 0 and status["in_flight"] == 0)
            broker.stop()
            store.fill(50)
            sync.wait(lambda status: status["state"] in {"waiting", "connecting"} and status["reason"])
            broker.start()
            heard = ear.wait(has(150 * turn + 150), 30)
    assert account(heard).complete
    assert arrives_in_order(heard)


class Centre:
    """A central database: it acks what it has, as often as it hears something."""

    def __init__(self, ear: Ear) -> None:
        self._ear = ear

    def ack(self) -> dict[str, int]:
        acks: dict[str, int] = {}
        for report in account(self._ear.below("/result/")).report():
            held = next(iter(report.delivered | report.gaps), (1, 0))
            acks[report.epoch] = held[1] if held[0] == 1 else 0
            message = Ack(store="db", epoch=report.epoch, acks={"digits": acks[report.epoch]})
            self._ear.say(f"{BASE}/ack", encode(message))
        return acks


@pytest.mark.slow
def test_a_broker_that_is_killed_loses_nothing_where_the_centre_acks(tmp_path: Path, store: Store) -> None:
    """What a killed broker had taken is gone with it; only the centre's ack covers that."""
    broker = Broker(tmp_path / "broker")
    rng = random.Random(7)
    with broker, Ear(broker, f"{BASE}/result/#") as ear, Sync(tmp_path, broker.url, ack="central") as sync:
        centre = Centre(ear)
        for _ in range(3):
            store.fill(400)
            time.sleep(rng.uniform(0.0, 0.1))
            broker.stop(signal.SIGKILL)
            broker.start()
        heard = ear.wait(has(1200), 30)
        deadline = time.monotonic() + 15
        while sync.acked != {"digits": 1200} and time.monotonic() < deadline:
            centre.ack()
            time.sleep(0.3)
        assert sync.acked == {"digits": 1200}
    assert account(heard).complete
    assert len(frames(heard)) == len(set(frames(heard))) == 1200


class Feed:
    """Commits results as fast as a disk lets it, beside the test, until the block is left."""

    def __init__(self, store: Store) -> None:
        self.rows = 0
        self._store = store
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._ended.wait(0.005):
            self._store.commit(entry(number) for number in range(self.rows, self.rows + 5))
            self.rows += 5


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_lose_nothing_and_double_nothing_in_effect(
    tmp_path: Path, store: Store, broker: Broker, kills: int
) -> None:
    rng = random.Random(kills)
    with Ear(broker, f"{BASE}/result/#") as ear, Sync(tmp_path, broker.url) as sync:
        with Feed(store) as feed:
            for _ in range(kills):
                ear.wait_for_more(5)
                time.sleep(rng.uniform(0.0, 0.2))
                sync.kill()
                sync.start()
        heard = ear.wait(has(feed.rows), 30)
    (report,) = account(heard).report()
    assert report.complete
    assert report.doubled, "no kill came between a message and the cursor: the test has shown nothing"
    assert arrives_in_order(heard)
    assert len(frames(heard)) == len(set(frames(heard))) == feed.rows


def test_control_a_cursor_that_ran_ahead_of_the_broker_would_be_noticed(
    tmp_path: Path, store: Store, broker: Broker
) -> None:
    """The same proof, with the protection removed: the cursor says published where nothing was."""
    with Ear(broker, f"{BASE}/result/#") as ear, Sync(tmp_path, broker.url) as sync:
        store.fill(50)
        ear.wait(has(50))
        sync.kill()
        store.fill(30)
        write_cursor(tmp_path / "state" / "sync" / "ack.json", AckCursor({(store.epoch, "digits"): 70}))
        sync.start()
        heard = ear.wait(has(60))
    (report,) = account(heard).report()
    assert list(report.missing) == [(51, 70)]


def test_nobody_subscribed_is_no_delivery(tmp_path: Path, store: Store, broker: Broker) -> None:
    store.fill(30)
    with Sync(tmp_path, broker.url) as sync:
        status = sync.wait(lambda status: status["refused_messages"] >= 1 and status["streams"][0]["reason"])
        assert "No matching subscribers (0x10)" in status["reason"]
        assert status["streams"][0]["state"] == "held"
        assert (status["backlog_rows"], sync.acked) == (30, {})
        with Ear(broker, f"{BASE}/#") as ear:
            heard = ear.wait(has(30))
            sync.wait(lambda status: status["backlog_rows"] == 0 and not status["reason"])
    assert account(heard).complete
    assert events(heard)[0].data.historical
    assert len(events(heard)[0].data.rows) == 1, "after a refusal one row goes ahead"
    assert sync.acked == {"digits": 30}


def test_the_centre_is_believed_only_up_to_what_was_published(tmp_path: Path, store: Store, broker: Broker) -> None:
    store.fill(40)
    with Ear(broker, f"{BASE}/#") as ear, Sync(tmp_path, broker.url, ack="central") as sync:
        ear.wait(has(40))
        sync.wait(lambda status: status["streams"][0]["published_seq"] == 40)
        assert sync.acked == {}
        ear.say(f"{BASE}/ack", encode(Ack(store="db", epoch=store.epoch, acks={"digits": 25})))
        sync.wait(lambda status: status["streams"][0]["acked_seq"] == 25)
        ear.say(f"{BASE}/ack", b"{nonsense")
        ear.say(f"{BASE}/ack", encode(Ack(store="db", epoch=store.epoch, acks={"digits": 1000})))
        heard = ear.wait(lambda heard: sum("/event/ack" in message.topic for message in heard) == 2)
        status = sync.wait(lambda status: status["alarms"] == 2 and status["streams"][0]["acked_seq"] == 40)
        assert "only 40 was published" in status["reason"]
        sync.stop()
    check_every_message(
        [message for message in heard if not message.topic.endswith("/ack") or "event" in message.topic]
    )
    assert sync.acked == {"digits": 40}


def test_a_lost_store_is_told_as_a_gap_of_its_epoch_and_by_the_next_one(tmp_path: Path, broker: Broker) -> None:
    with Ear(broker, f"{BASE}/#") as ear, Sync(tmp_path, broker.url) as sync:
        with Store(tmp_path / "state") as store:
            first = store.epoch
            store.fill(30)
            ear.wait(has(30))
            sync.stop()
            store.fill(10)
        for path in (tmp_path / "state" / "buffer").glob("segment-*"):
            path.unlink()
        with Store(tmp_path / "state") as store:
            store.commit(entry(number) for number in range(1000, 1005))
            assert store.epoch != first
            sync.start()
            heard = ear.wait(has(35))
    old, new = account(heard).report()
    assert (old.epoch, list(old.delivered), list(old.gaps)) == (first, [(1, 30)], [(31, 40)])
    assert (list(new.delivered), old.complete, new.complete) == ([(1, 5)], True, True)
    (after,) = {event.data.predecessor for event in events(heard) if event.data.epoch == new.epoch}
    assert after is not None
    assert (after.epoch, after.reason) == (first, "lost")


@pytest.mark.slow
def test_a_signal_ends_it_soon_even_when_the_broker_stands_still(tmp_path: Path, store: Store, broker: Broker) -> None:
    with Ear(broker, f"{BASE}/#"), Sync(tmp_path, broker.url) as sync:
        sync.wait(lambda status: status["state"] == "connected" and status["in_flight"] == 0)
        assert broker._process is not None
        broker._process.send_signal(signal.SIGSTOP)
        try:
            store.fill(10)
            sync.wait(lambda status: status["in_flight"] > 0)
            began = time.monotonic()
            assert sync.stop() == 0
            assert time.monotonic() - began < 3.0
        finally:
            broker._process.send_signal(signal.SIGCONT)


@pytest.mark.slow
def test_an_idle_process_sleeps(tmp_path: Path, store: Store, broker: Broker) -> None:
    store.fill(5)
    with Ear(broker, f"{BASE}/#") as ear, Sync(tmp_path, broker.url) as sync:
        ear.wait(has(5))
        sync.wait(lambda status: status["backlog_rows"] == 0)
        assert sync.process is not None
        time.sleep(0.6)
        before = cpu_s(sync.process.pid)
        time.sleep(2.0)
        assert cpu_s(sync.process.pid) - before < 0.2


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
