"""Prints what a camera costs: each format's conversion, and a whole pipeline at 30 frames a second. Decides nothing."""

from __future__ import annotations

import asyncio
import io
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edged.sources.camera import CameraSource, Grab
from edged.sources.camera_formats import Wanted
from edged.sources.pixels import DECODERS, Picture, to_image
from tests.support.fakes import Collector

RUNS = 15
RATE, SECONDS = 30, 4
SIZES = ((640, 480), (1920, 1080))


def pictures(width: int, height: int) -> dict[str, bytes]:
    """One frame of each format: noise, but for JPEG, which gets a picture with the usual amount of detail."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, 3 * width * height, np.uint8).tobytes()
    coarse = random.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=85)
    return {code: jpeg.getvalue() if code in ("MJPG", "JPEG") else noise for code in DECODERS}


def median_ms(call: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


@pytest.mark.bench
def test_bench_of_pixel_formats(capsys: pytest.CaptureFixture[str]) -> None:
    columns = {}
    for width, height in SIZES:
        frames = pictures(width, height)
        columns[width, height] = {
            code: median_ms(lambda c=code, w=width, h=height, d=data: to_image(d, Picture(c, w, h)))  # type: ignore[misc]  # defaults
            for code, data in frames.items()
        }
    with capsys.disabled():
        print(f"\nmilliseconds from a camera's bytes to an image, median of {RUNS} runs, one thread")
        print("format " + "".join(f"{f'{width}x{height}':>12}" for width, height in SIZES))
        for code in DECODERS:
            print(f"{code:7}" + "".join(f"{columns[size][code]:12.2f}" for size in SIZES))


class Steady:
    """A camera that sends the same frame at RATE. Its driver's work is left out: copying the frame is not."""

    rate = float(RATE)

    def __init__(self, code: str, frame: bytes) -> None:
        self.picture = Picture(code, *SIZES[0])
        self._frame = memoryview(frame)
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._number = 0

    def fileno(self) -> int:
        return self._theirs.fileno()

    def tick(self) -> None:
        self._ours.send(b"x")

    def take(self) -> Grab | None:
        try:
            self._theirs.recv(1)
        except BlockingIOError:
            return None
        self._number += 1
        return Grab(bytes(self._frame), self._number)

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


async def load_of(camera: Steady) -> tuple[float, int]:
    """The share of one core that its source takes, and how many frames came through."""
    intake = Collector()
    source = CameraSource("cam", Path("/dev/video0"), Wanted(), lambda *_: camera, lambda *_: None)
    task = asyncio.create_task(source.run(intake))
    await asyncio.sleep(0.2)
    began, used = time.monotonic(), time.process_time()
    for number in range(RATE * SECONDS):
        await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
        camera.tick()
    await asyncio.sleep(0.1)
    share = (time.process_time() - used) / (time.monotonic() - began)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return share, len(intake.frames)


@pytest.mark.bench
def test_bench_of_a_camera_at_30_frames_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    frames = pictures(*SIZES[0])
    lines = []
    for code, size in {"RGB3": 921600, "YUYV": 614400, "NV12": 460800, "MJPG": None, "GREY": 307200}.items():
        share, came = asyncio.run(load_of(Steady(code, frames[code][:size])))
        lines.append(f"{code:7}{share * 100:12.1f}{came:12}")
    with capsys.disabled():
        print(f"\nshare of one core for a camera of 640x480 at {RATE} frames/s, {SECONDS} s, without driver and engine")
        print(f"{'format':7}{'CPU %':>12}{'frames':>12}")
        print("\n".join(lines))
