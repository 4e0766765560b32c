"""A whole device whose pipeline names the installed model ``digits``: its commands, its load, and what it holds."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edged.bundle.loaded import open_bundle
from edged.bundle.store import files
from edged.bundle.store.states import WITH_FILES, State
from edged.bundle.store.store import read_store
from edged.errors import BundleError
from models.digits.data import held_out
from tests.support.device import ROOT, Device, wait_until
from tests.support.store import Key

QUICK = "[models]\ntrial_results = 5\ntrial_s = 0.5\n"
ENDLESS = "[models]\ntrial_results = 5\ntrial_s = 3600\n"


class Unit(Device):
    """A device whose pipeline names the installed model ``digits``."""

    def __init__(self, directory: Path, key: Key, models: str = QUICK) -> None:
        super().__init__(directory, 1883, bundle=Path("digits"), buffer=models)
        self.fed = 0
        trust = self.state / "trust"
        trust.mkdir(parents=True)
        (trust / "release.pem").write_bytes(key.public_file.read_bytes())

    def model(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edged", "model", *arguments, "--config", str(self.config)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    def do(self, *arguments: str) -> str:
        done = self.model(*arguments)
        assert done.returncode == 0, done.stderr + (self.log("daemon")() if self.starts else "")
        return done.stdout

    def slots(self) -> dict[int, str]:
        """State by release counter."""
        listed = json.loads(self.do("list", "--json"))["models"]
        return {slot["release_counter"]: slot["state"] for slot in listed}

    def records(self) -> dict[int, str]:
        """The same, straight from the disk."""
        return {s.release_counter: s.state.value for r in read_store(self.state / "models")[0] for s in r.slots}

    def runs(self) -> str:
        """The model that the pipeline runs, when it runs."""
        status = self.status()
        if status.get("pid") != self.pid("daemon") or status.get("state") not in ("ready", "degraded"):
            return ""
        return str(status["pipelines"][0]["model"]) if status["pipelines"][0]["engine"] else ""

    def wait_for(self, model: str, **records: str) -> None:
        expected = {int(name[1:]): state.replace("_", "-") for name, state in records.items()}
        wait_until(
            lambda: self.runs() == model and (not expected or self.records() == expected),
            40,
            lambda: f"{self.runs()} {self.records()}\n{self.log('daemon')()}",
        )

    def activate(self, path: Path) -> None:
        """Install and commit a release."""
        self.do("install", str(path), "--trial")
        counter = int(path.name.rpartition("-")[2])
        with under_load(self):
            wait_until(lambda: self.records().get(counter) == "active", 40, self.log("daemon"))

    def feed(self, count: int) -> None:
        images = held_out()[0]
        for _ in range(count):
            self.fed += 1
            self.put(f"{self.fed:06d}.npy", images[self.fed % len(images)])


def rows_of(unit: Unit) -> list[dict[str, Any]]:
    """Every row of the buffer."""
    command = [sys.executable, "-m", "edged", "results", "--json", "--limit", "100000", "--config", str(unit.config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def models_of_results(unit: Unit) -> Counter[str]:
    """How many results each model gave, when every frame that was fed ended in exactly one."""
    wait_until(lambda: not unit.spooled(), 30, unit.log("daemon"))
    rows = rows_of(unit)
    assert Counter(row["kind"] for row in rows) == {"result": unit.fed}
    assert len({row["key"].partition("#")[0] for row in rows}) == unit.fed
    return Counter(str(row["model"]) for row in rows)


def half_installed(unit: Unit) -> str:
    """What is wrong with the store on the disk while nobody writes it; empty when a model can run and all is whole.

    What a cut left behind and the next start clears is nothing wrong; a record that names what is not whole is.
    """
    records, problems = read_store(unit.state / "models")
    if problems or len(records) != 1:
        return f"records {records}, problems {problems}"
    record = records[0]
    for slot in record.slots:
        path = unit.state / "models" / record.name / slot.digest
        try:
            if slot.state in WITH_FILES and open_bundle(path).digest != slot.digest:
                return f"{path} holds another bundle"
        except BundleError as error:
            return f"{slot.state.value} {slot.version} is not whole: {error}"
    return "" if record.of(State.ACTIVE) is not None else "nothing is active"


def left_behind(unit: Unit) -> set[str]:
    """What lies in the store and in ``incoming`` though no record names it."""
    models = unit.state / "models"
    (record,) = read_store(models)[0]
    named = {"lock", files.SPARE, record.name, files.STATE, files.COPY, *record.digests()}
    found = {path.name for folder in (models, models / record.name) for path in folder.iterdir()}
    incoming = unit.state / "sync" / "incoming"
    return (found | {path.name for path in incoming.iterdir()}) - named


class Load(threading.Thread):
    """Feeds the device until told to stop."""

    def __init__(self, unit: Unit) -> None:
        super().__init__(daemon=True)
        self.unit = unit
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.01):
            if len(self.unit.spooled()) < 20:
                self.unit.feed(1)


@contextlib.contextmanager
def under_load(unit: Unit) -> Iterator[None]:
    load = Load(unit)
    load.start()
    try:
        yield
    finally:
        load.done.set()
        load.join()
