"""Sources on a real file system: the spool's exactly-once, its rejects, and the pace of a replay."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.domain import Kind
from edged.errors import ConfigError, EdgedError
from edged.ports import Intake, Source
from edged.sources.inlet import InletSource
from edged.sources.rejected import RejectedFolder
from edged.sources.replay import ReplaySource
from edged.sources.spool import SpoolSource
from tests.support.fakes import Collector


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 20))


@contextlib.asynccontextmanager
async def running(source: Source, intake: Intake) -> AsyncIterator[None]:
    task = asyncio.create_task(source.run(intake))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def put(spool: Path, name: str, value: float) -> None:
    part = spool / f"{name}.part"
    with part.open("wb") as file:
        np.save(file, np.full(3, value))
    part.rename(spool / name)


def test_files_become_frames_in_the_order_of_their_names_and_leave_the_spool(tmp_path: Path) -> None:
    async def body() -> None:
        for number in range(20):
            put(tmp_path, f"{number:03d}.npy", number)
        intake = Collector()
        async with running(SpoolSource("spool", tmp_path, poll_s=60), intake):
            await until(lambda: len(intake.frames) == 20)
            put(tmp_path, "later.npy", 7)  # found by inotify: the poll is a minute away
            await until(lambda: len(intake.frames) == 21)
        assert [key.split("#")[0] for key, _ in intake.frames] == [f"{n:03d}.npy" for n in range(20)] + ["later.npy"]
        assert [path.name for path in tmp_path.iterdir()] == []

    run(body)


@pytest.mark.parametrize("turns", range(4))
def test_a_spool_ends_when_told_to_though_a_file_comes_at_that_moment(tmp_path: Path, turns: int) -> None:
    """The file wakes it, and so many turns of the event loop later it is cancelled."""

    async def body() -> None:
        source = SpoolSource("spool", tmp_path, poll_s=60)
        task = asyncio.create_task(source.run(Collector()))
        await asyncio.sleep(0.01)
        source._changed.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=1)
        assert done
        with contextlib.suppress(asyncio.CancelledError):
            await task

    run(body)


def test_polling_alone_finds_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def blind(*_: object) -> Any:
        yield False

    monkeypatch.setattr("edged.sources.spool.watching", blind)

    async def body() -> None:
        intake = Collector()
        async with running(SpoolSource("spool", tmp_path, poll_s=0.02), intake):
            await asyncio.sleep(0.05)
            put(tmp_path, "a.npy", 1)
            await until(lambda: len(intake.frames) == 1)

    run(body)


def test_the_same_name_and_content_is_the_same_frame_and_other_content_is_another(tmp_path: Path) -> None:
    async def body() -> None:
        intake = Collector()
        async with running(SpoolSource("spool", tmp_path, poll_s=0.05), intake):
            for turn, value in enumerate([1.0, 1.0, 2.0]):
                put(tmp_path, "latest.npy", value)
                await until(lambda turn=turn: len(intake.frames) == turn + 1)  # type: ignore[misc]  # mypy cannot type defaults
        keys = [key for key, _ in intake.frames]
        assert keys[0] == keys[1] != keys[2]

    run(body)


def test_unfinished_names_directories_and_young_torn_files_are_left_alone(tmp_path: Path) -> None:
    async def body() -> None:
        for name in (".hidden.npy", "a.npy.part", "b.tmp"):
            (tmp_path / name).write_bytes(b"x")
        (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY")
        (tmp_path / "folder").mkdir()
        intake = Collector()
        async with running(SpoolSource("spool", tmp_path, poll_s=0.02), intake):
            await asyncio.sleep(0.3)
            assert (intake.frames, intake.rejected) == ([], [])
            with (tmp_path / "torn.npy").open("wb") as file:  # its slow writer finishes
                np.save(file, np.ones(3))
            await until(lambda: len(intake.frames) == 1)

    run(body)


def test_an_unreadable_file_goes_to_rejected_with_its_reason(tmp_path: Path) -> None:
    async def body() -> None:
        (tmp_path / "bad.npy").write_bytes(b"no array")
        (tmp_path / "what.gif").write_bytes(b"GIF")
        (tmp_path / "link.npy").symlink_to("/etc/passwd")
        long_ago = time.time() - 60
        for name in ("bad.npy", "what.gif", "link.npy"):
            os.utime(tmp_path / name, (long_ago, long_ago), follow_symlinks=False)
        intake = Collector()
        async with running(SpoolSource("spool", tmp_path, poll_s=0.02), intake):
            await until(lambda: len(intake.rejected) == 3)
            await until(lambda: not [path for path in tmp_path.iterdir() if path.name != "rejected"])
        kept = {path.name for path in (tmp_path / "rejected").iterdir()}
        assert kept == {f"{name}{end}" for name in ("bad.npy", "what.gif", "link.npy") for end in ("", ".reason.json")}
        reason = json.loads((tmp_path / "rejected" / "bad.npy.reason.json").read_text())
        assert reason["kind"] == "rejected"
        assert any("not a .npy" in said for _, said in intake.rejected)

    run(body)


def test_a_frame_that_ended_two_workers_is_kept(tmp_path: Path) -> None:
    async def body() -> None:
        put(tmp_path, "poison.npy", 1)
        intake = Collector(kind=Kind.ERROR)
        async with running(SpoolSource("spool", tmp_path, poll_s=0.02), intake):
            await until(lambda: (tmp_path / "rejected" / "poison.npy").exists())
        assert not (tmp_path / "poison.npy").exists()

    run(body)


def test_rejected_keeps_the_newest_only(tmp_path: Path) -> None:
    folder = RejectedFolder(tmp_path / "rejected", keep=3)
    receipt = Collector()._receipt(Kind.REJECTED, b"{}")
    for number in range(6):
        folder.write(b"x", f"{number}.npy", receipt)
        os.utime(tmp_path / "rejected" / f"{number}.npy", (number, number))
    names = sorted(path.name for path in (tmp_path / "rejected").iterdir())
    assert names == sorted(f"{number}.npy{end}" for number in (3, 4, 5) for end in ("", ".reason.json"))


def test_a_spool_that_cannot_be_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="spool"):
        asyncio.run(SpoolSource("spool", tmp_path / "file" / "spool", 1).run(Collector()))


def test_a_replay_keeps_its_pace_and_names_every_frame_anew(tmp_path: Path) -> None:
    async def body() -> None:
        np.save(tmp_path / "rows.npy", np.arange(30.0).reshape(10, 3))
        intake = Collector()
        started = time.monotonic()
        async with running(ReplaySource("camera", tmp_path / "rows.npy", rate_hz=100, loop=True), intake):
            await until(lambda: len(intake.frames) >= 30)
        assert time.monotonic() - started > 0.25
        assert len({key for key, _ in intake.frames}) == len(intake.frames)

    run(body)


def test_a_replayed_directory_tells_what_it_cannot_read(tmp_path: Path) -> None:
    async def body() -> None:
        np.save(tmp_path / "a.npy", np.ones(3))
        (tmp_path / "b.npy").write_bytes(b"no")
        intake = Collector()
        async with running(ReplaySource("camera", tmp_path, rate_hz=1000), intake):
            await until(lambda: len(intake.frames) == 1 and len(intake.rejected) == 1)

    run(body)


def test_an_inlet_answers_after_the_end_and_refuses_while_closed(tmp_path: Path) -> None:
    async def body() -> None:
        inlet = InletSource("http", RejectedFolder(tmp_path / "rejected"))
        with pytest.raises(EdgedError, match="starting or stopping"):
            await inlet.infer("a", np.ones(3))
        async with running(inlet, Collector(kind=Kind.ERROR)):
            await asyncio.sleep(0)
            end = await inlet.infer("a/../b", np.ones(3))
        assert end.kind is Kind.ERROR
        assert len(list((tmp_path / "rejected").iterdir())) == 2

    run(body)
