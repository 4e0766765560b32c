"""Gathers what support asks for, each as one text under one name. Decides nothing about secrets: ``bundle`` redacts."""

from __future__ import annotations

import http.client
import importlib.metadata
import os
import platform
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edged import __version__
from edged.buffer.files import LEDGER
from edged.bundle.manifest import MANIFEST
from edged.bundle.store.store import read_store
from edged.config import Config
from edged.console.cli import ANSWER_S, Address, ask
from edged.doctor.cli import examined
from edged.doctor.hardware import look
from edged.doctor.machine import Machine, text_of
from edged.errors import EdgedError

UNITS = ("edged.service", "edged.socket", "edged-sync.service", "edged-worker-*", "edged-*")
JOURNAL_LINES, KERNEL_LINES = 5000, 1000
FILES_LISTED = 5000
Part = Callable[["Scene"], str]


@dataclass(frozen=True, slots=True)
class Scene:
    """The device. ``config`` is None when the file cannot be used; then what needs it is left out."""

    path: Path
    config: Config | None
    machine: Machine


def gather(scene: Scene) -> Iterator[tuple[str, str]]:
    """Name and text of everything, one after the other; what cannot be gathered says why."""
    for name, part in PARTS.items():
        try:
            yield name, part(scene)
        except (OSError, EdgedError, sqlite3.Error, http.client.HTTPException, msgspec.MsgspecError) as error:
            yield name, f"cannot be gathered: {error}\n"


def _configuration(scene: Scene) -> str:
    return scene.path.read_text(encoding="utf-8", errors="replace")


def _versions(scene: Scene) -> str:
    root = scene.machine.root
    packages = sorted(f"{one.name} {one.version}" for one in importlib.metadata.distributions())
    lines = [
        f"edged {__version__}, Python {sys.version.split()[0]} ({sys.executable}), SQLite {sqlite3.sqlite_version}",
        f"kernel {platform.release()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        f"board {text_of(root / 'proc/device-tree/model') or text_of(root / 'sys/class/dmi/id/product_name')}",
        text_of(root / "etc/os-release"), *packages,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _status(scene: Scene) -> str:
    report = ask(_config(scene).device.runtime_dir)
    said = msgspec.json.format(msgspec.json.encode(report.status), indent=1).decode()
    return f"{report.silence or 'the daemon answers'}\n{said}\n"


def _doctor(scene: Scene) -> str:
    return msgspec.json.format(
        msgspec.json.encode(examined(scene.path, thorough=False, machine=scene.machine)), indent=1
    ).decode()


def _metrics(scene: Scene) -> str:
    address = msgspec.json.decode((_config(scene).device.runtime_dir / "http.json").read_bytes(), type=Address)
    connection = http.client.HTTPConnection(address.host, address.port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/metrics", headers={"Connection": "close"})
        return connection.getresponse().read().decode("utf-8", "replace")
    finally:
        connection.close()


def _devices(scene: Scene) -> str:
    facts, discovery, lacking = look(_config(scene), ask(_config(scene).device.runtime_dir))
    table = {"discovery": discovery, "lacking": lacking, "devices": facts}
    usb = scene.machine.ask(["lsusb"]).said
    return f"{msgspec.json.format(msgspec.json.encode(table), indent=1).decode()}\n{usb}\n"


def _workers(scene: Scene) -> str:
    status = ask(_config(scene).device.runtime_dir).status
    engines = status.engines if status is not None else ()
    said = [f"{one.name} {one.model}: {one.state}, {one.restarts} restarts\n{one.reason}\n" for one in engines]
    journal = scene.machine.ask(_journal("-n", str(JOURNAL_LINES // 10), "-u", "edged-worker-*")).said
    return "\n".join([*said, journal])


def _models(scene: Scene) -> str:
    config = _config(scene)
    records, problems = read_store(config.device.models_dir)
    parts = [msgspec.json.format(msgspec.json.encode({"records": records, "problems": problems}), indent=1).decode()]
    folders = [one.bundle_dir for one in config.pipeline if one.bundle_dir is not None]
    folders += sorted(path.parent for path in config.device.models_dir.glob(f"*/*/{MANIFEST}"))
    parts += [f"# {folder}\n{text_of(folder / MANIFEST)}" for folder in folders]
    return "\n".join(parts) + "\n"


def _buffer(scene: Scene) -> str:
    device = _config(scene).device
    names = (device.buffer_dir / LEDGER, device.sync_dir / "ack.json", device.sync_dir / "status.json")
    return "\n".join(f"# {path}\n{text_of(path) or 'absent'}" for path in names) + "\n"


def _files(scene: Scene) -> str:
    """What lies in the state, with owner and mode; no content."""
    lines: list[str] = []
    for folder, folders, names in os.walk(_config(scene).device.state_dir):
        folders.sort()
        for name in (".", *sorted(names)):
            if len(lines) >= FILES_LISTED:
                return "\n".join([*lines, "… and more"])
            path = Path(folder, name)
            found = path.lstat()
            lines.append(f"{stat.filemode(found.st_mode)} {found.st_uid}:{found.st_gid} {found.st_size:>12} {path}")
    return "\n".join(lines) + "\n"


def _system(scene: Scene) -> str:
    names = ("proc/meminfo", "proc/loadavg", "proc/self/mountinfo", "proc/pressure/memory", "proc/pressure/io",
             "proc/uptime")  # fmt: skip
    return "\n".join(f"# /{name}\n{text_of(scene.machine.root / name)}" for name in names) + "\n"


def _units(scene: Scene) -> str:
    status = scene.machine.ask(["systemctl", "status", "--no-pager", "--full", "--lines=20", *UNITS]).said
    return f"{status}\n{scene.machine.ask(['systemctl', 'cat', '--no-pager', *UNITS[:3]]).said}\n"


def _logs(scene: Scene) -> str:
    wanted = [word for unit in UNITS for word in ("-u", unit)]
    return scene.machine.ask(_journal("-n", str(JOURNAL_LINES), *wanted)).said


def _kernel(scene: Scene) -> str:
    return scene.machine.ask(_journal("-k", "-n", str(KERNEL_LINES))).said


def _journal(*more: str) -> list[str]:
    return ["journalctl", "--no-pager", "--output=short-iso", *more]


def _config(scene: Scene) -> Config:
    if scene.config is None:
        raise EdgedError("the configuration cannot be used")
    return scene.config


PARTS: dict[str, Part] = {
    "edged.toml": _configuration,
    "versions.txt": _versions,
    "status.json": _status,
    "doctor.json": _doctor,
    "metrics.txt": _metrics,
    "devices.txt": _devices,
    "workers.txt": _workers,
    "models.json": _models,
    "buffer.txt": _buffer,
    "files.txt": _files,
    "system.txt": _system,
    "units.txt": _units,
    "journal.txt": _logs,
    "kernel.txt": _kernel,
}
