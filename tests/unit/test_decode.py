"""Decoders of what strangers send: the good, the damaged and the fuzzed."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edged.domain import Events
from edged.errors import FrameRejected
from edged.sources.decode import DECODERS, MAX_BYTES, decode, decode_npy, decode_png
from edged.sources.events import decode_saccade


def npy(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    data = io.BytesIO()
    np.save(data, array, allow_pickle=True)
    return data.getvalue()


def png(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()


def jpeg(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "JPEG", quality=95)
    return data.getvalue()


def events(*rows: tuple[int, int, int, int]) -> bytes:
    return b"".join(bytes([x, y]) + (p << 23 | t).to_bytes(3, "big") for x, y, p, t in rows)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.arange(4, dtype=">f8"),
        np.array(3, dtype=np.int64),
        np.zeros((0, 5), dtype=bool),
    ],
)
def test_npy_round_trip(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    np.testing.assert_array_equal(decode_npy(npy(array)), array)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a .npy"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "cut off"),
        (npy(np.zeros((4, 4)))[:-1], "another size"),
        (npy(np.zeros((4, 4))) + b"x", "another size"),
        (npy(np.array([{"a": 1}], dtype=object)), "no plain numbers"),
        (npy(np.array(["text"])), "no plain numbers"),
        (npy(np.zeros(3)).replace(b"(3,)", b"(-3,)"), "cannot"),
        (npy(np.zeros(3)).replace(b"'shape'", b"'shapo'"), "cannot be read"),
        (npy(np.zeros(3)).replace(b"(3,), ", b"(99999999999999999,)"), "cannot be read|another size"),
    ],
)
def test_a_damaged_npy_is_rejected_with_its_reason(data: bytes, said: str) -> None:
    with pytest.raises(FrameRejected, match=said):
        decode_npy(data)


def test_png_keeps_grey_colour_and_depth() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(decode_png(png(grey)), grey)
    colour = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    np.testing.assert_array_equal(decode_png(png(colour)), colour)
    deep = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    np.testing.assert_array_equal(decode_png(png(deep)), deep)


def test_jpeg_keeps_grey_and_colour() -> None:
    grey = np.add.outer(np.arange(16), np.arange(24)).astype(np.uint8) * 5
    for name in ("a.jpg", "a.JPEG"):
        assert np.abs(np.asarray(decode(name, jpeg(grey))).astype(int) - grey).max() < 6
    colour = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    assert np.abs(np.asarray(decode("a.jpg", jpeg(colour))).astype(int) - colour).max() < 6


def test_a_png_bomb_is_refused_before_its_pixels_are_made() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )
    with pytest.raises(FrameRejected, match=r"too large|not a readable"):
        decode_png(bomb)


def test_events_are_decoded_with_polarity_time_and_carry() -> None:
    found = decode_saccade(events((1, 2, 1, 5), (0, 240, 0, 8191), (33, 3, 0, 10)))
    assert found.x.tolist() == [1, 33]
    assert found.y.tolist() == [2, 3]
    assert found.polarity.tolist() == [1, 0]
    assert found.t_us.tolist() == [5, 10 + 8192]


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "whole number"), (b"1234", "whole number"), (events((1, 1, 1, 9), (1, 1, 1, 3)), "backwards")],
)
def test_damaged_events_are_rejected_with_their_reason(data: bytes, said: str) -> None:
    with pytest.raises(FrameRejected, match=said):
        decode_saccade(data)


def test_the_suffix_chooses_and_an_unknown_one_is_named() -> None:
    assert isinstance(decode("A.BIN", events((1, 1, 1, 1))), Events)
    with pytest.raises(FrameRejected, match=r"'\.gif' are not known"):
        decode("a.gif", b"")
    with pytest.raises(FrameRejected, match="more than a frame may have"):
        decode("a.npy", bytes(MAX_BYTES + 1))


SEEDS = [
    npy(np.arange(12, dtype=np.float32).reshape(3, 4)),
    png(np.eye(8, dtype=np.uint8)),
    jpeg(np.eye(8, dtype=np.uint8)),
    events((1, 2, 1, 3)) * 3,
]


@settings(max_examples=600, deadline=None)
@given(data=st.data(), suffix=st.sampled_from(sorted(DECODERS)), seed=st.sampled_from(SEEDS))
def test_fuzzed_bytes_are_decoded_or_rejected_and_nothing_else(data: st.DataObject, suffix: str, seed: bytes) -> None:
    mutant = bytearray(seed)
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, max(0, len(mutant) - 1)))
        if mutant:
            mutant[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=5))
    try:
        decode(f"f{suffix}", bytes(mutant))
    except FrameRejected as error:
        assert error.message
