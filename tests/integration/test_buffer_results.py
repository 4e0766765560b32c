"""``edged results``: what it prints, follows and exports, with the daemon up or down; and readers of another user."""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edged.buffer import cli
from edged.buffer.reader import BufferReader
from edged.buffer.segment import open_reading
from edged.buffer.store import SegmentStore
from edged.errors import StoreError
from tests.support.buffer import commit, entries, entry, read_all, rows_of, store_settings, with_store
from tests.support.parts import require

# a child that only reads or writes a buffer and then ends does not touch what other threads hold
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def run(directory: Path, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    cli.add_commands(parser.add_subparsers(), lambda _: directory)
    parsed = parser.parse_args(["results", *arguments])
    return int(parsed.func(parsed))


def test_the_newest_results_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = store_settings(tmp_path)
    commit(settings, entries(0, 30), entries(0, 3, "other"))
    assert run(settings.directory, "--limit", "5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:3] for line in lines] == [
        *(["digits", str(seq)] for seq in range(26, 31)),
        *(["other", str(seq)] for seq in range(1, 4)),
    ]
    assert '"label":"7"' in lines[0]


def test_json_is_one_object_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = store_settings(tmp_path)
    commit(settings, entries(0, 3), entries(0, 3, "other"))
    assert run(settings.directory, "--json", "--stream", "other") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(record["stream"], record["seq"], record["body"]["label"]) for record in records] == [
        ("other", seq, "7") for seq in (1, 2, 3)
    ]


def test_follow_shows_what_arrives_while_the_daemon_runs(tmp_path: Path) -> None:
    settings = store_settings(tmp_path)
    program = (
        "import argparse, pathlib, sys; from edged.buffer import cli; p = argparse.ArgumentParser();"
        "cli.add_commands(p.add_subparsers(), lambda a: pathlib.Path(sys.argv[1]));"
        "a = p.parse_args(['results', '--follow', '--json']); a.func(a)"
    )

    async def act(store: SegmentStore) -> list[int]:
        await store.commit(entries(0, 2))
        seen: list[int] = []
        with subprocess.Popen([sys.executable, "-c", program, settings.directory], stdout=subprocess.PIPE) as follower:
            assert follower.stdout is not None
            reading = threading.Thread(
                target=lambda out=follower.stdout: seen.extend(json.loads(line)["seq"] for line in out)
            )
            reading.start()
            for index in range(2, 100):
                if len(seen) >= 6:
                    break
                await store.commit(entries(index, 1))
                time.sleep(0.1)
            follower.terminate()
            reading.join()
        return seen

    seen = with_store(settings, act)
    assert len(seen) >= 6
    assert seen == list(range(1, len(seen) + 1))


def test_export_merges_everything_into_one_plain_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = store_settings(tmp_path, cap_bytes=1 << 20, segment_bytes=128 << 10)
    commit(settings, *(entries(first, 20, size=1000) for first in range(0, 1500, 20)))
    exported = tmp_path / "export.db"
    assert run(settings.directory, "--export", str(exported)) == 0
    with sqlite3.connect(exported) as connection:
        count, first, last = connection.execute("SELECT count(*), min(seq), max(seq) FROM results").fetchone()
        [gap] = connection.execute("SELECT first, last, reason FROM gaps").fetchall()
    connection.close()
    assert (gap[0], gap[1] + 1, last, gap[2]) == (1, first, 1500, "cap")
    assert count == last - first + 1
    assert f"{count} rows" in capsys.readouterr().out
    with pytest.raises(StoreError, match="exists"):
        run(settings.directory, "--export", str(exported))


def test_without_a_buffer_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no buffer here"):
        run(tmp_path / "absent")


def test_a_segment_opens_in_any_sqlite_tool(tmp_path: Path) -> None:
    settings = store_settings(tmp_path)
    commit(settings, entries(0, 3))
    connection = open_reading(settings.directory / "segment-00000001.db")
    [row, *_] = connection.execute("SELECT stream, seq, kind, source, key, model, engine FROM results").fetchall()
    connection.close()
    assert row == ("digits", 1, "result", "digits-spool", "f0", "digits@1", "onnxruntime")


def test_the_store_keeps_the_daemon_small() -> None:
    program = "import sys, edged.buffer.store, edged.buffer.cli; sys.exit('sqlite_utils' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_reader_of_another_user_of_the_group_sees_what_is_committed(tmp_path: Path) -> None:
    require("root")
    settings = store_settings(tmp_path)
    group, user = 4711, 4712

    async def act(store: SegmentStore) -> list[int]:
        await store.commit(entries(0, 5))
        for path in (settings.directory, *settings.directory.rglob("*")):
            os.chown(path, -1, group)
        seen = []
        for first in (5, 10):
            seen.append(read_as(settings.directory, user, group))
            await store.commit([*entries(first, 5), entry(f"again{first}")])
        return seen

    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    assert with_store(settings, act) == [5, 11]
    assert read_as(settings.directory, user, group) == 17
    commit(settings, entries(100, 1))


def read_as(directory: Path, user: int, group: int) -> int:
    """How many rows a reader of another user finds."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)
            epoch = BufferReader(directory).epochs()[-1].id
            os._exit(len(rows_of(read_all(directory, epoch, "digits"))))
        finally:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
