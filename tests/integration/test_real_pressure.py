"""The real kernel: memory that stalls is measured and wakes us; a worker is replaced before the kernel kills it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edged.host.pressure import PressureReader
from edged.host.stalls import StallTriggers
from edged.pressure import Kind
from tests.support.cgroup import MemoryGroup
from tests.support.parts import require
from tests.support.tree import ROOT

FILE_MB = 64


def run(act: str, word: str, group: MemoryGroup | None) -> dict[str, Any]:
    """A process of ``tests.support.pressed``, in a group or in ours."""
    command = [sys.executable, "-m", "tests.support.pressed", act, word, *(group.procs if group is not None else ())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout)
    print(told)
    return told


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file on the disk, of which no page is in memory: pages belong to the group that brought them in."""
    path = tmp_path / "pages"
    with path.open("wb") as file:
        file.write(os.urandom(FILE_MB << 20))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def test_the_machine_that_runs_this_is_measured() -> None:
    require("pressure stall information")
    kinds = {one.kind: one.value for one in PressureReader(Path("/")).read().measures}
    assert {Kind.MEMORY_USED, Kind.MEMORY_STALL, Kind.CPU_STALL, Kind.IO_STALL} <= kinds.keys()
    assert 0 < kinds[Kind.MEMORY_USED] < 100


def test_memory_that_stalls_is_measured_and_the_kernel_wakes_us(file: Path) -> None:
    """Pages that do not fit into the group are read again and again."""
    require("memory cgroups", "pressure stall information")
    with MemoryGroup(FILE_MB // 2 << 20) as group:
        told = run("look", str(file), group)
    assert told["measures"]["memory stall (service)"] > 10.0
    assert told["triggers"] >= 1 and told["told_s"], told


@pytest.mark.slow
def test_control_where_the_pages_fit_nothing_stalls(file: Path) -> None:
    require("memory cgroups", "pressure stall information")
    with MemoryGroup(4 * FILE_MB << 20) as group:
        told = run("look", str(file), group)
    assert told["measures"]["memory stall (service)"] < 5.0


@pytest.mark.slow
def test_a_worker_that_grows_is_replaced_before_the_kernel_kills_it() -> None:
    require("memory cgroups")
    with MemoryGroup(288 << 20) as group:
        told = run("grow", "on", group)
        assert group.killed == 0
    assert (told["failed"], told["lost"]) == ([], 0)
    assert told["recycled"] >= 1 and told["changes"] >= 1


@pytest.mark.slow
def test_control_without_the_policy_the_kernel_kills_it_in_the_middle_of_a_call() -> None:
    require("memory cgroups")
    with MemoryGroup(288 << 20) as group:
        told = run("grow", "off", group)
        assert group.killed >= 1
    assert told["lost"] >= 1 and told["failed"]
    assert told["recycled"] == 0
    assert "SIGKILL" in told["failed"][0]


def test_where_no_trigger_may_be_had_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("some avg10=0.00\n")
    (tmp_path / "memory").chmod(0o444)
    triggers = StallTriggers([tmp_path / "memory", tmp_path / "gone"], 10.0)
    assert len(triggers) == 0
    triggers.take()
    triggers.close()
