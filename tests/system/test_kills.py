"""kill -9 of worker, daemon and edged-sync at random moments under load: every frame ends once and arrives once.

The control runs such kills with the frame identity switched off and must show doubles: else the kills prove nothing.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.digits.data import Images, held_out
from tests.support.broker import Broker
from tests.support.device import Device, Ledger, wait_until
from tests.support.parts import require

KILLS = 20  # of each process
QUEUED = 150  # files kept in the spool: always enough to be under load, few enough to drain quickly
SEED = 20


@pytest.fixture(scope="module")
def images() -> Images:
    return held_out()[0]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    require("mosquitto")
    with Broker(tmp_path / "broker") as broker:
        yield broker


class SpoolLoad(threading.Thread):
    """Keeps the spool filled until told to stop."""

    def __init__(self, device: Device, images: Images) -> None:
        super().__init__(daemon=True)
        self._device, self._images = device, images
        self.fed: list[str] = []
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.005):
            for _ in range(QUEUED - len(self._device.spooled())):
                name = f"{len(self.fed):07d}.npy"
                self.fed.append(name)
                self._device.put(name, self._images[len(self.fed) % len(self._images)])


class HttpLoad(threading.Thread):
    """Asks over HTTP, one frame after the other, each with an id, again and again until it is answered."""

    def __init__(self, device: Device, images: Images) -> None:
        super().__init__(daemon=True)
        self._device, self._images = device, images
        self.answered: dict[str, str] = {}
        self.retries = 0
        self.done = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.done.is_set():
            key = f"http-{number:07d}"
            answer = self._ask(key, self._images[number % len(self._images)])
            if answer is None:
                self.retries += 1
                time.sleep(0.02)
                continue
            self.answered[key] = answer
            number += 1

    def _ask(self, key: str, image: Images) -> str | None:
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *image.shape], "data": image.ravel().tolist()}
        try:
            with contextlib.closing(http.client.HTTPConnection(*self._device.address(), timeout=5)) as connection:
                body = json.dumps({"id": key, "inputs": [tensor]})
                connection.request("POST", "/v2/models/digits/infer", body, {"Content-Type": "application/json"})
                with connection.getresponse() as response:
                    answer = response.read().decode()
        except (OSError, http.client.HTTPException, ValueError):
            return None
        return answer if response.status == 200 else None


def torment(device: Device, kills: int, rng: random.Random) -> dict[str, int]:
    """Kill each process ``kills`` times, at random moments and in random order, starting again what died."""
    killed = {"worker": 0, "daemon": 0, "sync": 0}
    victims = [name for name in killed for _ in range(kills)]
    rng.shuffle(victims)
    for name in victims:
        deadline = time.monotonic() + 60
        while True:
            device.revive()
            time.sleep(rng.uniform(0.02, 0.3))
            if (name != "daemon" or device.status().get("pid") == device.pid("daemon")) and device.kill(name):
                break
            assert time.monotonic() < deadline, f"no {name} to kill\n{device.log('daemon')()}"
        killed[name] += 1
    time.sleep(0.1)
    device.revive()
    return killed


def _account(device: Device) -> tuple[int, int]:
    """What the daemon says of the spool: received, committed. Its status is written once a second."""
    facts = {source["name"]: source for source in device.status()["pipelines"][0]["sources"]}
    return facts["spool"]["received"], facts["spool"]["committed"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_kills_at_random_lose_nothing_and_double_nothing(tmp_path: Path, broker: Broker, images: Images) -> None:
    with Device(tmp_path / "device", broker.port) as device, Ledger(broker.port) as ledger:
        device.start("daemon")
        device.start("sync")
        device.wait_ready()
        spool, asking = SpoolLoad(device, images), HttpLoad(device, images)
        spool.start()
        asking.start()
        killed = torment(device, KILLS, random.Random(SEED))
        asking.done.set()
        spool.done.set()
        spool.join()
        asking.join(30)
        expected = set(spool.fed) | set(asking.answered)
        wait_until(lambda: not device.spooled() and expected <= set(ledger.rows), 90, device.log("daemon"))
        print(
            f"\nkilled {killed}; frames: {len(spool.fed)} by spool, {len(asking.answered)} by HTTP after "
            f"{asking.retries} retries; rows {sum(map(len, ledger.rows.values()))}, doubled {len(ledger.doubled())}"
        )
        assert killed == {"worker": KILLS, "daemon": KILLS, "sync": KILLS}
        assert asking.answered and asking.retries
        assert ledger.account.complete
        assert ledger.doubled() == []
        kinds = {row.kind for rows in ledger.rows.values() for row in rows}
        assert kinds <= {"result", "error"}
        wait_until(lambda: _account(device) == (len(spool.fed), len(spool.fed)), 10, lambda: str(_account(device)))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_control_without_frame_identity_the_same_kills_double_frames(
    tmp_path: Path, broker: Broker, images: Images
) -> None:
    with (
        Device(tmp_path / "device", broker.port, buffer="frame_identity = false") as device,
        Ledger(broker.port) as ledger,
    ):
        device.start("daemon")
        device.start("sync")
        device.wait_ready()
        spool = SpoolLoad(device, images)
        spool.start()
        rng = random.Random(SEED)
        for _ in range(10 * KILLS):
            time.sleep(rng.uniform(0.1, 0.4))
            device.kill("daemon")
            time.sleep(0.05)
            device.revive()
            device.wait_ready()
            if ledger.doubled():
                break
        spool.done.set()
        spool.join()
        wait_until(lambda: bool(ledger.doubled()), 30, lambda: "no frame was doubled: the kills prove nothing")
