"""Where third-party data lie: in the folder that ``EDGED_DATA`` names. They are no part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[1]
_BESIDE = "../shared/data"  # where nothing is named


def is_named() -> bool:
    """Whether somebody says that the data are there."""
    return "EDGED_DATA" in os.environ


def folder(name: str = "") -> Path:
    """The folder of all data, or what ``name`` is in it; it need not exist."""
    return _REPOSITORY / os.environ.get("EDGED_DATA", _BESIDE) / name
