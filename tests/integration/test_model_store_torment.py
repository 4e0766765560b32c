"""kill -9 of the daemon at random moments of updates under load: a model can always run, and no frame is lost.

A person's commands go on all the while, through the daemon or past its corpse. After every kill the disk is looked at
before anybody tidies it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.bundle.store.states import State
from edged.bundle.store.store import read_store
from tests.support.device import wait_until
from tests.support.installed import Unit, half_installed, left_behind, models_of_results, under_load
from tests.support.releases import release
from tests.support.store import make_key

KILLS = 24
RELEASES = 8
SHORT = "[models]\ntrial_results = 5\ntrial_s = 2\n"
SEED = int(os.environ.get("EDGED_SEED", "7"))


class Person(threading.Thread):
    """Gives one command after the other, whatever becomes of it."""

    def __init__(self, unit: Unit, releases: list[Path], rng: random.Random) -> None:
        super().__init__(daemon=True)
        self.unit, self.releases, self.rng = unit, releases, rng
        self.outcomes: Counter[str] = Counter()
        self.complaints: list[str] = []
        self.done = threading.Event()

    def run(self) -> None:
        """Until told to stop; a command that dies of it is a defect."""
        while not self.done.is_set():
            command = self._command()
            done = self.unit.model(*command)
            self.outcomes[f"{command[0]} {'done' if done.returncode == 0 else 'refused'}"] += 1
            if done.returncode not in (0, 1) or "Traceback" in done.stderr:
                self.complaints.append(f"{command}: {done.stderr}")
            self.done.wait(self.rng.uniform(0, 0.3))

    def _command(self) -> list[str]:
        install = ["install", str(self.rng.choice(self.releases)), "--trial"]
        others = [["commit", "digits"], ["commit", "digits"], ["rollback", "digits"], ["trial", "digits"]]
        old = [slot for record in read_store(self.unit.state / "models")[0] for slot in record.slots]
        spare = [slot.digest for slot in old if slot.state not in (State.ACTIVE, State.TRIAL)]
        removal = [["remove", "digits", "--digest", self.rng.choice(spare)]] * 2 if spare else []
        return self.rng.choice([install, install, install, *others, *removal])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_at_random_moments_of_updates_under_load_lose_no_model_and_no_frame(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    key = make_key(tmp_path / "keys")
    # one release counter for all, so that any may follow any
    releases = [release(tmp_path / "releases", key, 1, version=f"1.0.{k}").path for k in range(1, RELEASES + 1)]
    with Unit(tmp_path / "device", key, SHORT) as unit:
        unit.start("daemon")
        unit.activate(releases[0])
        with under_load(unit):
            person = Person(unit, releases, rng)
            person.start()
            states = torment(unit, rng)
            person.done.set()
            person.join()
            wait_until(lambda: unit.runs() != "", 60, unit.log("daemon"))
        assert person.complaints == []
        print(f"seed {SEED}: {KILLS} kills, states {dict(states)}, commands {dict(person.outcomes)}")
        assert {"active", "trial", "rolled-back"} <= set(states), states
        assert half_installed(unit) == ""
        results = models_of_results(unit)  # exactly one result for every frame that was fed
        assert len(results) > 2, results
        assert unit.stop("daemon") == 0
        assert left_behind(unit) == set()


def torment(unit: Unit, rng: random.Random) -> Counter[str]:
    """Kill the daemon again and again: as it starts, while it runs, in a trial. Returns the states that kills met."""
    states: Counter[str] = Counter()
    for kill in range(KILLS):
        if kill % 3:
            wait_until(lambda: unit.runs() != "", 60, unit.log("daemon"))
        if kill % 3 == 2:
            wait_until(lambda: "trial" in states_of(unit), 60, unit.log("daemon"))
        time.sleep(rng.uniform(0, 3))
        assert unit.kill("daemon"), unit.log("daemon")()
        wait_until(lambda: unit.pid("daemon") is None, 5)
        with nobody_writes(unit):
            assert half_installed(unit) == "", kill
            states.update(states_of(unit))
        unit.revive()
    return states


def states_of(unit: Unit) -> list[str]:
    """The states of all slots on the disk."""
    return [slot.state.value for record in read_store(unit.state / "models")[0] for slot in record.slots]


@contextlib.contextmanager
def nobody_writes(unit: Unit) -> Iterator[None]:
    """Hold the store's lock, for which commands wait."""
    fd = os.open(unit.state / "models" / "lock", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def test_what_is_half_installed_or_left_behind_would_be_found(tmp_path: Path) -> None:
    """The control: what the test above looks for is seen when it is there."""
    key = make_key(tmp_path / "keys")
    unit = Unit(tmp_path / "device", key)
    unit.do("install", str(release(tmp_path, key, 1).path))
    assert left_behind(unit) == set()
    assert half_installed(unit) == "nothing is active"
    (record,) = read_store(unit.state / "models")[0]
    folder = unit.state / "models" / "digits" / record.slots[0].digest
    (folder / "golden.npz").write_bytes(b"half")
    assert "staged 1.0.1 is not whole" in half_installed(unit)
    (unit.state / "models" / ".arriving-1").mkdir()
    (unit.state / "sync" / "incoming" / ".command-1.tar").write_bytes(b"")
    assert left_behind(unit) == {".arriving-1", ".command-1.tar"}
