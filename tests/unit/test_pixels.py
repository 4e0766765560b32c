"""Pixel formats against Pillow, the standards' own matrices and published colour bars; the short and the fuzzed."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edged.errors import FrameRejected
from edged.sources.pixels import BT601, BT709, BT2020, DECODERS, Picture, Ycbcr, to_image

Bytes = NDArray[np.uint8]
FULL601 = Ycbcr(full=True)
SUBSAMPLED_TWICE = ("NV12", "NV21", "YU12", "YV12")
OF_CHROMA = ("YUYV", "YVYU", "UYVY", "VYUY", *SUBSAMPLED_TWICE)
SENT = {  # bytes of one frame of 640 x 480 pixels, by the kernel's documentation of each format
    "RGB3": 921600, "BGR3": 921600, "YUYV": 614400, "YVYU": 614400, "UYVY": 614400, "VYUY": 614400, "NV12": 460800,
    "NV21": 460800, "YU12": 460800, "YV12": 460800, "GREY": 307200, "Y16 ": 614400,
}  # fmt: skip


def layout(code: str, y: Bytes, cb: Bytes, cr: Bytes, pad: int = 0) -> bytes:
    """A frame as the kernel's documentation draws it. ``y`` is (H, W); chroma is that of every pixel."""
    height, width = y.shape
    if code not in SUBSAMPLED_TWICE:
        place = {"Y": y, "U": cb[:, ::2], "V": cr[:, ::2]}
        quads = np.empty((height, width // 2, 4), np.uint8)
        lumas = iter((y[:, ::2], y[:, 1::2]))
        for at, letter in enumerate(code):
            quads[:, :, at] = next(lumas) if letter == "Y" else place[letter]
        return rows(quads.reshape(height, -1), pad)
    u, v = cb[::2, ::2], cr[::2, ::2]
    if code in ("NV12", "NV21"):
        pairs = np.stack((u, v) if code == "NV12" else (v, u), axis=-1).reshape(height // 2, width)
        return rows(y, pad) + rows(pairs, pad)
    planes = (u, v) if code == "YU12" else (v, u)
    return rows(y, pad) + b"".join(rows(plane, pad // 2) for plane in planes)


def rows(values: Bytes, pad: int) -> bytes:
    return np.pad(values, ((0, 0), (0, pad)), constant_values=77).tobytes()


def blocks(seed: int, height: int = 8, width: int = 12) -> tuple[Bytes, Bytes, Bytes]:
    """Random luma, and chroma that is the same in each 2 x 2 pixels, so that every format can carry it."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 256, (height, width), np.uint8)
    cb, cr = (random.integers(0, 256, (height // 2, width // 2), np.uint8).repeat(2, 0).repeat(2, 1) for _ in "uv")
    return y, cb, cr


def by_the_standard(y: Bytes, cb: Bytes, cr: Bytes, ycbcr: Ycbcr) -> NDArray[np.float64]:
    """The colours whose luma and chroma these are: the standard's encoding equations, inverted as a matrix."""
    red, blue = ycbcr.red, ycbcr.blue
    light = np.array([red, 1 - red - blue, blue])
    encode = np.stack([light, ([0, 0, 1] - light) / (2 * (1 - blue)), ([1, 0, 0] - light) / (2 * (1 - red))])
    low, luma, chroma = (0, 255, 255) if ycbcr.full else (16, 219, 224)
    encoded = np.stack([(y - float(low)) / luma, (cb - 128.0) / chroma, (cr - 128.0) / chroma], axis=-1)
    return np.asarray(np.clip(encoded @ np.linalg.inv(encode).T * 255, 0, 255))


@pytest.mark.parametrize("ycbcr", [BT601, BT709, BT2020, FULL601, Ycbcr(0.2126, 0.0722, full=True)])
@pytest.mark.parametrize("code", OF_CHROMA)
def test_every_format_has_the_colours_of_its_standard(code: str, ycbcr: Ycbcr) -> None:
    y, cb, cr = blocks(1)
    for pad in (0, 4):
        picture = Picture(code, 12, 8, (24 if code not in SUBSAMPLED_TWICE else 12) + pad, ycbcr)
        image = to_image(layout(code, y, cb, cr, pad), picture)
        assert image.dtype == np.uint8
        assert image.shape == (8, 12, 3)
        assert np.abs(image - by_the_standard(y, cb, cr, ycbcr)).max() <= 0.501


def test_every_colour_is_that_of_the_standard_rounded_and_within_one_of_pillow() -> None:
    steps = np.arange(0, 256, 5, dtype=np.uint8)
    y, cb, cr = (one.reshape(len(steps), -1).repeat(2, 1) for one in np.meshgrid(steps, steps, steps, indexing="ij"))
    for ycbcr in (BT601, FULL601, BT709):
        picture = Picture("YUYV", y.shape[1], y.shape[0], 0, ycbcr)
        image = to_image(layout("YUYV", y, cb, cr), picture)
        assert np.abs(image - by_the_standard(y, cb, cr, ycbcr)).max() <= 0.501
    pillow = np.asarray(Image.fromarray(np.stack([y, cb, cr], axis=-1), "YCbCr").convert("RGB"))
    image = to_image(layout("YUYV", y, cb, cr), Picture("YUYV", y.shape[1], y.shape[0], 0, FULL601))
    assert np.abs(image.astype(int) - pillow).max() <= 1


@pytest.mark.parametrize(
    ("ycbcr", "bars"),
    [  # 75 % colour bars, as ITU-R BT.801 and SMPTE RP 219 print them: white, yellow, cyan, green, magenta, red, blue
        (BT601, [(180, 128, 128), (162, 44, 142), (131, 156, 44), (112, 72, 58), (84, 184, 198), (65, 100, 212),
                 (35, 212, 114)]),
        (BT709, [(180, 128, 128), (168, 44, 136), (145, 147, 44), (133, 63, 52), (63, 193, 204), (51, 109, 212),
                 (28, 212, 120)]),
    ],
)  # fmt: skip
def test_published_colour_bars_have_their_colours(ycbcr: Ycbcr, bars: list[tuple[int, int, int]]) -> None:
    y, cb, cr = (np.array([[bar[at] for bar in bars]], np.uint8).repeat(2, 1) for at in range(3))
    image = to_image(layout("UYVY", y, cb, cr), Picture("UYVY", 14, 1, 0, ycbcr))
    on = [(1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 1, 0), (1, 0, 1), (1, 0, 0), (0, 0, 1)]
    assert np.abs(image[0, ::2].astype(int) - np.array(on) * 191).max() <= 2  # the bars are rounded to bytes


def test_colours_and_grey_come_as_they_are() -> None:
    values = np.random.default_rng(2).integers(0, 256, (4, 6, 3), np.uint8)
    np.testing.assert_array_equal(to_image(values.tobytes(), Picture("RGB3", 6, 4)), values)
    np.testing.assert_array_equal(to_image(values[:, :, ::-1].tobytes(), Picture("BGR3", 6, 4)), values)
    padded = rows(values.reshape(4, 18), 5)
    np.testing.assert_array_equal(to_image(padded, Picture("RGB3", 6, 4, 23)), values)
    grey = values[:, :, 0]
    np.testing.assert_array_equal(to_image(rows(grey, 3), Picture("GREY", 6, 4, 9)), grey)
    deep = np.random.default_rng(3).integers(0, 1 << 16, (4, 6), np.uint16)
    image = to_image(deep.astype("<u2").tobytes() + b"padding", Picture("Y16 ", 6, 4))
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, deep)


@pytest.mark.parametrize("code", sorted(SENT))
def test_a_frame_that_is_one_byte_short_is_rejected_with_what_came_and_what_is_needed(code: str) -> None:
    picture = Picture(code, 640, 480)
    assert to_image(bytes(SENT[code]), picture).shape[:2] == (480, 640)
    with pytest.raises(FrameRejected, match=rf"cut off: {SENT[code] - 1} bytes came.*needs {SENT[code]}"):
        to_image(bytes(SENT[code] - 1), picture)


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (Picture("YUYV", 3, 2), "its width must be even"),
        (Picture("NV12", 4, 3), "its width and height must be even"),
        (Picture("H264", 4, 4), "not known"),
        (Picture("RGB3", 0, 4), "cannot be"),
        (Picture("RGB3", 4, 1 << 20), "cannot be"),
    ],
)
def test_a_picture_that_cannot_be_is_rejected(picture: Picture, said: str) -> None:
    with pytest.raises(FrameRejected, match=said):
        to_image(bytes(1000), picture)


def jpeg(array: Bytes, **options: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "JPEG", quality=95, **options)
    return data.getvalue()


def without_tables(data: bytes) -> bytes:
    """Leave out every segment DHT (FF C4), as the cameras of UVC do."""
    kept, at = bytearray(data[:2]), 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        kept += b"" if data[at + 1] == 0xC4 else data[at:end]
        at = end
    return bytes(kept) + data[at:]


def test_a_jpeg_of_a_camera_is_decoded_without_the_tables_of_the_standard() -> None:
    ramp = np.stack([np.add.outer(np.arange(32), np.arange(48)) * 3] * 3, axis=-1).astype(np.uint8)
    data = jpeg(ramp)
    bare = without_tables(data)
    assert len(bare) < len(data) - 400
    image = to_image(bare, Picture("MJPG", 48, 32))
    assert np.abs(image.astype(int) - ramp).max() < 12
    np.testing.assert_array_equal(image, to_image(data, Picture("JPEG", 48, 32)))


def test_a_damaged_jpeg_is_rejected_with_its_reason() -> None:
    data = jpeg(np.random.default_rng(4).integers(0, 256, (32, 48, 3), np.uint8))
    for cut in (0, 1, 20, len(data) // 2, len(data) - 300):
        with pytest.raises(FrameRejected, match="not a readable JPEG"):
            to_image(data[:cut], Picture("MJPG", 48, 32))
    with pytest.raises(FrameRejected, match="48 x 32 pixels, not 64 x 32"):
        to_image(data, Picture("MJPG", 64, 32))


JPEG = jpeg(np.random.default_rng(5).integers(0, 256, (16, 16, 3), np.uint8))


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(DECODERS)), st.integers(-1, 24), st.integers(-1, 24), st.integers(0, 80), st.data(),
)  # fmt: skip
def test_fuzzed_bytes_become_an_image_or_are_rejected_and_nothing_else(
    code: str, width: int, height: int, stride: int, data: st.DataObject
) -> None:
    content = data.draw(st.binary(max_size=1500))
    if code in ("MJPG", "JPEG"):
        width, height = 16, 16
        at = data.draw(st.integers(0, len(JPEG)))
        content = JPEG[:at] + content[:20] + JPEG[at + data.draw(st.integers(0, 20)) :]
    try:
        image = to_image(content, Picture(code, width, height, stride))
    except FrameRejected as error:
        assert str(error)
    else:
        assert image.shape[:2] == (height, width)
        assert image.dtype in (np.uint8, np.uint16)
