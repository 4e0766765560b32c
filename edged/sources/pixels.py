"""Pixels as cameras send them → images as models take them: (H, W) or (H, W, 3) red, green, blue. NumPy only, no I/O.

- Formats go by their V4L2 code (kernel documentation, "Image Formats"). 8 bits a sample, ``Y16`` 16.
- A buffer that is too short, or a size that a format cannot have, is a FrameRejected that says so. What comes after the
  last pixel is padding. Rows may be padded too: ``stride`` is the bytes from one to the next.
- Luma and chroma become red, green and blue by the matrix of their standard (ITU-R BT.601, BT.709, BT.2020), at most 1
  away from its formula in real numbers.
- Chroma is not interpolated: the pixels that share a sample have its colour.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edged.domain import Array
from edged.errors import FrameRejected
from edged.sources.decode import decode_jpeg

MAX_SIDE = 1 << 14  # the largest sensors have some 12,000 pixels a side
FRACTION_BITS = 5  # of a colour while it is summed: with 6, the brightest blue would leave 16 bits

Bytes = NDArray[np.uint8]
Sums = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Ycbcr:
    """How luma and chroma mean colours. ``full``: 0 to 255; else 16 to 235, and 16 to 240 for chroma."""

    red: float = 0.299  # weight of red in luma
    blue: float = 0.114
    full: bool = False


BT601 = Ycbcr()
BT709 = Ycbcr(0.2126, 0.0722)
BT2020 = Ycbcr(0.2627, 0.0593)


@dataclass(frozen=True, slots=True)
class Picture:
    """What the bytes of a frame are: a pixel format, a size in pixels, bytes a row (0: no padding), colours."""

    code: str
    width: int
    height: int
    stride: int = 0
    ycbcr: Ycbcr = BT601


def to_image(data: bytes, picture: Picture) -> Array:
    """The image (H, W) or (H, W, 3), uint8 or uint16. Raises FrameRejected."""
    if not (0 < picture.width <= MAX_SIDE and 0 < picture.height <= MAX_SIDE):
        raise FrameRejected(f"an image of {picture.width} x {picture.height} pixels cannot be")
    decoder = DECODERS.get(picture.code)
    if decoder is None:
        raise FrameRejected(f"pixels of type {picture.code!r} are not known", f"known: {', '.join(DECODERS)}")
    return decoder(data, picture)


def _rows(data: bytes, picture: Picture, row_bytes: int, rows: int, start: int = 0, stride: int = 0) -> Bytes:
    """``rows`` rows of ``row_bytes`` from ``start``, without their padding."""
    stride = max(stride or picture.stride, row_bytes)
    needed = start + stride * (rows - 1) + row_bytes
    if len(data) < needed:
        what = f"{picture.code} of {picture.width} x {picture.height} pixels"
        raise FrameRejected(f"the frame was cut off: {len(data)} bytes came, {what} needs {needed}")
    found = np.frombuffer(data, np.uint8, count=needed - start, offset=start)
    return np.lib.stride_tricks.as_strided(found, (rows, row_bytes), (stride, 1), writeable=False)


def _even(picture: Picture, *, height: bool = False) -> None:
    if picture.width % 2 or (height and picture.height % 2):
        what = "width and height" if height else "width"
        raise FrameRejected(f"{picture.code} of {picture.width} x {picture.height} pixels: its {what} must be even")


# Without chroma, and colours as such


def _grey(data: bytes, picture: Picture) -> Array:
    return _rows(data, picture, picture.width, picture.height).copy()


def _grey16(data: bytes, picture: Picture) -> Array:
    rows = np.ascontiguousarray(_rows(data, picture, 2 * picture.width, picture.height))
    return rows.view("<u2").astype(np.uint16)


def _rgb(data: bytes, picture: Picture) -> Array:
    return _rows(data, picture, 3 * picture.width, picture.height).reshape(picture.height, picture.width, 3).copy()


def _bgr(data: bytes, picture: Picture) -> Array:
    return np.ascontiguousarray(_rgb(data, picture)[:, :, ::-1])


def _jpeg(data: bytes, picture: Picture) -> Array:
    image = decode_jpeg(data)
    if image.shape[:2] != (picture.height, picture.width):
        came = f"{image.shape[1]} x {image.shape[0]}"
        raise FrameRejected(f"the JPEG has {came} pixels, not {picture.width} x {picture.height}")
    return image


# Luma and chroma


def _packed(luma: int, cb: int, cr: int) -> Callable[[bytes, Picture], Array]:
    """Four bytes hold two pixels: where their first luma, and their chroma, stand."""

    def decode(data: bytes, picture: Picture) -> Array:
        _even(picture)
        quads = _rows(data, picture, 2 * picture.width, picture.height).reshape(picture.height, -1, 4)
        return _colours(quads[:, np.newaxis, :, luma::2], quads[:, :, cb], quads[:, :, cr], picture.ycbcr)

    return decode


def _semi_planar(cb: int, cr: int) -> Callable[[bytes, Picture], Array]:
    """A plane of luma, then one of chroma in pairs, at half the width and height."""

    def decode(data: bytes, picture: Picture) -> Array:
        _even(picture, height=True)
        start = max(picture.stride, picture.width) * picture.height
        pairs = _rows(data, picture, picture.width, picture.height // 2, start).reshape(picture.height // 2, -1, 2)
        return _colours(_quarters(data, picture), pairs[:, :, cb], pairs[:, :, cr], picture.ycbcr)

    return decode


def _planar(cb: int, cr: int) -> Callable[[bytes, Picture], Array]:
    """Three planes: luma, and chroma at half the width and height."""

    def decode(data: bytes, picture: Picture) -> Array:
        _even(picture, height=True)
        stride = max(picture.stride, picture.width)
        start, half, rows = stride * picture.height, stride // 2, picture.height // 2
        planes = [
            _rows(data, picture, picture.width // 2, rows, start + half * rows * number, half) for number in (0, 1)
        ]
        return _colours(_quarters(data, picture), planes[cb], planes[cr], picture.ycbcr)

    return decode


def _quarters(data: bytes, picture: Picture) -> Bytes:
    """The plane of luma as (H/2, 2, W/2, 2): the four pixels of a chroma sample together."""
    luma = np.ascontiguousarray(_rows(data, picture, picture.width, picture.height))
    return luma.reshape(picture.height // 2, 2, picture.width // 2, 2)


def _colours(luma: Bytes, cb: Bytes, cr: Bytes, ycbcr: Ycbcr) -> Array:
    """Luma (h, rows, w, columns), where ``rows`` x ``columns`` pixels share a sample of chroma (h, w) → (H, W, 3)."""
    table = _tables(ycbcr)
    light = table.luma[luma]
    chroma = (table.red[cr], table.green_cb[cb] + table.green_cr[cr], table.blue[cb])
    image = np.empty((*luma.shape, 3), np.uint8)
    total = np.empty_like(light)
    for channel, colour in enumerate(chroma):
        np.add(light, colour[:, np.newaxis, :, np.newaxis], out=total)
        np.right_shift(total, FRACTION_BITS, out=total)
        np.clip(total, 0, 255, out=total)
        image[..., channel] = total
    return image.reshape(luma.shape[0] * luma.shape[1], luma.shape[2] * luma.shape[3], 3)


@dataclass(frozen=True, slots=True)
class _Tables:
    """What each value of a byte adds to a colour, with FRACTION_BITS behind the point."""

    luma: Sums
    red: Sums  # of cr
    green_cb: Sums
    green_cr: Sums
    blue: Sums  # of cb


@functools.lru_cache(maxsize=8)
def _tables(ycbcr: Ycbcr) -> _Tables:
    """ITU-R BT.601-7, 2.5.1 to 2.5.4, solved for the colours."""
    values = np.arange(256, dtype=np.float64)
    luma = values if ycbcr.full else (values - 16) * (255 / 219)
    chroma = (values - 128) * (1.0 if ycbcr.full else 255 / 224)
    green = 1 - ycbcr.red - ycbcr.blue
    to_red, to_blue = 2 * (1 - ycbcr.red), 2 * (1 - ycbcr.blue)

    def table(share: NDArray[np.float64], half: float = 0.0) -> Sums:
        return np.asarray(np.rint(share * (1 << FRACTION_BITS) + half), np.int16)

    return _Tables(
        luma=table(luma, half=(1 << FRACTION_BITS) / 2),  # so that the shift rounds
        red=table(chroma * to_red),
        green_cb=table(chroma * -to_blue * ycbcr.blue / green),
        green_cr=table(chroma * -to_red * ycbcr.red / green),
        blue=table(chroma * to_blue),
    )


DECODERS: dict[str, Callable[[bytes, Picture], Array]] = {
    "RGB3": _rgb,
    "BGR3": _bgr,
    "YUYV": _packed(luma=0, cb=1, cr=3),
    "YVYU": _packed(luma=0, cb=3, cr=1),
    "UYVY": _packed(luma=1, cb=0, cr=2),
    "VYUY": _packed(luma=1, cb=2, cr=0),
    "NV12": _semi_planar(cb=0, cr=1),
    "NV21": _semi_planar(cb=1, cr=0),
    "YU12": _planar(cb=0, cr=1),
    "YV12": _planar(cb=1, cr=0),
    "MJPG": _jpeg,
    "JPEG": _jpeg,
    "GREY": _grey,
    "Y16 ": _grey16,
}
