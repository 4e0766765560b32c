"""The camera source on a camera of ours: the latest counts, every frame is accounted for, and it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import numpy as np
import pytest

from edged.domain import Array, Frame, Kind, Payload, Policy
from edged.errors import ConfigError
from edged.pipeline import Pipeline
from edged.ports import OnEnded
from edged.sources import camera as cameras
from edged.sources.camera import CameraSource, Capture, Grab, _Pace
from edged.sources.camera_formats import Unfit, Wanted
from edged.sources.pixels import Picture
from tests.support.descriptors import open_descriptors
from tests.support.fakes import Collector, MemoryStore, SumEngine, SumModel

GREY = Picture("GREY", 4, 2)
PATH = Path("/dev/video9")


class Camera:
    """A camera in memory: frames are readable through a socket, as those of a driver are through its node."""

    def __init__(self, picture: Picture = GREY, rate: float = 30.0) -> None:
        self.picture = picture
        self.rate = rate
        self.closed = threading.Event()
        self._ready: deque[Grab] = deque()
        self._gone: OSError | None = None
        self._ours, self._theirs = socket.socketpair()
        self._number = 0

    def fileno(self) -> int:
        return self._theirs.fileno()

    def take(self) -> Grab | None:
        if self._ready:
            self._theirs.recv(1)
            return self._ready.popleft()
        if self._gone is not None:
            raise self._gone
        return None

    def close(self) -> None:
        self.closed.set()

    def send(self, data: bytes = bytes(8), *, missed: int = 0, damage: str = "") -> None:
        self._number += 1 + missed
        self._ready.append(Grab(data, self._number, damage))
        self._ours.send(b"x")

    def pull(self) -> None:
        self._gone = OSError(errno.ENODEV, "No such device")
        self._ours.send(b"x")

    def release(self) -> None:
        self._ours.close()
        self._theirs.close()


class Port:
    """Where cameras are plugged in: opens the one that is there."""

    def __init__(self, *what: Camera | Exception) -> None:
        self.what = list(what)
        self.opened = 0

    def __call__(self, path: Path, wanted: Wanted) -> Capture:
        self.opened += 1
        if not self.what:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        found = self.what.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


class Gate(Collector):
    """An intake that takes a frame only while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.offered = 0
        self.open = asyncio.Event()

    async def offer(self, frame: Frame, on_ended: OnEnded) -> None:
        self.offered += 1
        await self.open.wait()
        await super().offer(frame, on_ended)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.sources.returning.RETRY_S", 0.01)
    monkeypatch.setattr("edged.sources.returning.MOST_S", 0.04)


@contextlib.asynccontextmanager
async def running(source: CameraSource, intake: Collector | Pipeline) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(source.run(intake))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def run(body: Coroutine[None, None, None], *used: Camera) -> None:
    try:
        asyncio.run(body)
    finally:
        for camera in used:
            camera.release()


def grey(value: int) -> bytes:
    return bytes([value] * 8)


def source(port: Port, told: list[tuple[str, str]], wanted: Wanted | None = None) -> CameraSource:
    return CameraSource("cam", PATH, wanted or Wanted(), port, lambda reason, note, _: told.append((reason, note)))


def test_frames_become_images_under_names_of_their_own_and_the_status_says_what_the_camera_sends() -> None:
    camera, told = Camera(Picture("YUYV", 4, 2)), []  # type: tuple[Camera, list[tuple[str, str]]]

    async def main() -> None:
        intake = Collector()
        async with running(source(Port(camera), told), intake):
            for count, luma in enumerate((16, 126, 235), 1):
                camera.send(bytes([luma, 128] * 8))
                await until(lambda count=count: len(intake.frames) == count)  # type: ignore[misc]  # default
        assert [np.asarray(payload).tolist() for _, payload in intake.frames] == [
            np.full((2, 4, 3), value).tolist() for value in (0, 128, 255)
        ]
        assert len({key for key, _ in intake.frames}) == 3
        assert camera.closed.is_set()

    run(main(), camera)
    assert told == [("", "YUYV 4x2 at 30 frames/s")]


