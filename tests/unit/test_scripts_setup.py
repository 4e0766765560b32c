"""The set-up of a fresh machine: what it does when something is missing, and that it does nothing the second time."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.parts import missing, own_network, require

ROOT = Path(__file__).resolve().parents[2]
SECOND_RUN_S = 1.0


def bash(script: str, path: str | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a few lines of bash that have sourced the library."""
    environment = dict(os.environ) if path is None else {**os.environ, "PATH": path}
    command = ["/bin/bash", "-c", f"set -euo pipefail; . scripts/lib.sh; {script}"]
    return subprocess.run(command, cwd=cwd, env=environment, check=False, capture_output=True, text=True)


def fake(folder: Path, name: str, body: str) -> None:
    file = folder / name
    file.unlink(missing_ok=True)  # it may be a link to the machine's own
    file.write_text(f"#!/bin/bash\n{body}\n")
    file.chmod(0o755)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A PATH with the shell's own tools and nothing to install with."""
    for name in ("bash", "id", "sed", "cat", "sha256sum", "tail", "dirname", "rm", "uname"):
        tool = shutil.which(name)
        assert tool is not None
        (tmp_path / name).symlink_to(tool)
    return tmp_path


def test_without_a_python_it_says_which_and_how(bare: Path) -> None:
    fake(bare, "python3", "exit 1")
    done = bash("find_python", str(bare))
    assert done.returncode == 1
    assert "no Python from 3.11 to 3.14" in done.stderr
    assert "apt install python3.11" in done.stderr


def test_a_python_that_is_too_old_is_passed_over(bare: Path) -> None:
    fake(bare, "python3.13", "exit 1")
    fake(bare, "python3.12", "exit 0")
    done = bash('find_python; echo "$PYTHON"', str(bare))
    assert done.stdout.strip() == str(bare / "python3.12"), done.stderr


def test_a_missing_program_is_named_where_nothing_can_install_it(bare: Path) -> None:
    done = bash("need_programs surely-a-package:surely-no-program", str(bare))
    assert done.returncode == 1
    assert "surely-a-package" in done.stderr
    assert "sudo" in done.stderr


def test_what_only_some_tests_use_is_passed_over_by_name(bare: Path) -> None:
    done = bash("want_programs surely-a-package:surely-no-program; echo goes on", str(bare))
    assert done.stdout == "goes on\n"
    assert "going on without: surely-a-package" in done.stderr


def test_a_user_with_sudo_installs_through_it_and_no_service_starts(bare: Path) -> None:
    log = bare / "log"
    for name in ("sudo", "apt-get"):
        fake(bare, name, f'echo "{name} $*" >>{log}')
    fake(bare, "id", "echo 1000")
    done = bash("need_programs surely-a-package:surely-no-program", str(bare))
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    assert all(call.startswith("sudo ") for call in calls), calls
    install = next(i for i, call in enumerate(calls) if "install" in call and "surely-a-package" in call)
    if not Path("/usr/sbin/policy-rc.d").exists():
        assert "exit 101" in " ".join(calls[:install]).replace("\\n", " ")
        assert "rm -f /usr/sbin/policy-rc.d" in calls[install + 1]


def test_an_environment_for_the_tests_is_good_enough_for_the_demo_but_not_the_reverse(tmp_path: Path) -> None:
    for name in ("scripts", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    fake(tmp_path / ".venv/bin", "python", "exit 0")

    def stamp(made: str) -> None:
        (tmp_path / ".venv/.setup").write_text(bash(f'echo "{made} $(fingerprint {made})"', cwd=tmp_path).stdout)

    def is_set_up(*sets: str) -> bool:
        return bash(f"is_set_up {' '.join(sets)}", cwd=tmp_path).returncode == 0

    assert not is_set_up("demo", "test")
    stamp("test")
    assert is_set_up("test", "demo")
    stamp("demo")
    assert is_set_up("test", "demo")
    assert not is_set_up("test")
    with (tmp_path / "requirements/demo.txt").open("a") as lock:
        lock.write("# changed\n")
    assert not is_set_up("test", "demo")


def test_the_second_set_up_is_fast_and_needs_no_network() -> None:
    require("network namespaces", "mosquitto")
    if bash("is_set_up test demo").returncode != 0:
        missing("set-up environment", "this environment was not made by scripts/test")
    start = time.monotonic()
    command = [*(own_network() or []), "scripts/demo", "--setup-only"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - start < SECOND_RUN_S


def test_the_demo_explains_itself() -> None:
    done = subprocess.run(["scripts/demo", "--help"], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--seconds" in done.stdout
