"""``edged diag``: writes one bundle for support. Exit code 0 when it is written, whatever state the device is in."""

from __future__ import annotations

import argparse
import re
import time
import tomllib
from pathlib import Path
from typing import Any

from edged import config as settings
from edged.diag.bundle import known_secrets, write
from edged.diag.gather import Scene, gather
from edged.diag.redaction import Redactor
from edged.doctor.machine import Machine
from edged.errors import ConfigError


def run(arguments: argparse.Namespace, machine: Machine | None = None) -> int:
    """Gather, redact, write, and say what is in it."""
    path = arguments.config
    try:
        config = settings.load(path)
    except ConfigError:
        config = None
    device = config.device.id if config is not None else "device"
    name = f"edged-diag-{device}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz"
    out = arguments.out if arguments.out is not None else Path(name)
    redactor = Redactor(known_secrets(_table(path), path.resolve().parent))
    members = write(out, device, gather(Scene(path, config, machine or Machine())), redactor)
    cut = [member.name for member in members if member.cut_bytes]
    print(f"{out}: {len(members)} texts, {out.stat().st_size >> 10} KiB, without secrets")
    if cut:
        print(f"  of {', '.join(cut)} only the end")
    print("  look into it before you send it: tar -tzf", out)
    return 0


def _table(path: Path) -> dict[str, Any]:
    """The file as it stands, if it is a good configuration or not; of one that is no TOML, what looks so."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        found = re.findall(r"""([\w-]+)\s*=\s*["']([^"'\n]+)""", text)
        return {name: [value for known, value in found if known == name] for name, _ in found}
