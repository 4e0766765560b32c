"""Turns the bytes of a file into a payload, by its suffix: ``.npy``, ``.png``, ``.jpg``, or a recording of ``events``.

Decodes what strangers send: sizes are checked before memory is taken, pickles are refused, and everything that is wrong
raises FrameRejected with the reason. Does not look at models: shapes are checked when the frame is encoded.
"""

from __future__ import annotations

import ast
import functools
import io
import math
from collections.abc import Callable

import numpy as np

from edged.domain import Array, Payload
from edged.errors import FrameRejected
from edged.sources.events import decode_aedat, decode_dat, decode_saccade

MAX_BYTES = 64 << 20  # a frame is one input: 64 MiB is far above a 4K image or a long recording
MAX_PIXELS = 64 << 20  # against decompression bombs, which a PNG of a few kilobytes can be
NPY_MAGIC = b"\x93NUMPY"


def decode(name: str, data: bytes) -> Payload:
    """Decode ``data`` as the suffix of ``name`` says. Raises FrameRejected."""
    suffix = name[name.rfind(".") :].lower()
    decoder = DECODERS.get(suffix)
    if decoder is None:
        raise FrameRejected(f"{name}: files of type {suffix!r} are not known", f"known: {', '.join(DECODERS)}")
    if len(data) > MAX_BYTES:
        raise FrameRejected(f"{name}: {len(data)} bytes are more than a frame may have ({MAX_BYTES})")
    return decoder(data)


def decode_npy(data: bytes) -> Array:
    """Decode one array of numbers (NumPy format 1 to 3, NEP 1). Shape as stored."""
    header_end, dtype, shape, fortran = _npy_header(data)
    body = len(data) - header_end
    if math.prod(shape) * dtype.itemsize != body:
        raise FrameRejected(f"a .npy of shape {shape} and type {dtype} needs another size than its {body} bytes")
    array = np.frombuffer(data, dtype, offset=header_end)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _npy_header(data: bytes) -> tuple[int, np.dtype[np.generic], tuple[int, ...], bool]:
    if data[:6] != NPY_MAGIC or len(data) < 10:
        raise FrameRejected("not a .npy file (its first bytes say otherwise)")
    wide = data[6] > 1
    start = 12 if wide else 10
    end = start + int.from_bytes(data[8:start], "little")
    if end > len(data) or end > 10_000:
        raise FrameRejected("the header of the .npy file is cut off or too long")
    return end, *_parse_npy_header(data[:end])


@functools.lru_cache(maxsize=256)  # a source repeats one header; parsing it costs ten times a small frame
def _parse_npy_header(head: bytes) -> tuple[np.dtype[np.generic], tuple[int, ...], bool]:
    try:
        header = ast.literal_eval(head[head.index(b"{") :].decode("utf-8").strip())
        descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
        dtype = np.dtype(descr)
    except (ValueError, TypeError, SyntaxError, KeyError, RecursionError, MemoryError) as error:
        raise FrameRejected(f"the header of the .npy file cannot be read: {error}") from None
    if dtype.kind not in "biuf":
        raise FrameRejected(f"a .npy of type {dtype} holds no plain numbers", "store bool, integers or floats")
    if not isinstance(shape, tuple) or any(type(size) is not int or size < 0 for size in shape):
        raise FrameRejected(f"a .npy of shape {shape} cannot be")
    return dtype, shape, bool(fortran)


def decode_png(data: bytes) -> Array:
    """Decode an image: (H, W) grey or (H, W, 3) colour, uint8. 16-bit grey keeps its depth; alpha is dropped."""
    return _decode_image(data, "PNG")


def decode_jpeg(data: bytes) -> Array:
    """Decode an image: (H, W) grey or (H, W, 3) colour, uint8. One that was cut off is refused.

    Cameras leave out the Huffman tables where they are those of the standard (T.81, K.3): they are taken as such.
    """
    return _decode_image(data, "JPEG")


def _decode_image(data: bytes, kind: str) -> Array:
    from PIL import Image  # here: 2 MB that only a device with images pays

    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise FrameRejected(f"an image of {image.width} by {image.height} pixels is too large")
            if image.mode.startswith("I"):
                return np.asarray(image).astype(np.uint16)
            grey = image.mode in ("1", "L", "LA")
            return np.array(image.convert("L" if grey else "RGB"))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, SyntaxError, ValueError, OSError) as error:
        raise FrameRejected(f"not a readable {kind}: {error}") from None


DECODERS: dict[str, Callable[[bytes], Payload]] = {
    ".npy": decode_npy,
    ".png": decode_png,
    ".jpg": decode_jpeg,
    ".jpeg": decode_jpeg,
    ".bs2": decode_saccade,
    ".bin": decode_saccade,
    ".dat": decode_dat,
    ".aedat": decode_aedat,
}
