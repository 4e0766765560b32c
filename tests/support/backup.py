"""Backups of a planted device, and what tells whether anything below a directory changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edged import config
from edged.backup.take import take
from tests.support.doctor import Patient


def fingerprint(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in directory.rglob("*")
    }


def save(patient: Patient, folder: Path, keep: int = 7) -> Path:
    folder.mkdir(exist_ok=True)
    return take(config.load(patient.path), patient.path, folder, keep).path
