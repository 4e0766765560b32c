"""edged-sync as a process, a real store beside it and a real broker before it, through everything that goes wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jsonschema  # type: ignore[import-untyped]  # the package carries no types
import pytest

from cloud_sync.contract.asyncapi import CHANNELS, document
from cloud_sync.contract.messages import Ack, encode
from cloud_sync.contract.topics import parse
from edged.buffer.cursor import AckCursor, write_cursor
from tests.support.broker import Broker, Ear, Heard, free_port
from tests.support.sync import BASE, Store, Sync, account, delivered, entry, events, frames

Told = list[dict[str, Any]]


def presence(heard: list[Heard]) -> Told:
    return [json.loads(message.payload) for message in heard if message.topic == f"{BASE}/status"]


def has(rows: int, stream: str = "digits") -> Callable[[list[Heard]], bool]:
    return lambda heard: delivered(heard, stream) >= rows


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


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store(tmp_path / "state") as store:
        yield store


@pytest.fixture
def broker(tmp_path: Path) -> Any:
    with Broker(tmp_path / "broker") as broker:
        yield broker


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


def test_a_forbidden_stream_is_held_with_its_reason_and_the_others_flow(tmp_path: Path, store: Store) -> None:
    acl = f"user cam\ntopic write {BASE}/result/good\ntopic write {BASE}/status\n\nuser ear\ntopic read #\n"
    (tmp_path / "secret").write_text("s3cret\n")
    with Broker(tmp_path / "broker", users={"cam": "s3cret", "ear": "e"}, acl=acl) as broker:
        store.fill(20, "bad")
        store.fill(20, "good")
        with (
            Ear(broker, f"{BASE}/#", user="ear", password="e") as ear,
            Sync(tmp_path, broker.url, username="cam", password_file=str(tmp_path / "secret")) as sync,
        ):
            heard = ear.wait(has(20, "good"))
            status = sync.wait(
                lambda status: (
                    {s["stream"]: s["state"] for s in status["streams"]} == {"bad": "held", "good": "flowing"}
                )
            )
            time.sleep(1.5)  # the cursor is written once a second
    assert "stream 'bad': Not authorized (0x87)" in status["reason"]
    assert sync.acked == {"good": 20}
    assert delivered(heard, "bad") == 0


def test_a_wrong_password_is_told_without_hurry_and_a_corrected_one_is_taken(tmp_path: Path, store: Store) -> None:
    (tmp_path / "secret").write_text("wrong\n")
    with Broker(tmp_path / "broker", users={"cam": "s3cret"}) as broker:
        options = {"username": "cam", "password_file": str(tmp_path / "secret")}
        with Sync(tmp_path, broker.url, **options) as sync:
            sync.wait(lambda status: "refuses us" in status["reason"] and "Not authorized" in status["reason"])
            time.sleep(1.5)
            assert 1 <= broker.log.count("disconnected, not authorised") <= 6, "no busy loop"
            (tmp_path / "secret").write_text("s3cret\n")
            sync.wait(lambda status: status["state"] == "connected")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mqtt://no-such-host.invalid:1883", "the name cannot be resolved"),
        ("mqtts://127.0.0.1:{port}", "cannot connect"),
        ("mqtt://127.0.0.1:{closed}", "Connection refused"),
    ],
)
def test_whatever_keeps_it_from_connecting_is_told_and_it_stops_when_asked(
    tmp_path: Path, broker: Broker, url: str, reason: str
) -> None:
    with Sync(tmp_path, url.format(port=broker.port, closed=free_port())) as sync:
        status = sync.wait(lambda status: reason in status["reason"], 30)
        assert status["connections"] == 0
        began = time.monotonic()
        assert sync.stop() == 0
        assert time.monotonic() - began < 2.5


def test_a_row_that_is_too_large_goes_without_its_body_and_stops_nothing(
    tmp_path: Path, store: Store, broker: Broker
) -> None:
    body = json.dumps({"scores": [0.25] * 40_000}).encode()
    store.commit([entry(1), entry(2, body=body), entry(3)])
    with Ear(broker, f"{BASE}/#") as ear, Sync(tmp_path, broker.url):
        heard = ear.wait(has(3))
    rows = [row for event in events(heard) for row in event.data.rows]
    omitted = json.loads(bytes(rows[1].result))
    assert (omitted["omitted"], omitted["size_bytes"]) == ("too large", len(body))
    assert account(heard).complete


def test_a_broker_that_announces_its_limit_gets_messages_that_fit(tmp_path: Path, store: Store) -> None:
    store.fill(300)
    with (
        Broker(tmp_path / "broker", extra="max_packet_size 9000") as broker,
        Ear(broker, f"{BASE}/#") as ear,
        Sync(tmp_path, broker.url) as sync,
    ):
        heard = ear.wait(has(300))
        assert sync.wait(lambda status: status["backlog_rows"] == 0)["connections"] == 1
    assert account(heard).complete


@pytest.mark.slow
def test_a_broker_that_hangs_up_on_large_messages_gets_everything_all_the_same(tmp_path: Path, store: Store) -> None:
    store.commit([entry(9000, body=json.dumps({"scores": "x" * 80_000}).encode())])
    store.fill(400)
    with (
        Broker(tmp_path / "broker", extra="message_size_limit 60000") as broker,
        Ear(broker, f"{BASE}/#") as ear,
        Sync(tmp_path, broker.url),
    ):
        heard = ear.wait(has(401), 40)
    assert account(heard).complete
    (large,) = [row for event in events(heard) for row in event.data.rows if row.key == "digits-9000"]
    assert json.loads(bytes(large.result))["omitted"] == "too large"


@pytest.mark.slow
def test_two_devices_with_one_id_are_told_so_and_do_not_hurry(tmp_path: Path, broker: Broker) -> None:
    (tmp_path / "twin").mkdir()
    with Sync(tmp_path, broker.url) as sync, Sync(tmp_path / "twin", broker.url) as twin:
        deadline = time.monotonic() + 15
        while "another client" not in sync.log + twin.log and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(2.0)
    assert "does another client use the id 'edged/test/cam-1'?" in sync.log + twin.log
    assert (sync.log + twin.log).count("connected to") < 12


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


def certificates(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate that signs itself, for the loopback, and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    key.chmod(0o644)
    return certificate, key


def test_tls_trusts_the_given_authority_only(tmp_path: Path, store: Store) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate, key = certificates(tmp_path, "broker")
    stranger, _ = certificates(tmp_path, "stranger")
    tls_port = free_port()
    extra = f"listener {tls_port} 127.0.0.1\ncertfile {certificate}\nkeyfile {key}"
    with Broker(tmp_path / "broker", extra=extra) as broker, Ear(broker, f"{BASE}/#") as ear:
        url = f"mqtts://127.0.0.1:{tls_port}"
        store.fill(2000)
        with Sync(tmp_path, url, ca=str(stranger)) as sync:
            sync.wait(lambda status: "the broker's certificate is refused" in status["reason"])
        with Sync(tmp_path, url, ca=str(certificate)):
            heard = ear.wait(has(2000))
    assert account(heard).complete


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
