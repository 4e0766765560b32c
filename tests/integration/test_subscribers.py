"""The two subscribers that a developer copies, against a real broker and a real edged-sync.

Each has its controls: the same events with one message removed, one message doubled, one frame under a second number
must be told. For that the test listens itself and passes the changed events on under another root.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.broker import Broker, Ear, Heard
from tests.support.parts import require
from tests.support.sync import BASE, DEVICE, FLEET, ROOT, Store, Sync, delivered, entry, events

EXAMPLES = ROOT / "docs" / "examples"
ROWS = 40

Command = Callable[[Broker, str, int], list[str]]


def python(broker: Broker, root: str, rows: int) -> list[str]:
    where = ["--broker", broker.url, "--root", root, "--fleet", FLEET, "--device", DEVICE]
    return [
        sys.executable,
        str(EXAMPLES / "subscriber.py"),
        *where,
        "--expect",
        str(rows),
        "--timeout",
        "4",
        "--settle",
        "0.3",
    ]


def shell(broker: Broker, root: str, rows: int) -> list[str]:
    where = ["-h", "127.0.0.1", "-p", str(broker.port), "-r", root, "-f", FLEET, "-d", DEVICE]
    return ["bash", str(EXAMPLES / "subscriber.sh"), *where, "-n", str(rows), "-w", "3"]


@pytest.fixture(params=[python, shell], ids=["python", "shell"])
def command(request: pytest.FixtureRequest) -> Command:
    if request.param is shell:
        require("jq", "mosquitto-clients")
    chosen: Command = request.param
    return chosen


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


def listen(broker: Broker, arguments: list[str], act: Callable[[], object]) -> tuple[int, str]:
    """Start a subscriber, act once the broker knows it, and return its verdict and what it printed."""
    known = broker.log.count("SUBSCRIBE")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    subscribed = threading.Event()
    while broker.log.count("SUBSCRIBE") < known + 1 and process.poll() is None:
        subscribed.wait(0.02)
    act()
    output, _ = process.communicate(timeout=30)
    return process.returncode, output


@pytest.fixture(scope="module")
def heard(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> list[Heard]:
    """What a real edged-sync sends: one event a row at first, then several rows in one."""
    place = tmp_path_factory.mktemp("heard")
    with Ear(broker, f"{BASE}/result/#") as ear, Store(place / "state") as store, Sync(place, broker.url):
        for number in range(10):
            store.commit([entry(number)])
            ear.wait(partial(has_heard, number + 1))
        store.commit(entry(number) for number in range(10, ROWS))
        return ear.wait(partial(has_heard, ROWS))


def has_heard(rows: int, heard: list[Heard]) -> bool:
    return delivered(heard) >= rows


def replay(broker: Broker, heard: list[Heard]) -> Callable[[], None]:
    """Pass events on under the root ``copy``."""

    def act() -> None:
        with Ear(broker, "nothing") as mouth:
            for message in heard:
                mouth.say(message.topic.replace("edged/", "copy/", 1), message.payload)

    return act


def test_a_subscriber_proves_what_a_real_device_sends(command: Command, broker: Broker, tmp_path: Path) -> None:
    with Store(tmp_path / "state") as store, Sync(tmp_path, broker.url):
        code, said = listen(broker, command(broker, "edged", 300), lambda: store.fill(300))
    assert code == 0, said
    assert f"{DEVICE}/digits epoch {store.epoch}: rows=300" in said
    assert said.splitlines()[-1] == "subscriber: rows=300 missing=0 doubled=0 redelivered=0"


def test_a_removed_message_is_told(command: Command, broker: Broker, heard: list[Heard]) -> None:
    removed = events([heard[4]])[0].data
    code, said = listen(broker, command(broker, "copy", 1), replay(broker, heard[:4] + heard[5:]))
    assert code == 1, said
    assert f"missing={removed.last - removed.first + 1}" in said.splitlines()[-1]


def test_a_message_that_comes_twice_is_recognised_and_fails_only_if_asked(
    command: Command, broker: Broker, heard: list[Heard]
) -> None:
    twice = [*heard[:5], heard[4], *heard[5:]]
    code, said = listen(broker, command(broker, "copy", ROWS), replay(broker, twice))
    assert (code, said.splitlines()[-1]) == (0, f"subscriber: rows={ROWS} missing=0 doubled=0 redelivered=1")
    arguments = command(broker, "copy", ROWS)
    code, said = listen(
        broker, [*arguments, "--strict" if sys.executable in arguments else "-s"], replay(broker, twice)
    )
    assert (code, said.splitlines()[-1]) == (1, f"subscriber: rows={ROWS} missing=0 doubled=0 redelivered=1")


@pytest.mark.parametrize("change", ["same number, other result", "same frame, other number"])
def test_a_result_that_is_there_twice_in_effect_is_told(
    command: Command, broker: Broker, heard: list[Heard], change: str
) -> None:
    event = json.loads(heard[4].payload)
    row = event["data"]["rows"][0]
    if change == "same number, other result":
        row["result"] = {"label": "another"}
    else:
        row["seq"] = event["data"]["first"] = event["data"]["last"] = ROWS + 1
    forged = Heard(heard[4].topic, json.dumps(event).encode(), False, "", 0.0)
    code, said = listen(broker, command(broker, "copy", ROWS), replay(broker, [*heard, forged]))
    assert code == 1, said
    assert "missing=0 doubled=1" in said.splitlines()[-1]


@pytest.mark.slow
def test_too_few_rows_are_a_failure(command: Command, broker: Broker, heard: list[Heard]) -> None:
    code, said = listen(broker, command(broker, "copy", ROWS + 1), replay(broker, heard))
    assert code == 1, said
    assert f"rows={ROWS} missing=0" in said
