"""The index of known frames: what it finds, what it forgets, what it costs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from edged.buffer.frames import FrameIndex, Home, Place, frame_hash
from edged.errors import StoreError


def filled(window: int, segments: int, each: int) -> tuple[FrameIndex, dict[int, Place]]:
    index, places = FrameIndex(window), {}
    chance = random.Random(0)
    for segment in range(1, segments + 1):
        for seq in range(each):
            frame, stream = chance.getrandbits(64), chance.choice("ab")
            index.add(frame, index.home(segment, "e", stream), seq % 3, seq + 1)
            places[frame] = Place(Home(segment, "e", stream), seq % 3, seq + 1)
    return index, places


def test_every_frame_is_found_where_it_was_put() -> None:
    index, places = filled(100_000, segments=4, each=5000)
    assert len(index) == 20_000
    assert all(index.get(frame) == place for frame, place in places.items())
    assert index.get(12345) is None


def test_whole_segments_are_forgotten_oldest_first_and_the_window_is_kept() -> None:
    index, places = filled(6000, segments=5, each=2500)
    assert index.shrink() == [1, 2]
    assert len(index) == 7500
    assert all((index.get(frame) is None) == (place.home.segment <= 2) for frame, place in places.items())


def test_the_frames_of_a_segment_survive_in_a_file(tmp_path: Path) -> None:
    index, places = filled(100_000, segments=3, each=1000)
    other = FrameIndex(100_000)
    for segment in (3, 1):
        index.save(tmp_path / f"{segment}.frames", segment)
        other.load(tmp_path / f"{segment}.frames", segment)
    assert len(other) == 2000
    assert all(other.get(frame) == (place if place.home.segment != 2 else None) for frame, place in places.items())


def test_an_empty_segment_has_a_file_too(tmp_path: Path) -> None:
    index = FrameIndex(10)
    index.save(tmp_path / "1.frames", 1)
    index.load(tmp_path / "1.frames", 1)
    assert len(index) == 0


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"\xff" * 100])
def test_a_damaged_file_is_a_clear_error(tmp_path: Path, damage: bytes) -> None:
    index, _ = filled(100, segments=1, each=10)
    path = tmp_path / "1.frames"
    path.write_bytes(damage)
    with pytest.raises(StoreError, match=r"1\.frames"):
        index.load(path, 1)


def test_a_flipped_bit_in_a_file_is_seen(tmp_path: Path) -> None:
    index, _ = filled(100, segments=1, each=10)
    path = tmp_path / "1.frames"
    index.save(path, 1)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="checksum"):
        index.load(path, 1)


def test_source_and_key_cannot_be_confused() -> None:
    assert frame_hash("a", b"bc") != frame_hash("ab", b"c")
    assert frame_hash("a", b"b") == frame_hash("a", b"b")
