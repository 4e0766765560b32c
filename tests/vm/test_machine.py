"""The machine itself: what every other test of this rung stands on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.vm.machine import Guest, GuestFailed


def test_a_program_is_run_and_heard(guest: Guest, tmp_path: Path) -> None:
    assert guest.run("cat", given="one\ntwo\n") == "one\ntwo\n"
    with pytest.raises(GuestFailed, match=r"exit code 3\nsaid\n+why"):
        guest.shell("echo said; echo why >&2; exit 3")
    with pytest.raises(GuestFailed, match="no end after"):
        guest.run("sleep", "1000", timeout_s=0.5)
    job = guest.start("sh", "-c", "echo waits; sleep 1000")
    assert next(job.lines(30)) == "waits"
    job.signal(signal.SIGTERM)
    assert job.wait(30).code == -signal.SIGTERM
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("copied")
    guest.copy(tmp_path / "folder", "/srv/there")
    assert guest.run("cat", "/srv/there/file").strip() == "copied"