def test_the_latest_frame_counts_and_those_that_it_overtook_are_counted() -> None:
    camera = Camera()

    async def main() -> None:
        intake = Gate()
        async with running(source(Port(camera), []), intake):
            camera.send(grey(1))
            await until(lambda: intake.offered == 1)  # and waits for room
            for value in (2, 3, 4):
                camera.send(grey(value))
            await until(lambda: intake.dropped == 2)
            intake.open.set()
            await until(lambda: len(intake.frames) == 2)
            camera.send(grey(5))
            await until(lambda: len(intake.frames) == 3)
        assert [int(np.asarray(payload)[0, 0]) for _, payload in intake.frames] == [1, 4, 5]
        assert intake.dropped == 2

    run(main(), camera)


def test_a_damaged_or_cut_off_frame_is_rejected_with_its_reason_and_the_next_one_is_not() -> None:
    camera, jpeg = Camera(), Camera(Picture("MJPG", 4, 2))

    async def main() -> None:
        intake = Collector()
        port = Port(camera, jpeg)
        async with running(source(port, []), intake):
            camera.send(grey(1)[:7])
            await until(lambda: len(intake.rejected) == 1)
            camera.send(grey(2), damage="the camera's driver marked the frame as damaged")
            await until(lambda: len(intake.rejected) == 2)
            camera.send(grey(3))
            await until(lambda: len(intake.frames) == 1)
            camera.pull()
            await until(lambda: port.opened == 2)
            jpeg.send(b"\xff\xd8\xff\xe0 and no more")
            await until(lambda: len(intake.rejected) == 3)
        reasons = [reason for _, reason in intake.rejected]
        assert "cut off: 7 bytes came" in reasons[0]
        assert "marked the frame as damaged" in reasons[1]
        assert "not a readable JPEG" in reasons[2]
        assert len({key for key, _ in (*intake.frames, *intake.rejected)}) == 4

    run(main(), camera, jpeg)


def test_a_camera_that_was_pulled_and_came_back_is_opened_again_and_loses_nothing_that_had_come() -> None:
    first, second, told = Camera(), Camera(), []  # type: tuple[Camera, Camera, list[tuple[str, str]]]

    async def main() -> None:
        intake = Gate()
        port = Port(FileNotFoundError(errno.ENOENT, "No such file or directory"), first)
        async with running(source(port, told), intake):
            await until(lambda: port.opened == 2)
            first.send(grey(1))
            first.send(grey(2), missed=3)
            first.pull()
            await until(lambda: first.closed.is_set() and port.opened > 4)
            port.what.append(second)
            intake.open.set()
            await until(lambda: len(intake.frames) + intake.dropped == 2)
            second.send(grey(3))
            await until(lambda: len(intake.frames) + intake.dropped == 3)
        assert int(np.asarray(intake.frames[-1][1])[0, 0]) == 3

    run(main(), first, second)
    sends = "GREY 4x2 at 30 frames/s"
    assert told[0] == (f"{PATH}: No such file or directory", "")
    assert (f"{PATH}: No such device", f"{sends}, missed by the driver: 3") in told
    assert told[-1] == ("", f"{sends}, missed by the driver: 3, times away and back: 1")


def test_a_camera_that_does_not_fit_is_left_alone_for_longer_each_time_and_taken_when_it_does() -> None:
    camera, told = Camera(), []  # type: tuple[Camera, list[tuple[str, str]]]

    async def main() -> None:
        intake, port = Collector(), Port(*[Unfit("the camera does not send 640x480")] * 3, camera)
        async with running(source(port, told), intake):
            await until(lambda: port.opened == 4)
            camera.send()
            await until(lambda: len(intake.frames) == 1)

    run(main(), camera)
    assert told == [(f"{PATH}: the camera does not send 640x480", ""), ("", "GREY 4x2 at 30 frames/s")]


