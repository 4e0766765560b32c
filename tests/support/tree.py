"""The files of the repository, for tests that read them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.parts import require

ROOT = Path(__file__).resolve().parents[2]


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository that match, new ones included, ignored ones not."""
    require("git")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(path for name in set(listed.split("\0")) if name and (path := ROOT / name).is_file())


def relative(path: Path) -> str:
    """The path as the repository's own messages write it."""
    return path.relative_to(ROOT).as_posix()
