"""Third-party recordings and models in the folder that ``EDGED_DATA`` names: looked for, never committed."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.parts import missing
from tests.support.tree import ROOT


def data(name: str) -> Path:
    """A folder or file of the data folder; a test that asks for one that is not there is skipped, in CI it fails."""
    path = ROOT / os.environ.get("EDGED_DATA", "../shared/data") / name
    if not path.exists():
        missing(f"data {name}", "EDGED_DATA names the folder")
    return path


def labels(folder: Path) -> dict[str, str]:
    """The label of each recording of a folder by its number, in the order of ``labels.txt``."""
    words = (folder / "labels.txt").read_text(encoding="ascii").split()
    return dict(zip(words[::2], words[1::2], strict=True))
