"""Turns payloads into one sample of a model's input, as the manifest says: preprocessing, event frames, checks.

Every refusal is a FrameRejected that says what arrived and what is expected. NumPy only.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

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
)  # fmt: skip
from edged.domain import Array, Events, Payload
from edged.errors import FrameRejected

Floats = NDArray[np.float32]
BT601 = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601 luma of red, green, blue
EVENTS_AT_ONCE = 1 << 18  # of a long recording: what is in work stays small beside the recording itself


def encode(entry: Input, timesteps: int, payload: Payload) -> Floats:
    """One sample, float32: (*shape) for a constant input, (T, *shape) for a sequence. Raises FrameRejected."""
    if isinstance(payload, Events):
        if not isinstance(entry.encoding, EventFrames):
            raise FrameRejected("the frame is an event recording", f"this model takes arrays of shape {entry.shape}")
        values = bin_events(entry.encoding, timesteps, payload)
    else:
        values = _floats(payload)
    for op in entry.preprocess:
        values = _apply(op, values, entry)
    expected = entry.shape if isinstance(entry.encoding, Constant) else (timesteps, *entry.shape)
    if values.shape != expected:
        raise FrameRejected(
            f"the frame has shape {_arrived(payload)}", f"this model takes {_expected(entry, timesteps)}"
        )
    if not np.isfinite(values).all():
        raise FrameRejected("the frame holds numbers that are not finite in float32", "NaN, infinity or overflow")
    return np.ascontiguousarray(values)


def _arrived(payload: Payload) -> str:
    return "of events" if isinstance(payload, Events) else str(payload.shape)


def _expected(entry: Input, timesteps: int) -> str:
    if isinstance(entry.encoding, Sequence):
        return f"one value for each of {timesteps} steps: {(timesteps, *entry.shape)}"
    if isinstance(entry.encoding, EventFrames):
        return f"event recordings, or their frames {(timesteps, *entry.shape)}"
    steps = f" after {', '.join(type(op).__name__.lower() for op in entry.preprocess)}" if entry.preprocess else ""
    return f"{entry.shape}{steps}"


def _floats(payload: Array) -> Floats:
    if payload.dtype.kind not in "biuf":
        raise FrameRejected(f"the frame's type is {payload.dtype}", "it must be numbers: integers, floats or booleans")
    with np.errstate(over="ignore"):  # becomes infinity and is refused as such
        return payload.astype(np.float32)


def _apply(op: Preprocess, values: Floats, entry: Input) -> Floats:
    if isinstance(op, Scale):
        with np.errstate(over="ignore", invalid="ignore"):
            return values * np.float32(op.factor) + np.float32(op.offset)
    if isinstance(op, Layout):
        return _layout(op, values, entry.shape)
    if values.ndim != 3:
        name = type(op).__name__.lower()
        raise FrameRejected(f"{name} needs an image (channels, height, width), got shape {values.shape}")
    if isinstance(op, Grayscale):
        return _grayscale(values)
    if isinstance(op, Resize):
        return resize(values, op.height, op.width)
    return _normalize(op, values)


def _layout(op: Layout, values: Floats, shape: tuple[int, ...]) -> Floats:
    if values.shape == shape:
        return values
    if values.ndim == 2:
        return values[np.newaxis]
    if values.ndim == 3 and op.axes == "HWC":
        return values.transpose(2, 0, 1)
    raise FrameRejected(
        f"the frame has shape {values.shape}", f"it must be an image with the axes {op.axes}, or {shape}"
    )


def _grayscale(values: Floats) -> Floats:
    if values.shape[0] == 1:
        return values
    if values.shape[0] != 3:
        raise FrameRejected(f"grayscale of {values.shape[0]} channels", "the image must have 1 or 3 channels")
    return np.asarray(np.tensordot(BT601, values, axes=1)[np.newaxis], dtype=np.float32)


def _normalize(op: Normalize, values: Floats) -> Floats:
    if values.shape[0] != len(op.mean):
        raise FrameRejected(f"normalize of {values.shape[0]} channels", f"the image must have {len(op.mean)}")
    mean, std = (np.asarray(v, dtype=np.float32).reshape(-1, 1, 1) for v in (op.mean, op.std))
    return np.asarray((values - mean) / std, dtype=np.float32)


def resize(image: Floats, height: int, width: int) -> Floats:
    """Resize (channels, height, width) linearly, antialiased where it shrinks; half-pixel centres."""
    rows, columns = _triangles(image.shape[1], height), _triangles(image.shape[2], width)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(rows @ image @ columns.T, dtype=np.float32)


def _triangles(source: int, target: int) -> Floats:
    """(target, source) weights of the triangle filter; each row sums to 1."""
    ratio = source / target
    support = max(ratio, 1.0)
    centres = (np.arange(target) + 0.5) * ratio
    distance = (np.arange(source) + 0.5)[np.newaxis] - centres[:, np.newaxis]
    weights = np.maximum(0.0, 1.0 - np.abs(distance) / support)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def bin_events(encoding: EventFrames, timesteps: int, events: Events) -> Floats:
    """(T, polarities, height, width) counts of a recording, or 0 and 1. A recording without events is all zeros."""
    _check_events(encoding, events)
    shape = (timesteps, encoding.polarities, encoding.height, encoding.width)
    counts = np.zeros(math.prod(shape), dtype=np.int64)
    start = int(events.t_us[0]) if events.t_us.size and encoding.t0 == "first_event" else 0
    for first in range(0, events.t_us.size, EVENTS_AT_ONCE):
        x, y, on, t = (np.asarray(v[first : first + EVENTS_AT_ONCE], dtype=np.int64) for v in _columns(events))
        step = (t - start) // encoding.dt_us
        if encoding.tail == "clip":
            step = np.minimum(step, timesteps - 1)
        kept = step < timesteps
        channel = (
            np.zeros_like(on) if encoding.polarities == 1 else on if encoding.polarity_order == "off,on" else 1 - on
        )
        flat = np.ravel_multi_index((step[kept], channel[kept], y[kept], x[kept]), shape)
        counts += np.bincount(flat, minlength=counts.size)
    frames = counts.reshape(shape).astype(np.float32)
    return np.minimum(frames, 1.0) if encoding.accumulate == "binary" else frames


def _columns(events: Events) -> tuple[Array, Array, Array, Array]:
    return events.x, events.y, events.polarity, events.t_us


def _check_events(encoding: EventFrames, events: Events) -> None:
    x, y, on, t = (np.asarray(v) for v in _columns(events))
    if not x.shape == y.shape == on.shape == t.shape or t.ndim != 1:
        raise FrameRejected("the recording's arrays differ in length", "x, y, polarity and time must be (N,) each")
    if not t.size:
        return
    if x.min() < 0 or y.min() < 0 or x.max() >= encoding.width or y.max() >= encoding.height:
        raise FrameRejected(
            f"an event lies at ({x.max()}, {y.max()}) or beyond",
            f"this model takes a sensor of {encoding.width} x {encoding.height} pixels",
        )
    if on.min() < 0 or on.max() > 1:
        raise FrameRejected(f"a polarity is {on.max() if on.max() > 1 else on.min()}", "it must be 0 (off) or 1 (on)")
    if t[0] < 0 or (t[1:] < t[:-1]).any():
        raise FrameRejected("the events are not in order of time", "sort the recording by time, from 0 up")
