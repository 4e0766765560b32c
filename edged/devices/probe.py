"""Whether a device can be used: its node is there, we may open it, and it answers. Blocks: call it in a thread.

Opens no node (a serial port would reset what is behind it) and changes nothing.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from edged.devices import usb
from edged.devices.table import Sighting


@dataclass(frozen=True, slots=True)
class Verdict:
    """``problem``: why it cannot be used, with what to do; ``note``: worth knowing though it can."""

    problem: str = ""
    note: str = ""


def probe(sighting: Sighting) -> Verdict:
    """Look at a device and ask it."""
    problem = _access(sighting)
    if problem:
        return Verdict(problem)
    notes = [sighting.quirk] if sighting.quirk else []
    if sighting.bus:
        answer = usb.ask(sighting.bus, sighting.address)
        if answer.problem:
            return Verdict(answer.problem)
        notes += [answer.note] if answer.note else []
    if not sighting.ruled:
        notes.append("60-edged.rules was not in effect when it came (sudo udevadm trigger)")
    return Verdict(note="; ".join(notes))


def _access(sighting: Sighting) -> str:
    """Why we may not open its node; empty if we may, or it has none."""
    if not sighting.node:
        return ""
    node = Path(sighting.node)
    if not node.exists():
        return f"its node {node} is not there"
    if os.access(node, os.R_OK | os.W_OK):
        return ""
    if not sighting.ruled:
        hint = "60-edged.rules is not in effect: install it, then sudo udevadm trigger (docs/devices.md)"
        return f"permission denied for {node}; {hint}"
    return f"permission denied for {node}; it is for {_owner(node)}, and {_user()} is not in it (docs/devices.md)"


def _owner(node: Path) -> str:
    held = node.stat()
    try:
        group = grp.getgrgid(held.st_gid).gr_name
    except KeyError:
        group = str(held.st_gid)
    return f"group {group}, mode {stat.S_IMODE(held.st_mode):04o}"


def _user() -> str:
    try:
        return f"user {pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:
        return f"user {os.getuid()}"
