"""Engines that are killed, stopped, spoiled at random under load: the frames go elsewhere, none is lost, nothing stays.

``--soak`` runs the same for ten minutes.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import re
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.digits.data import Images, held_out
from tests.support.bad_interpreter import ACTS, Interpreter
from tests.support.broker import Broker
from tests.support.device import Device, Ledger, descendants, wait_until
from tests.support.lava import lava_python

SHORT_S, SOAK_S = 40.0, 600.0
DEADLINE_S = {"lava": 0.5, "lava-sim": 30.0}  # of a call: more than it needs, also to prove itself on a busy machine
ANSWER_S = 100.0  # more than two calls that hang until their deadline, before the next engine answers
HEALS = {"lava": 0.0, "lava-sim": 0.25}  # the share of faults after which nothing happens until it serves again
PATIENCE = 0.1  # of the whole time, with an engine that heals
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV)
SEED = 11


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path / "broker") as running:
        yield running


@pytest.fixture(scope="module")
def images() -> Images:
    return held_out()[0]


class Prober(threading.Thread):
    """Asks over HTTP, one frame after the other, and remembers when each was asked and answered."""

    def __init__(self, device: Device, images: Images) -> None:
        super().__init__(daemon=True)
        self._device, self._images = device, images
        self.answers: list[tuple[float, float]] = []
        self.failed: list[str] = []
        self.done = threading.Event()

    def run(self) -> None:
        for number in itertools.count():
            if self.done.is_set():
                return
            asked = time.monotonic()
            try:
                said = self._ask(f"http-{number:07d}", self._images[number % len(self._images)])
            except TimeoutError:
                said = f"http-{number:07d} had no answer within {ANSWER_S:g} s"
            if said:
                self.failed.append(said)
            else:
                self.answers.append((asked, time.monotonic()))
            time.sleep(0.01)

    def recovered_s(self, fault: float) -> float | None:
        """How long after a fault the first frame was answered that was asked after it."""
        return next((answered - fault for asked, answered in self.answers if asked >= fault), None)

    def _ask(self, key: str, image: Images) -> str:
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *image.shape], "data": image.ravel().tolist()}
        body = json.dumps({"id": key, "inputs": [tensor]})
        with contextlib.closing(http.client.HTTPConnection(*self._device.address(), timeout=ANSWER_S)) as connection:
            connection.request("POST", "/v2/models/digits/infer", body, {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                answer = response.read().decode()
                return "" if response.status == 200 else answer


class Feeder(threading.Thread):
    """Drops frames into the spool, fifty a second."""

    def __init__(self, device: Device, images: Images) -> None:
        super().__init__(daemon=True)
        self._device, self._images = device, images
        self.fed: list[str] = []
        self.done = threading.Event()

    def run(self) -> None:
        for number in itertools.count():
            if self.done.wait(0.02):
                return
            name = f"{number:07d}.npy"
            self._device.put(name, self._images[number % len(self._images)])
            self.fed.append(name)


def harm(device: Device, lava: Interpreter, chance: random.Random) -> str:
    """Do something to an engine. Returns what, empty when there was nothing to do it to."""
    if chance.random() < 0.3:
        act = chance.choice(ACTS)
        lava.spoil(act)  # and end Lava's worker, so that the next one meets it
        return act if _signal(device, "lava", signal.SIGKILL) else ""
    if chance.random() < 0.5:
        lava.heal()
    signum = chance.choice(SIGNALS)
    return signum.name if _signal(device, "", signum) else ""


def _signal(device: Device, engine: str, signum: signal.Signals) -> bool:
    """Signal a worker of an engine; empty: of the one that serves."""
    for facts in device.status().get("engines", []):
        wanted = facts["name"].startswith(engine) if engine else facts["placement"] == "serving"
        if wanted and facts["pid"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(facts["pid"], signum)
                return True
    return False


def serving(device: Device) -> set[str]:
    """The engines that answer frames now."""
    return {facts["name"] for facts in device.status().get("engines", []) if facts["placement"] == "serving"}


def _await_serving(device: Device, engine: str, within_s: float) -> None:
    """Return when it serves, or when that takes too long."""
    until = time.monotonic() + within_s
    while engine not in serving(device) and time.monotonic() < until:
        time.sleep(0.2)


def kill_a_child(device: Device) -> bool:
    """Kill one of the processes that Lava's own runtime started."""
    daemon = device.pid("daemon")
    workers = descendants(daemon) if daemon is not None else []
    children = [child for worker in workers for child in descendants(worker)]
    if not children:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(random.Random(len(children)).choice(children), signal.SIGKILL)
        return True
    return False


