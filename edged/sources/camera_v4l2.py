"""A camera of Linux (V4L2) through linuxpy, which is imported here and nowhere else. Blocks, but for ``take``.

Captures from nodes with one plane into mapped buffers of the driver (docs/adr/0010-camera-library.md says why linuxpy).
"""

from __future__ import annotations

import contextlib
import errno
import logging
from pathlib import Path
from typing import Any

from edged.errors import ConfigError
from edged.sources.camera import Grab
from edged.sources.camera_formats import KNOWN, Offer, Sizes, Unfit, Wanted, choose, ycbcr_of
from edged.sources.pixels import Picture

BUFFERS = 4  # a tenth of a second at 30 frames/s, in which the event loop may be busy


def open_capture(path: Path, wanted: Wanted) -> V4l2Capture:
    """Open the camera at ``path`` and start it, as ``wanted``.

    Raises OSError when it is away or somebody else has it, Unfit when it cannot do that, ConfigError without linuxpy.
    """
    v4l2 = _linuxpy()
    try:
        camera = v4l2.Device(path)
        camera.open()
    except OSError as error:
        raise _explained(error) from None
    stream = v4l2.VideoCapture(camera, size=BUFFERS, buffer_type=v4l2.MemoryMap)
    try:
        picture, rate = _start(v4l2, camera, stream, wanted)
    except BaseException:  # a cancellation too: what was begun is undone, and it goes on
        _let_go(camera, stream)
        raise
    return V4l2Capture(v4l2, camera, stream, picture, rate)


def _linuxpy() -> Any:
    try:
        # here: 5 MB that only a device with cameras pays
        from linuxpy.video import device  # type: ignore[import-untyped]  # it has annotations, and says so nowhere
    except ImportError:
        raise ConfigError("cameras need linuxpy", "pip install edged[camera]") from None
    logging.getLogger("linuxpy").setLevel(logging.ERROR)  # tells of every opening, and of formats that it does not know
    return device


def _start(v4l2: Any, camera: Any, stream: Any, wanted: Wanted) -> tuple[Picture, float]:
    try:
        has = camera.info.device_capabilities
        if v4l2.Capability.VIDEO_CAPTURE_MPLANE in has:
            raise Unfit("its driver knows only multi-planar buffers, which cannot be read here (docs/cameras.md)")
        if v4l2.Capability.VIDEO_CAPTURE not in has:
            raise Unfit("captures no video; a camera has a node for that, and perhaps others beside it")
        picture = _set_format(v4l2, camera, wanted)
        rate = _set_rate(v4l2, camera, wanted.rate)
        stream.open()
    except OSError as error:
        raise _explained(error) from None
    return picture, rate


def _let_go(camera: Any, stream: Any) -> None:
    """Close all that is open. A mapped buffer holds the camera too, and one that is gone cannot be stopped before."""
    if stream.buffer is not None:
        with contextlib.suppress(OSError):
            stream.stream_off()
        for memory in stream.buffer.buffers or ():
            memory.close()
    with contextlib.suppress(OSError):
        camera.close()


def _explained(error: OSError) -> OSError:
    if error.errno == errno.EBUSY:
        return OSError(error.errno, "another program has the camera")
    if error.errno == errno.EACCES:
        return OSError(
            error.errno, "permission denied: whoever runs edged must be in the group video (docs/devices.md)"
        )
    if error.errno == errno.ENOTTY:
        return Unfit("this is no camera of V4L2")
    return error


def _set_format(v4l2: Any, camera: Any, wanted: Wanted) -> Picture:
    kind = v4l2.BufferType.VIDEO_CAPTURE
    now = v4l2.get_raw_format(camera, kind).fmt.pix
    size = (wanted.width, wanted.height) if wanted.width else (now.width, now.height)
    offers = [_offer(v4l2, camera, one.pixel_format, size) for one in camera.info.buffer_formats(kind)]
    code = choose(wanted, size, offers)
    camera.set_format(kind, *size, pixel_format=code)
    got = v4l2.get_raw_format(camera, kind).fmt.pix
    sent = v4l2.human_pixel_format(got.pixelformat)
    if (got.width, got.height, sent) != (*size, code):
        asked = f"{code.strip()} {size[0]}x{size[1]}"
        raise Unfit(f"the camera does not send {asked} (nearest: {sent.strip()} {got.width}x{got.height})")
    return Picture(code, size[0], size[1], got.bytesperline, ycbcr_of(got.colorspace, got.ycbcr_enc, got.quantization))


def _offer(v4l2: Any, camera: Any, pixel_format: Any, size: tuple[int, int]) -> Offer:
    code = v4l2.human_pixel_format(pixel_format)
    if code not in KNOWN:
        return Offer(code)
    offer = Offer(code, tuple(_sizes(v4l2, one) for one in camera.info.format_frame_sizes(pixel_format)))
    if not offer.has(size):
        return offer
    rates = [max(one.min_fps, one.max_fps) for one in camera.info.fps_intervals(pixel_format, *size)]
    return Offer(code, offer.sizes, float(max(rates, default=0)))


def _sizes(v4l2: Any, found: Any) -> Sizes:
    info = found.info
    if found.type == v4l2.FrameSizeType.DISCRETE:
        return Sizes((info.width, info.height), (info.width, info.height))
    least, most = (info.min_width, info.min_height), (info.max_width, info.max_height)
    return Sizes(least, most, (info.step_width, info.step_height))


def _set_rate(v4l2: Any, camera: Any, rate: float) -> float:
    """Ask for a rate, and return what the camera says it has; 0 where it does not say."""
    kind = v4l2.BufferType.VIDEO_CAPTURE
    with contextlib.suppress(OSError):  # not every driver lets itself be asked; then frames are thinned out
        if rate:
            camera.set_fps(kind, rate)
    try:
        return float(camera.get_fps(kind))
    except (OSError, ZeroDivisionError):
        return 0.0


class V4l2Capture:
    """An open camera that streams. Implements Capture."""

    def __init__(self, v4l2: Any, camera: Any, stream: Any, picture: Picture, rate: float) -> None:
        self.picture = picture
        self.rate = rate
        self._v4l2 = v4l2
        self._camera = camera
        self._stream = stream
        self._gone: OSError | None = None

    def fileno(self) -> int:
        """As the protocol says."""
        return int(self._camera.fileno())

    def take(self) -> Grab | None:
        """As the protocol says. Copies the frame: its buffer goes back to the driver."""
        if self._gone is not None:
            raise self._gone
        try:
            buffer = self._stream.dequeue_buffer(self._v4l2.Memory.MMAP)
        except BlockingIOError:
            return None
        data = self._stream.buffer.buffers[buffer.index][: buffer.bytesused]
        damaged = buffer.flags & self._v4l2.BufferFlag.ERROR
        grab = Grab(data, buffer.sequence, "the camera's driver marked the frame as damaged" if damaged else "")
        try:
            self._stream.enqueue_buffer(self._v4l2.Memory.MMAP, 0, buffer.index)
        except OSError as error:
            self._gone = error  # pulled just now: this frame came all the same
        return grab

    def close(self) -> None:
        """As the protocol says."""
        _let_go(self._camera, self._stream)