def test_a_camera_that_stands_still_is_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cameras, "STALL_S", 0.3)
    monkeypatch.setattr(cameras, "STALL_FRAMES", 1)
    first, second, told = Camera(), Camera(), []  # type: tuple[Camera, Camera, list[tuple[str, str]]]

    async def main() -> None:
        intake = Collector()
        async with running(source(Port(first, second), told), intake):
            first.send()
            await until(first.closed.is_set)
            second.send()
            await until(lambda: len(intake.frames) == 2)

    run(main(), first, second)
    assert any("no frame came for" in reason for reason, _ in told)
    assert told[-1] == ("", "GREY 4x2 at 30 frames/s, times away and back: 1")


def test_an_event_loop_that_stood_still_is_not_the_camera_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cameras, "STALL_S", 0.2)
    monkeypatch.setattr(cameras, "STALL_FRAMES", 1)
    camera = Camera()

    async def main() -> None:
        intake, port = Collector(), Port(camera)
        async with running(source(port, []), intake):
            for count in range(1, 6):
                camera.send()
                time.sleep(0.3)  # the loop stands still, as on a starved machine
                await until(lambda count=count: len(intake.frames) == count)  # type: ignore[misc]  # default
        assert port.opened == 1

    run(main(), camera)


def test_without_its_library_the_source_says_what_to_install() -> None:
    async def main() -> None:
        port = Port(ConfigError("cameras need linuxpy", "pip install edged[camera]"))
        with pytest.raises(ConfigError, match="linuxpy"):
            await source(port, []).run(Collector())

    run(main())


class RowModel(SumModel):
    """Takes an image of one row."""

    def encode(self, payload: Payload) -> dict[str, Array]:
        return super().encode(np.asarray(payload)[0])


def test_its_account_closes_in_a_pipeline_that_is_slower_than_the_camera() -> None:
    camera, sent = Camera(Picture("GREY", 3, 1)), 200

    async def main() -> None:
        store, engine = MemoryStore(), SumEngine(max_batch=1)
        engine.open.clear()
        pipeline = Pipeline("s", RowModel(), engine, store, queue_limit=2, policy=Policy.BLOCK)
        work = asyncio.create_task(pipeline.run())
        async with running(source(Port(camera), []), pipeline):
            for number in range(sent):
                camera.send(bytes([number] * (2 if number % 5 == 4 else 3)))
                await asyncio.sleep(0.002)
                if number == sent // 2:
                    engine.open.set()
            await until(lambda: sum(entry.count for entry in store.entries) == sent)
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        kinds = {kind: sum(entry.count for entry in store.entries if entry.kind is kind) for kind in Kind}
        assert kinds[Kind.DROPPED] > sent // 4
        assert kinds[Kind.REJECTED] > 0 < kinds[Kind.RESULT]
        assert sum(kinds.values()) == sent

    run(main(), camera)


@pytest.mark.parametrize(
    ("wanted", "rate", "expected"),
    [(10, 30, 100), (20, 30, 200), (30, 30, 300), (29, 30, 290), (7, 30, 70), (0, 30, 300), (50, 0, 300), (10, 0, 100)],
)
def test_a_camera_that_is_too_fast_is_thinned_out(wanted: float, rate: float, expected: int) -> None:
    pace = _Pace(wanted, rate)
    random = np.random.default_rng(0)
    taken = sum(pace.takes(1000 + number / 30 + random.uniform(-0.004, 0.004)) for number in range(300))
    assert abs(taken - expected) <= 3


def test_no_descriptor_is_left_of_any_session() -> None:
    cameras_used = [Camera() for _ in range(20)]

    async def main() -> None:
        port = Port()
        async with running(source(port, []), Collector()):
            await until(lambda: port.opened > 1)
            before = open_descriptors()
            for camera in cameras_used:
                camera.send()
                camera.pull()
                port.what.append(camera)
                await until(camera.closed.is_set)
            assert open_descriptors() == before

    run(main(), *cameras_used)
