"""Takes a backup beside a running daemon: buffer, models, trusted keys, cursors, and the configuration last."""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edged import __version__
from edged.backup.archive import CONFIGURATION, FORMAT, BackupError, Manifest, Writer, appear, scratch, total_bytes
from edged.buffer.files import sync_directory
from edged.buffer.snapshot import snapshot
from edged.bundle.store import files
from edged.config import Config, Device
from edged.settings import read_toml, strings_of

ATTEMPTS = 5  # a model that changes while it is copied is copied again; one on trial changes every few seconds at most
CURSORS = ("ack.json", "published.json")
SETTING_BYTES = 1 << 20  # of a file that the configuration names: keys, passwords, certificates
SUFFIX = ".tar.gz"
SCRATCH = ".edged-backup-"


class Changed(Exception):
    """A model changed while it was copied."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A backup that is there now. ``removed``: older ones that are beyond the number to keep."""

    path: Path
    manifest: Manifest
    size: int
    removed: tuple[Path, ...]

    @property
    def unpacked(self) -> int:
        """Bytes that it holds."""
        return total_bytes(self.manifest.members)


def take(config: Config, path: Path, folder: Path, keep: int) -> Taken:
    """Write a backup of the device into ``folder`` and remove the oldest beyond ``keep``. Raises EdgedError."""
    device = config.device
    earlier = backups(folder, device.id)
    number = _number(earlier[-1]) + 1 if earlier else 1  # not the clock: it may go back
    name = f"edged-{device.id}-{number:06d}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}{SUFFIX}"
    file, temporary = appear(folder, name)
    try:
        with file, scratch(_beside(device, folder), SCRATCH) as place:
            manifest = _fill(Writer(file), config, path, place)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(folder / name)
        sync_directory(folder)
    except OSError as error:
        raise BackupError(
            f"{error.filename or folder / name}: {error.strerror}", "is there room, and are you root?"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return Taken(folder / name, manifest, (folder / name).stat().st_size, _forget(folder, device.id, keep))


def backups(folder: Path, device: str) -> list[Path]:
    """The backups of a device in a folder, oldest first."""
    named = re.compile(rf"edged-{re.escape(device)}-(\d{{6,}})-\d{{8}}T\d{{6}}Z{re.escape(SUFFIX)}")
    return sorted((path for path in folder.glob("edged-*") if named.fullmatch(path.name)), key=_number)


def _number(path: Path) -> int:
    return int(path.name.removesuffix(SUFFIX).rsplit("-", 2)[1])


def _forget(folder: Path, device: str, keep: int) -> tuple[Path, ...]:
    old = backups(folder, device)[:-keep]
    for path in old:
        path.unlink()
    return tuple(old)


def _beside(device: Device, folder: Path) -> Path:
    """Where segments are read through to: beside the state where we may write, for then no byte is copied twice."""
    return device.state_dir if os.access(device.state_dir, os.W_OK) else folder


def _fill(writer: Writer, config: Config, path: Path, place: Path) -> Manifest:
    device = config.device
    for name, copy in snapshot(device.buffer_dir, place):
        writer.add(f"state/buffer/{name}", copy)
    for name in files.names(device.models_dir):
        _model(writer, device.models_dir / name, place)
    for key in sorted(device.trust_dir.glob("*.pem")):
        writer.add(f"state/trust/{key.name}", key, 0o640)
    for name in CURSORS:
        with suppress(FileNotFoundError):
            writer.add_bytes(f"state/sync/{name}", (device.sync_dir / name).read_bytes())
    left_out = _configuration(writer, path)
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    manifest = Manifest(format=FORMAT, device=device.id, version=__version__, made=made,
                        members=tuple(writer.members), left_out=left_out)  # fmt: skip
    writer.close(manifest)
    return manifest


def _model(writer: Writer, folder: Path, place: Path) -> None:
    """A model's record with the bundles that it names, all of one instant."""
    for _ in range(ATTEMPTS):
        copy = place / "model"
        try:
            _copy_model(folder, copy)
        except (Changed, FileNotFoundError):
            shutil.rmtree(copy, ignore_errors=True)
            continue
        for path in sorted(path for path in copy.rglob("*") if path.is_file()):
            writer.add(f"state/models/{folder.name}/{path.relative_to(copy)}", path, 0o640)
        shutil.rmtree(copy)
        return
    raise BackupError(f"the model {folder.name} changes faster than it is copied", "try again")


def _copy_model(folder: Path, copy: Path) -> None:
    copy.mkdir()
    name = files.STATE if (folder / files.STATE).exists() else files.COPY
    before = (folder / name).read_bytes()
    record = files.read_record(folder)
    for digest in sorted(record.digests()) if record is not None else ():
        shutil.copytree(folder / digest, copy / digest, copy_function=_link)
    if (folder / name).read_bytes() != before:
        raise Changed
    (copy / files.STATE).write_bytes(before)


def _link(source: str, target: str) -> None:
    """A bundle's files never change, so a second name is a copy, where the medium has such."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _configuration(writer: Writer, path: Path) -> tuple[str, ...]:
    """The file, and what it names beside itself (keys, passwords). Returns what it names elsewhere."""
    base = path.resolve().parent
    writer.add(CONFIGURATION, path, 0o640)
    left_out = []
    for named in sorted(set(_named(path, base))):
        if named.is_relative_to(base) and named.stat().st_size <= SETTING_BYTES:
            writer.add(f"config/{named.relative_to(base)}", named, stat.S_IMODE(named.stat().st_mode) & 0o660)
        else:
            left_out.append(str(named))
    return tuple(left_out)


def _named(path: Path, base: Path) -> Iterator[Path]:
    """The files that a configuration names."""
    for value in strings_of(read_toml(path)):
        with suppress(OSError, ValueError):
            named = (base / value).resolve()
            if named.is_file():
                yield named
