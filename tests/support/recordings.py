"""Third-party recordings and models in the folder that ``EDGED_DATA`` names: looked for, never committed."""

from __future__ import annotations

from pathlib import Path

from models import thirdparty
from tests.support.parts import missing, optional


def data(name: str) -> Path:
    """A folder or file of the data folder. Where it is not there the test is skipped, or fails if it was promised."""
    path = thirdparty.folder(name)
    if not path.exists():
        lacking = missing if thirdparty.is_named() else optional
        lacking(f"data {name}", "EDGED_DATA names the folder")
    return path


def labels(folder: Path) -> dict[str, str]:
    """The label of each recording of a folder by its number, in the order of ``labels.txt``."""
    words = (folder / "labels.txt").read_text(encoding="ascii").split()
    return dict(zip(words[::2], words[1::2], strict=True))
