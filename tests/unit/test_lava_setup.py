"""The set-up of Lava's own environment: only with Python 3.10, and never in the way of the tests that need none."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.tree import ROOT

TOOLS = ("bash", "cat", "dirname", "id", "sed", "sha256sum")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the set-up needs, and a PATH with the shell's own tools in it."""
    for name in ("scripts", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "path").mkdir()
    for name in TOOLS:
        tool = shutil.which(name)
        assert tool is not None
        (tmp_path / "path" / name).symlink_to(tool)
    return tmp_path


def lava(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": str(tree / "path")}
    command = ["/bin/bash", "scripts/lava", *arguments]
    return subprocess.run(command, cwd=tree, env=environment, check=False, capture_output=True, text=True)


def fake(tree: Path, name: str, body: str) -> None:
    (tree / "path" / name).write_text(f"#!/bin/bash\n{body}\n")
    (tree / "path" / name).chmod(0o755)


def test_without_python_3_10_it_says_so_and_goes_on_where_asked(tree: Path) -> None:
    fake(tree, "python3", "exit 1")  # another version
    done = lava(tree, "--if-possible")
    assert (done.returncode, done.stderr) == (0, "lava: going on without Lava: no Python 3.10 here\n")
    assert not (tree / ".venv-lava").exists()
    done = lava(tree)
    assert done.returncode == 1
    assert "no Python 3.10 here" in done.stderr
    assert "install python3.10" in done.stderr


def test_an_environment_that_fits_is_left_alone_and_one_that_does_not_is_made_again(tree: Path) -> None:
    fake(tree, "python3", "exit 1")
    made = tree / ".venv-lava"
    (made / "bin").mkdir(parents=True)
    (made / "bin" / "python").symlink_to("/bin/true")
    digest = hashlib.sha256((tree / "requirements/lava.txt").read_bytes()).hexdigest()
    (made / ".setup").write_text(f"{tree} {digest}  -\n")
    done = lava(tree)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with (tree / "requirements/lava.txt").open("a") as lock:
        lock.write("# changed\n")
    assert lava(tree).returncode == 1  # it would make it again, and has no Python for it
