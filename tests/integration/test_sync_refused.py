"""What a broker refuses, limits or hides from edged-sync is told with its reason; nothing is lost or stopped."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.broker import Broker, Ear, free_port
from tests.support.parts import require
from tests.support.sync import BASE, Store, Sync, account, delivered, entry, events, has


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
    require("openssl")
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
