"""Power cuts of a device under load: what the host was told before, compared with what is there after.

A machine boots, its service starts with it, frames lie in its spool, releases of its model are installed; the host
hears of every stored row, and cuts the power at a random moment. Judges nothing: tests look at the ``Campaign``.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edged.bundle.archive import pack
from models.digits.data import held_out
from tests.support.releases import release
from tests.support.store import make_key
from tests.vm.conftest import Machines
from tests.vm.machine import PYTHON, Guest, GuestFailed, Job
from tests.vm.service import SPOOL, Service

CONFIG = f"""
[device]
id = "guest"
state_dir = "/var/lib/edged"
runtime_dir = "/run/edged"

[models]
trial_results = 5
trial_s = 1

[engines.onnxruntime]
deadline_s = 60
load_deadline_s = 300

[[pipeline]]
name = "digits"
model = "digits"

[[pipeline.source]]
type = "spool"
name = "spool"
path = "{SPOOL}"
"""
CARELESS = """
mkdir -p /etc/systemd/system/edged.service.d
cat >/etc/systemd/system/edged.service.d/careless.conf <<'END'
[Service]
Environment=PYTHONPATH=/srv/tree
ExecStart=
ExecStart=/opt/edged/bin/python -m tests.vm.guest.careless run --config /etc/edged/edged.toml
END
"""
Rows = dict[tuple[str, str, int], tuple[str, str, str]]  # (epoch, stream, seq) → key, kind, digest of the body
FRAMES = 50  # different ones; the spool has COUNT files after each boot
COUNT = 300  # more than an emulated device takes before its power goes
LOAD_S = (1.0, 5.0)  # between the first row and the cut
TELLS_S = 900.0  # and its first row needs a model that proved itself, emulated on busy cores


@dataclass
class Campaign:
    """What was seen of one disk."""

    told: Rows = field(default_factory=dict)
    fed: int = 0  # files that were put into the spool
    integrity: list[str] = field(default_factory=list)  # of every segment, after every boot
    quarantined: list[str] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)  # told rows that were not there, after each cut
    models: list[str] = field(default_factory=list)  # states of the releases, in the end
    account: dict[str, int] = field(default_factory=dict)  # of the spool, in the end
    rows: list[dict[str, Any]] = field(default_factory=list)  # and the whole store
    seconds: float = 0.0


def make_releases(folder: Path, count: int) -> Path:
    """A folder for the guest: packed releases of the digits, the key that signed them, and frames."""
    key = make_key(folder / "key")
    given = folder / "given"
    (given / "frames").mkdir(parents=True)
    (given / "release.pem").write_bytes(key.public_file.read_bytes())
    for counter in range(1, count + 1):
        pack(release(folder, key, counter).path, given / f"digits-{counter}.tar")
    for number, image in enumerate(held_out()[0][:FRAMES]):
        np.save(given / "frames" / f"{number:02d}.npy", image)
    return given


def campaign(machines: Machines, given: Path, cuts: int, seed: int, *, careless: bool = False) -> Campaign:
    """Boot a new disk and cut its power, again and again; look at it once more in the end."""
    started = time.monotonic()
    chance = random.Random(seed)
    seen = Campaign()
    disk = machines.disk()
    for boot in range(cuts + 1):
        with machines.boot(disk, processors=1) as guest:
            service = Service(guest)
            if boot == 0:
                _prepare(guest, service, given, careless=careless)
            service.wait_up()
            job = guest.start(*_load(boot, COUNT if boot < cuts else 0))
            _compare(seen, _told(job), after_cut=boot > 0)
            seen.fed += _told(job)
            if boot < cuts:
                install = f"digits-{boot + 1}.tar" if boot % 2 and not careless else ""
                _work_and_cut(seen, guest, service, job, chance.uniform(*LOAD_S), install)
            elif not careless:
                _settle(seen, guest, service)
    seen.seconds = time.monotonic() - started
    return seen


def _work_and_cut(seen: Campaign, guest: Guest, service: Service, job: Job, for_s: float, install: str) -> None:
    """Hear rows for a while after the first one, with a release on its way if one is named; then the power goes."""
    _note(seen.told, _told(job))
    service.wait(lambda: _slot(service) == "active")  # at once, but for the first boot: its release is on trial
    if install:
        guest.start("edged", "model", "install", f"/srv/given/{install}", "--trial")
    _hear(seen, job.heard(for_s))
    guest.cut_power()
    _hear(seen, job.heard(0.0))  # what was told before


def _prepare(guest: Guest, service: Service, given: Path, *, careless: bool) -> None:
    service.configure(CONFIG)
    guest.copy(given, "/srv/given")
    guest.shell("install -m 644 /srv/given/release.pem /var/lib/edged/trust/")
    guest.shell("find /var/lib/edged/buffer -mindepth 1 -delete")  # of the first configuration, under another name
    if careless:
        guest.shell(CARELESS)
    guest.shell("systemctl daemon-reload; systemctl start --no-block edged.service")
    service.wait_up()
    guest.run("edged", "model", "install", "/srv/given/digits-1.tar", "--trial")
    guest.run("sync")


def _load(boot: int, count: int) -> list[str]:
    arguments = ("/var/lib/edged/buffer", SPOOL, "/srv/given/frames", f"b{boot}", str(count))
    return ["runuser", "-u", "edged", "-g", "edged", "--", *PYTHON, "tests.vm.guest.load", *arguments]


def _told(job: Job) -> Any:
    """What the guest tells next."""
    for line in job.heard(TELLS_S):
        return json.loads(line)
    raise GuestFailed(f"the guest says nothing: {job.wait(1.0).err}")


def _slot(service: Service) -> str:
    """Of the model that runs."""
    return "".join(model["slot"] for model in service.status().get("models", ()))


def _hear(seen: Campaign, lines: Iterable[str]) -> None:
    for line in lines:
        _note(seen.told, json.loads(line))


def _note(rows: Rows, row: list[Any]) -> None:
    epoch, stream, seq, key, kind, digest = row
    rows[epoch, stream, seq] = (key, kind, digest)


def _compare(seen: Campaign, audit: dict[str, Any], *, after_cut: bool) -> None:
    seen.integrity += audit["integrity"]
    seen.quarantined += audit["quarantine"]
    stored: Rows = {}
    for row in audit["rows"]:
        _note(stored, row)
    if after_cut:
        seen.lost.append(len(seen.told.items() - stored.items()))


def _settle(seen: Campaign, guest: Guest, service: Service) -> None:
    """Let the daemon end what is in the spool, then look at everything."""
    listed = json.loads(guest.run("edged", "model", "list", "--json"))["models"]
    seen.models = sorted(slot["state"] for slot in listed)
    service.wait(lambda: int(guest.shell(f"find {SPOOL} -maxdepth 1 -name '*.npy' | wc -l")) == 0)
    service.wait(lambda: service.status().get("state") == "ready" and service.account("spool")["received"] >= seen.fed)
    seen.account = service.account("spool")
    seen.rows = service.results()
