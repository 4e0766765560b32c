"""``across_sizes.json``: how networks of the same recipe name faults of a size that they never saw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = Path(__file__).parent / "across_sizes.json"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """``right`` of ``windows`` with a fault of ``size`` thousandths of an inch, by a network that saw the others."""

    size: int
    windows: int
    right: int


def read() -> list[HeldOut]:
    """The figures that ``train`` wrote, one for each size."""
    return [HeldOut(**row) for row in json.loads(FILE.read_bytes())]


def write(found: Sequence[HeldOut]) -> None:
    """Write the figures."""
    FILE.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")
