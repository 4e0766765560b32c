"""Power cuts of a device under load: what the host was told before, compared with what is there after.

A machine boots, its service starts with it, frames lie in its spool, releases of its model are installed; the host
hears of every stored row, and cuts the power at a random moment: what was not flushed is gone, in the guest's kernel
and in QEMU. Some cuts end the machine, which then has to go on from its own disk. Before each of those it is frozen a
few times and its disk copied, byte by byte what a cut in that moment leaves. All those disks go into one more machine,
whose kernel replays their journals (``look``). Judges nothing: tests look at the ``Campaign`` and its cuts.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import time
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
# The kernel flushes nothing that nobody asked it to: what reaches the disk is then no chance, and the control loses.
NOT_BY_ITSELF = "echo 0 >/proc/sys/vm/dirty_writeback_centisecs; mount -o remount,commit=3600 /"
Rows = dict[tuple[str, str, int], tuple[str, str, str]]  # (epoch, stream, seq) → key, kind, digest of the body
FRAMES = 50  # different ones; the spool has COUNT files after each boot
COUNT = 1000  # more than an emulated device takes before its power goes
TRIED = 10  # before the load, for the trial of the first release
MORE_ROWS = (5, 80)  # between the first row or a cut and the next cut
TELLS_S = 900.0  # the first row needs a worker that proved the model, emulated on busy cores
AT_ONCE_S = 0.2  # for what the machine had told before it was frozen


@dataclass(frozen=True)
class Cut:
    """One moment without power: the disk as it was then, and what the host had been told."""

    disk: Path
    told: Rows
    fed: int


@dataclass(frozen=True)
class Found:
    """What is on such a disk."""

    integrity: list[str]  # of every segment
    quarantined: list[str]
    lost: int  # told rows that are not there
    rows: int


@dataclass
class Campaign:
    """What was seen of one device."""

    disk: Path
    told: Rows = field(default_factory=dict)
    fed: int = 0  # files that were put into the spool
    boots: int = 0
    cuts: list[Cut] = field(default_factory=list)
    after: list[Found] = field(default_factory=list)  # by the device itself, after each boot that followed a cut
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


def campaign(machines: Machines, given: Path, cuts: tuple[int, ...], seed: int, *, careless: bool = False) -> Campaign:
    """Boot a new disk and cut its power, so many times in each boot; the last cut of a boot ends the machine."""
    started = time.monotonic()
    chance = random.Random(seed)
    seen = Campaign(machines.disk())
    for count in cuts:
        with _booted(machines, seen) as guest:
            if seen.boots == 1:
                _prepare(guest, seen, given, careless=careless)
            job = _load(guest, seen, COUNT)
            _hear(seen, job, 1)
            if seen.boots > 1:
                guest.start("edged", "model", "install", f"/srv/given/digits-{seen.boots}.tar", "--trial")
            for cut in range(count):
                _hear(seen, job, chance.randint(*MORE_ROWS))
                _cut(seen, guest, job, last=cut == count - 1)
    seen.seconds += time.monotonic() - started
    return seen


def settle(machines: Machines, seen: Campaign) -> None:
    """Boot the device once more, let its daemon end what is in the spool, then look at everything."""
    started = time.monotonic()
    with _booted(machines, seen) as guest:
        service = Service(guest)
        _load(guest, seen, 0)
        service.wait(lambda: int(guest.shell(f"find {SPOOL} -maxdepth 1 -name '*.npy' | wc -l")) == 0)
        service.wait(
            lambda: service.status().get("state") == "ready" and service.account("spool")["received"] >= seen.fed
        )
        seen.account = service.account("spool")
        listed = json.loads(guest.run("edged", "model", "list", "--json"))["models"]
        seen.models = sorted(slot["state"] for slot in listed)
        seen.rows = service.results()
    seen.seconds += time.monotonic() - started


def look(machines: Machines, cuts: list[Cut]) -> list[Found]:
    """What is on the disks of these cuts, by a machine that they are put into."""
    found = []
    with machines.boot(machines.disk(), others=[cut.disk for cut in cuts]) as guest:
        guest.shell("systemctl stop --no-block edged.service; mkdir /mnt/cut")
        for letter, cut in zip("bcdefghijklmnopqrstuvwxyz", cuts, strict=False):
            guest.run("mount", f"/dev/vd{letter}", "/mnt/cut")
            audit = guest.run(*_as_edged("tests.vm.guest.load", "/mnt/cut/var/lib/edged/buffer"))
            found.append(_compared(cut.told, json.loads(audit)))
            guest.run("umount", "/mnt/cut")
        replayed = guest.shell("dmesg | grep -c 'EXT4-fs (vd[b-z]): recovery complete'")
        assert int(replayed) == len(cuts), "a disk was left as by a machine that was shut down"
    return found


def _booted(machines: Machines, seen: Campaign) -> Guest:
    seen.boots += 1
    return machines.boot(seen.disk)


def _prepare(guest: Guest, seen: Campaign, given: Path, *, careless: bool) -> None:
    """The first release, proved by its first frames."""
    service = Service(guest)
    service.configure(CONFIG)
    guest.copy(given, "/srv/given")
    guest.shell("install -m 644 /srv/given/release.pem /var/lib/edged/trust/")
    guest.shell("find /var/lib/edged/buffer -mindepth 1 -delete")  # of the first configuration, under another name
    if careless:
        guest.shell(CARELESS)
    guest.shell("systemctl daemon-reload; systemctl start --no-block edged.service")
    service.wait_up()
    guest.run("edged", "model", "install", "/srv/given/digits-1.tar", "--trial")
    guest.shell(
        f"for frame in $(ls /srv/given/frames | head -n {TRIED}); do\n"
        f"install -o edged -g edged /srv/given/frames/$frame {SPOOL}/.$frame; mv {SPOOL}/.$frame {SPOOL}/$frame; done"
    )
    seen.fed += TRIED
    service.wait(lambda: _slot(service) == "active")
    guest.run("sync")


def _load(guest: Guest, seen: Campaign, count: int) -> Job:
    """Look at what is stored, then fill the spool; the job tells of each row from now on."""
    guest.shell(NOT_BY_ITSELF)
    service = Service(guest)
    service.wait_up()
    arguments = ("/var/lib/edged/buffer", SPOOL, "/srv/given/frames", f"b{seen.boots}", str(count))
    job = guest.start(*_as_edged("tests.vm.guest.load", *arguments))
    audit = _said(job)
    if seen.boots > 1:
        seen.after.append(_compared(seen.told, audit))
    for row in audit["rows"]:
        _note(seen.told, row)
    seen.fed += _said(job)
    for row in _said(job):
        _note(seen.told, row)
    return job


def _as_edged(module: str, *arguments: str) -> list[str]:
    return ["runuser", "-u", "edged", "-g", "edged", "--", *PYTHON, module, *arguments]


def _cut(seen: Campaign, guest: Guest, job: Job, *, last: bool) -> None:
    kept = seen.disk.with_name(f"{seen.disk.stem}-cut-{len(seen.cuts) + 1}.qcow2")
    with contextlib.nullcontext() if last else guest.frozen():
        if last:
            guest.cut_power()
        for line in job.heard(AT_ONCE_S):
            _note(seen.told, json.loads(line))
        subprocess.run(["cp", "--sparse=always", str(seen.disk), str(kept)], check=True)
    seen.cuts.append(Cut(kept, dict(seen.told), seen.fed))


def _said(job: Job) -> Any:
    """What the guest tells next."""
    for line in job.heard(TELLS_S):
        return json.loads(line)
    raise GuestFailed(f"the guest says nothing: {job.wait(1.0).err}")


def _hear(seen: Campaign, job: Job, count: int) -> None:
    for _ in range(count):
        _note(seen.told, _said(job))


def _slot(service: Service) -> str:
    """Of the model that runs."""
    return "".join(model["slot"] for model in service.status().get("models", ()))


def _note(rows: Rows, row: list[Any]) -> None:
    epoch, stream, seq, key, kind, digest = row
    rows[epoch, stream, seq] = (key, kind, digest)


def _compared(told: Rows, audit: dict[str, Any]) -> Found:
    stored: Rows = {}
    for row in audit["rows"]:
        _note(stored, row)
    return Found(audit["integrity"], audit["quarantine"], len(told.items() - stored.items()), len(stored))
