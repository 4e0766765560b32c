"""How a V4L2 camera is opened, agreed with, read and let go, with linuxpy on a driver of ours."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edged.errors import ConfigError
from edged.sources.camera_formats import AUTO, Unfit, Wanted
from edged.sources.camera_v4l2 import BUFFERS, open_capture
from edged.sources.pixels import BT709, Picture, Ycbcr
from tests.support.descriptors import open_descriptors
from tests.support.v4l2_driver import Driver

VGA, HD = (640, 480), (1280, 720)
Plug = Callable[..., Driver]


@pytest.fixture
def plug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plug:
    """Plug a camera in: it is the file ``video0``."""

    def make(**facts: Any) -> Driver:
        formats = facts.pop("formats", {"YUYV": [VGA, HD], "MJPG": [VGA, HD]})
        driver = Driver(tmp_path / "video0", formats, **facts)
        monkeypatch.setattr("linuxpy.video.device.ioctl", driver.ioctl)
        return driver

    return make


def test_a_camera_sends_what_was_agreed_and_every_buffer_goes_round(plug: Plug) -> None:
    driver = plug(fps={("YUYV", VGA): [30, 15, 5], ("MJPG", VGA): [30]})
    capture = open_capture(driver.file, Wanted(AUTO, *VGA, 14))
    assert capture.picture == Picture("YUYV", *VGA, 1280)
    assert capture.rate == 15
    assert driver.streaming
    assert len(driver.queued) == BUFFERS
    assert capture.take() is None
    for number in range(3 * BUFFERS):
        driver.send(bytes([number] * 100))
        grab = capture.take()
        assert grab is not None
        assert (grab.data, grab.number, grab.damage) == (bytes([number] * 100), number + 1, "")
        assert capture.take() is None
        assert len(driver.queued) == BUFFERS
    capture.close()
    assert not driver.streaming


def test_frames_come_in_order_with_the_driver_s_numbers_and_marks(plug: Plug) -> None:
    driver = plug()
    capture = open_capture(driver.file, Wanted("MJPEG", *HD))
    driver.send(b"one")
    driver.send(b"two", damaged=True, left_out=5)
    driver.send(b"three")
    found = [capture.take() for _ in range(4)]
    assert [(one.data, one.number) for one in found if one] == [(b"one", 1), (b"two", 7), (b"three", 8)]
    assert [bool(one.damage) for one in found if one] == [False, True, False]
    assert found[3] is None
    capture.close()


def test_a_frame_that_was_fetched_when_the_camera_was_pulled_is_not_lost(plug: Plug) -> None:
    driver = plug()
    before = open_descriptors()
    capture = open_capture(driver.file, Wanted("YUYV", *VGA))
    driver.send(b"the last one")
    driver.fails = {"QBUF": errno.ENODEV, "STREAMOFF": errno.ENODEV, "REQBUFS": errno.ENODEV}
    grab = capture.take()
    assert grab is not None
    assert grab.data == b"the last one"
    with pytest.raises(OSError, match="as the test wants it") as caught:
        capture.take()
    assert caught.value.errno == errno.ENODEV
    capture.close()
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("facts", "wanted", "picture", "rate"),
    [
        ({}, Wanted(), Picture("YUYV", *VGA, 1280), 30),  # what it does by itself
        ({"space": 3}, Wanted("YUYV", *HD), Picture("YUYV", *HD, 2560, BT709), 30),
        ({"space": 7}, Wanted("MJPEG", *HD), Picture("MJPG", *HD, 2560, Ycbcr(full=True)), 30),
        ({"fps": {("YUYV", HD): [10], ("MJPG", HD): [60, 30]}}, Wanted(AUTO, *HD, 30), Picture("MJPG", *HD, 2560), 30),
        ({"sets_rates": False}, Wanted(AUTO, *VGA, 5), Picture("YUYV", *VGA, 1280), 30),
        ({"fails": {"G_PARM": errno.ENOTTY, "S_PARM": errno.ENOTTY}}, Wanted("YUYV"), Picture("YUYV", *VGA, 1280), 0),
        ({"lists_sizes": False}, Wanted(AUTO, *HD), Picture("YUYV", *HD, 2560), 30),
        ({"stepwise": ((16, 16), (4096, 2160), (8, 2))}, Wanted(AUTO, 648, 482), Picture("YUYV", 648, 482, 1296), 30),
    ],
)
def test_what_is_agreed_follows_what_the_camera_has(
    plug: Plug, facts: dict[str, Any], wanted: Wanted, picture: Picture, rate: float
) -> None:
    capture = open_capture(plug(**facts).file, wanted)
    assert (capture.picture, capture.rate) == (picture, rate)
    capture.close()


@pytest.mark.parametrize(
    ("facts", "wanted", "said"),
    [
        ({}, Wanted("YUYV", 320, 240), r"does not send 320x240 \(it sends: YUYV 640x480, 1280x720\)"),
        ({"lists_sizes": False}, Wanted("YUYV", 320, 240), r"does not send YUYV 320x240 \(nearest: YUYV 640x480\)"),
        ({"formats": {"H264": [VGA]}}, Wanted(), r"no format that we know \(has: H264\)"),
        ({"stepwise": ((16, 16), (640, 480), (8, 2))}, Wanted(AUTO, 641, 480), "16x16 to 640x480"),
        ({"kind": "META_CAPTURE"}, Wanted(), "captures no video"),
        ({"kind": "VIDEO_CAPTURE_MPLANE"}, Wanted(), "multi-planar"),
        ({"fails": {"QUERYCAP": errno.ENOTTY}}, Wanted(), "no camera"),
        ({"fails": {"STREAMON": errno.EBUSY}}, Wanted(), "another program has the camera"),
        ({"fails": {"S_FMT": errno.EBUSY}}, Wanted(), "another program has the camera"),
        ({"fails": {"REQBUFS": errno.ENOMEM}}, Wanted(), "as the test wants it"),
    ],
)
def test_a_camera_that_cannot_be_used_says_why_and_stays_closed(
    plug: Plug, facts: dict[str, Any], wanted: Wanted, said: str
) -> None:
    driver = plug(**facts)
    before = open_descriptors()
    with pytest.raises(OSError, match=said):
        open_capture(driver.file, wanted)
    assert open_descriptors() == before


def test_what_is_no_camera_is_told_from_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no camera")
    for path in (Path("/dev/null"), tmp_path / "file"):
        with pytest.raises(Unfit, match="no camera"):
            open_capture(path, Wanted())
    with pytest.raises(FileNotFoundError):
        open_capture(tmp_path / "video0", Wanted())


def test_without_linuxpy_the_hint_is_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "linuxpy.video", None)
    with pytest.raises(ConfigError, match=r"pip install edged\[camera\]"):
        open_capture(Path("/dev/video0"), Wanted())
