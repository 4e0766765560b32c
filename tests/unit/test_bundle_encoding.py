"""Payloads become samples as the manifest says, and what cannot become one is rejected with a reason."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edged.bundle.encoding import bin_events, encode, resize
from edged.bundle.manifest import (
    Constant,
    EventFrames,
    Grayscale,
    Input,
    Layout,
    Normalize,
    Preprocess,
    Resize,
    Scale,
    Sequence,
)
from edged.domain import Array, Events
from edged.errors import FrameRejected

EVENTS = EventFrames(
    width=4, height=3, polarities=2, dt_us=1000, t0="first_event", polarity_order="off,on", accumulate="count",
    tail="drop",
)  # fmt: skip


def image(shape: tuple[int, ...], *preprocess: Preprocess) -> Input:
    return Input(name="x", dtype="float32", shape=shape, time="constant", encoding=Constant(), preprocess=preprocess)


def recording(rows: list[tuple[int, int, int, int]]) -> Events:
    x, y, polarity, t = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Events(x.astype(np.uint16), y.astype(np.uint16), polarity.astype(np.uint8), t)


def test_an_array_of_the_right_shape_passes_in_float32() -> None:
    for dtype in (np.uint8, np.int64, np.float16, np.float64, np.bool_):
        found = encode(image((2, 2)), 4, np.ones((2, 2), dtype=dtype))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.ones((2, 2)))


def test_preprocessing_runs_in_order() -> None:
    rgb = np.zeros((2, 2, 3), dtype=np.uint8)
    rgb[..., 1] = 200
    entry = image((1, 2, 2), Layout(axes="HWC"), Grayscale(), Scale(factor=0.5, offset=1))
    np.testing.assert_allclose(encode(entry, 4, rgb), np.full((1, 2, 2), 200 * 0.587 * 0.5 + 1), rtol=1e-6)
    other = image(
        (3, 2, 2), Scale(factor=1 / 200), Layout(axes="HWC"), Normalize(mean=(0.0, 0.5, 0.0), std=(1.0, 0.5, 1.0))
    )
    np.testing.assert_allclose(encode(other, 4, rgb)[1], np.ones((2, 2)), rtol=1e-6)


def test_a_gray_image_serves_a_colour_layout_and_a_finished_one_passes() -> None:
    entry = image((1, 2, 3), Layout(axes="HWC"), Grayscale())
    gray = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(encode(entry, 4, gray), gray[np.newaxis])
    np.testing.assert_array_equal(encode(entry, 4, gray[np.newaxis]), gray[np.newaxis])


@pytest.mark.parametrize(("height", "width"), [(4, 5), (16, 20), (7, 3), (8, 10), (1, 1)])
def test_resizing_agrees_with_pillow(height: int, width: int) -> None:
    source = np.random.default_rng(0).random((8, 10), dtype=np.float32)
    expected = np.asarray(Image.fromarray(source).resize((width, height), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(resize(source[np.newaxis], height, width)[0], expected, atol=1e-5)


def test_a_resized_photo_becomes_the_models_input() -> None:
    entry = image((1, 4, 4), Layout(axes="HW"), Resize(height=4, width=4), Scale(factor=1 / 255))
    assert encode(entry, 4, np.full((9, 13), 255, dtype=np.uint8)) == pytest.approx(np.ones((1, 4, 4)))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (np.ones((3, 2)), r"shape \(3, 2\).*\(2, 2\)"),
        (np.array([["a", "b"], ["c", "d"]]), "type is <U1"),
        (np.ones((2, 2), dtype=np.complex64), "type is complex64"),
        (np.full((2, 2), np.nan), "not finite"),
        (np.full((2, 2), np.inf), "not finite"),
        (np.full((2, 2), 1e300), "not finite"),
        (np.array([[None, 1], [2, 3]], dtype=object), "type is object"),
        (recording([(0, 0, 1, 0)]), "event recording"),
    ],
)
def test_an_array_that_does_not_fit_is_rejected(payload: Array | Events, reason: str) -> None:
    with pytest.raises(FrameRejected, match=reason):
        encode(image((2, 2)), 4, payload)


@pytest.mark.parametrize(
    ("entry", "payload", "reason"),
    [
        (image((1, 2, 2), Layout(axes="HW")), np.ones((2, 2, 3)), "axes HW"),
        (image((1, 2, 2), Layout(axes="HW")), np.ones(4), "axes HW"),
        (image((1, 2, 2), Layout(axes="HWC"), Grayscale()), np.ones((2, 2, 4)), "4 channels"),
        (image((1, 2, 2), Grayscale()), np.ones((2, 2)), "grayscale needs an image"),
        (image((2, 2), Normalize(mean=(0.0,), std=(1.0,))), np.ones((2, 2)), "normalize needs an image"),
        (image((2, 2, 2), Normalize(mean=(0.0,), std=(1.0,))), np.ones((2, 2, 2)), "must have 1"),
        (image((2,), Scale(factor=1e30)), np.full(2, 1e30), "not finite"),
    ],
)
def test_what_preprocessing_cannot_take_is_rejected(entry: Input, payload: Array, reason: str) -> None:
    with pytest.raises(FrameRejected, match=reason):
        encode(entry, 4, payload)


def test_a_sequence_has_one_value_for_each_step() -> None:
    entry = Input(
        name="x", dtype="float32", shape=(3,), time="sequence", encoding=Sequence(), preprocess=(Scale(factor=2),)
    )
    np.testing.assert_array_equal(encode(entry, 4, np.ones((4, 3))), np.full((4, 3), 2))
    with pytest.raises(FrameRejected, match="one value for each of 4 steps"):
        encode(entry, 4, np.ones((5, 3)))


def test_events_are_counted_by_step_polarity_and_place() -> None:
    events = recording([(0, 0, 0, 500), (1, 2, 1, 1499), (1, 2, 1, 1499), (3, 1, 0, 1500), (2, 2, 1, 9999)])
    frames = bin_events(EVENTS, 3, events)
    assert frames.shape == (3, 2, 3, 4)
    assert frames[0, 0, 0, 0] == 1
    assert frames[0, 1, 2, 1] == 2
    assert frames[1, 0, 1, 3] == 1, "t0 is the first event: 1500 - 500 is the second millisecond"
    assert frames.sum() == 4, "the last event lies behind the window"


def changed(**fields: object) -> EventFrames:
    values = {name: getattr(EVENTS, name) for name in EVENTS.__struct_fields__}
    return EventFrames(**(values | fields))


def test_every_rule_of_binning_does_what_it_says() -> None:
    events = recording([(0, 0, 1, 500), (0, 0, 1, 700), (1, 1, 0, 1400), (2, 2, 1, 9999)])
    from_start = bin_events(changed(t0="recording"), 3, events)
    assert from_start[1, 0, 1, 1] == 1
    assert bin_events(EVENTS, 3, events)[0, 0, 1, 1] == 1
    assert bin_events(changed(tail="clip"), 3, events)[2, 1, 2, 2] == 1
    assert bin_events(changed(accumulate="binary"), 3, events)[0, 1, 0, 0] == 1
    assert bin_events(changed(polarity_order="on,off"), 3, events)[0, 0, 0, 0] == 2
    merged = bin_events(changed(polarities=1), 3, events)
    assert merged.shape == (3, 1, 3, 4)
    assert merged[0].sum() == 3


def test_a_recording_without_events_is_silence() -> None:
    assert not bin_events(EVENTS, 3, recording([])).any()


def test_event_models_take_finished_frames_too() -> None:
    entry = Input(name="e", dtype="float32", shape=(2, 3, 4), time="sequence", encoding=EVENTS)
    frames = np.ones((5, 2, 3, 4), dtype=np.uint8)
    np.testing.assert_array_equal(encode(entry, 5, frames), frames)
    with pytest.raises(FrameRejected, match="event recordings, or their frames"):
        encode(entry, 6, frames)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([(4, 0, 1, 0)], "sensor of 4 x 3"),
        ([(0, 3, 1, 0)], "sensor of 4 x 3"),
        ([(0, 0, 2, 0)], "polarity is 2"),
        ([(0, 0, 1, 5), (0, 0, 1, 4)], "not in order of time"),
        ([(0, 0, 1, -1)], "not in order of time"),
    ],
)
def test_events_outside_the_sensor_or_out_of_order_are_rejected(
    rows: list[tuple[int, int, int, int]], reason: str
) -> None:
    with pytest.raises(FrameRejected, match=reason):
        bin_events(EVENTS, 3, recording(rows))


def test_event_arrays_of_different_length_are_rejected() -> None:
    good = recording([(0, 0, 1, 0), (1, 1, 0, 1)])
    with pytest.raises(FrameRejected, match="differ in length"):
        bin_events(EVENTS, 3, Events(good.x[:1], good.y, good.polarity, good.t_us))