def shared_memory() -> set[Path]:
    return set(Path("/dev/shm").iterdir())


def is_somebody_s(segment: Path) -> bool:
    """Whether the process that made a segment of Lava's still lives: it is another test's."""
    owner = re.match(r"psm_edged_(\d+)-", segment.name)
    return owner is not None and Path(f"/proc/{owner[1]}").exists()


def length_s(request: pytest.FixtureRequest) -> float:
    return SOAK_S if request.config.getoption("--soak") else SHORT_S


@pytest.mark.slow
@pytest.mark.timeout(SOAK_S + 600)
@pytest.mark.parametrize("engine", ["lava", "lava-sim"])
def test_engines_fail_at_random_and_no_frame_does(
    tmp_path: Path, broker: Broker, images: Images, request: pytest.FixtureRequest, engine: str
) -> None:
    lava, chance, memory = Interpreter(tmp_path / "lava", lava_python()), random.Random(SEED), shared_memory()
    pipeline = f'engines = ["{engine}", "onnxruntime"]\nstandby = true'
    tables = (
        f'[engines.lava]\npython = "{lava.path}"\ndeadline_s = {DEADLINE_S[engine]}\nload_deadline_s = 30\n'
        f"[engines.onnxruntime]\ndeadline_s = 0.5\n"
    )
    with (
        Device(tmp_path / "device", broker.port, pipeline=pipeline, tables=tables) as device,
        Ledger(broker.port) as ledger,
    ):
        device.start("daemon")
        device.start("sync")
        device.wait_ready(60)
        feeder, prober, faults = Feeder(device, images), Prober(device, images), []
        feeder.start()
        prober.start()
        wait_until(lambda: engine in serving(device), 150, device.log("daemon"))
        end = time.monotonic() + length_s(request)
        while time.monotonic() < end:
            time.sleep(chance.uniform(0.5, 3.0))
            moment = time.monotonic()
            child = engine == "lava-sim" and chance.random() < 0.5
            done = "a child" * kill_a_child(device) if child else harm(device, lava, chance)
            if done:
                faults.append((done, moment))
            if HEALS[engine] and chance.random() < HEALS[engine]:
                lava.heal()
                _await_serving(device, engine, PATIENCE * length_s(request))
        lava.heal()
        time.sleep(2)
        feeder.done.set()
        prober.done.set()
        feeder.join()
        prober.join(ANSWER_S)
        assert not prober.is_alive()
        expected = set(feeder.fed)
        wait_until(lambda: not device.spooled() and expected <= set(ledger.rows), 90, device.log("daemon"))
        recovered = sorted(s for s in (prober.recovered_s(moment) for _, moment in faults) if s is not None)
        used = Counter(row.engine for rows in ledger.rows.values() for row in rows)
        print(
            f"\n{engine}: {len(faults)} faults {dict(Counter(what for what, _ in faults))}; {len(feeder.fed)} by "
            f"spool and {len(prober.answers)} by HTTP; by engine {dict(used)}; answered after a fault within p50 "
            f"{statistics.median(recovered):.2f} s, p99 {recovered[int(0.99 * (len(recovered) - 1))]:.2f} s"
        )
        assert len(faults) > 5
        assert set(used) == {engine, "onnxruntime"}
        assert prober.failed == []
        assert ledger.account.complete
        assert ledger.doubled() == []
        assert {row.kind for rows in ledger.rows.values() for row in rows} == {"result"}
        decisions = device.status()["pipelines"][0]["decisions"]
        assert {one["act"] for one in decisions} >= {"try", "serve"}
        daemon = device.pid("daemon")
        assert daemon is not None
        family = descendants(daemon)
    wait_until(lambda: not [pid for pid in family if Path(f"/proc/{pid}").exists()], 10, lambda: str(family))
    assert {path for path in shared_memory() - memory if not is_somebody_s(path)} == set()
