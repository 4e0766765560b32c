"""Pixels as cameras send them → images as models take them: (H, W) or (H, W, 3) red, green, blue. NumPy only, no I/O.

- Formats go by their V4L2 code (kernel documentation, "Image Formats"). 8 bits a sample, ``Y16`` 16.
- A buffer that is too short, or a size that a format cannot have, is a FrameRejected that says so. What comes after the
  last pixel is padding. Rows may be padded too: ``stride`` is the bytes from one to the next.
- Luma and chroma become red, green and blue by the matrix of their standard (ITU-R BT.601, BT.709, BT.2020), rounded
  once.
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
QUADS_AT_ONCE = 8192  # stay in the cache, and below the size from which BLAS would wake other threads up

Bytes = NDArray[np.uint8]


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


# Luma and chroma. All formats are brought to quads: the two lumas and the chroma of two pixels beside each other.


def _packed(order: str) -> Callable[[bytes, Picture], Array]:
    """Quads as they are, in this order (two Y, U for blue, V for red)."""

    def decode(data: bytes, picture: Picture) -> Array:
        _even(picture)
        return _colours(_rows(data, picture, 2 * picture.width, picture.height), order, picture)

    return decode


def _semi_planar(cb: int, cr: int) -> Callable[[bytes, Picture], Array]:
    """A plane of luma, then one of chroma in pairs, at half the width and height."""

    def decode(data: bytes, picture: Picture) -> Array:
        _even(picture, height=True)
        start = max(picture.stride, picture.width) * picture.height
        pairs = _rows(data, picture, picture.width, picture.height // 2, start)
        return _from_planes(data, picture, pairs[:, cb::2], pairs[:, cr::2])

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
        return _from_planes(data, picture, planes[cb], planes[cr])

    return decode


def _from_planes(data: bytes, picture: Picture, cb: Bytes, cr: Bytes) -> Array:
    """Luma at the start of ``data``, and chroma (H/2, W/2), each for two pixels of two rows."""
    luma = _rows(data, picture, picture.width, picture.height)
    quads = np.empty((picture.height // 2, 2, picture.width // 2, 4), np.uint8)
    quads[..., 0::2] = luma.reshape(picture.height // 2, 2, picture.width // 2, 2)
    quads[..., 1] = cb[:, np.newaxis]
    quads[..., 3] = cr[:, np.newaxis]
    return _colours(quads, "YUYV", picture)


def _colours(quads: Bytes, order: str, picture: Picture) -> Array:
    """The colours of quads, as one product of matrices: four bytes each become the six of two pixels."""
    matrix, constant = _matrix(order, picture.ycbcr)
    flat = quads.reshape(-1, 4)
    image = np.empty((len(flat), 6), np.uint8)
    for first in range(0, len(flat), QUADS_AT_ONCE):
        part = flat[first : first + QUADS_AT_ONCE].astype(np.float32) @ matrix
        part += constant
        np.clip(part, 0, 255, out=part)
        image[first : first + QUADS_AT_ONCE] = part
    return image.reshape(picture.height, picture.width, 3)


@functools.lru_cache(maxsize=8)
def _matrix(order: str, ycbcr: Ycbcr) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(4, 6) and (6,): ITU-R BT.601-7, 2.5.1 to 2.5.4, solved for the colours; half a unit more, for it is cut off."""
    luma, chroma = (1.0, 1.0) if ycbcr.full else (255 / 219, 255 / 224)
    green = 1 - ycbcr.red - ycbcr.blue
    to_red, to_blue = 2 * (1 - ycbcr.red) * chroma, 2 * (1 - ycbcr.blue) * chroma
    shares = {
        "U": (0.0, -to_blue * ycbcr.blue / green, to_blue),
        "V": (to_red, -to_red * ycbcr.red / green, 0.0),
    }
    matrix, lumas = np.zeros((4, 2, 3)), iter((0, 1))
    for row, letter in enumerate(order):
        if letter == "Y":
            matrix[row, next(lumas)] = luma
        else:
            matrix[row, :] = shares[letter]
    zeros = np.array([(0.0 if ycbcr.full else 16.0) if letter == "Y" else 128.0 for letter in order])
    flat = matrix.reshape(4, 6)
    return flat.astype(np.float32), (0.5 - zeros @ flat).astype(np.float32)


DECODERS: dict[str, Callable[[bytes, Picture], Array]] = {
    "RGB3": _rgb,
    "BGR3": _bgr,
    "YUYV": _packed("YUYV"),
    "YVYU": _packed("YVYU"),
    "UYVY": _packed("UYVY"),
    "VYUY": _packed("VYUY"),
    "NV12": _semi_planar(cb=0, cr=1),
    "NV21": _semi_planar(cb=1, cr=0),
    "YU12": _planar(cb=0, cr=1),
    "YV12": _planar(cb=1, cr=0),
    "MJPG": _jpeg,
    "JPEG": _jpeg,
    "GREY": _grey,
    "Y16 ": _grey16,
}
