"""Decoders of event-camera recordings: bytes in, ``Events`` out. No I/O.

``.bs2`` and N-MNIST ``.bin``: five bytes an event, ``x``, ``y``, then 24 bits big-endian: polarity (1 bit) and time in
microseconds (23 bits). An event with ``y == 240`` is no event but a carry of the sensor's 13-bit clock (Orchard et al.,
"Converting Static Image Datasets to Spiking Neuromorphic Datasets Using Saccades", 2015, and its reader).
"""

from __future__ import annotations

import numpy as np

from edged.domain import Events
from edged.errors import FrameRejected

EVENT_BYTES = 5
CARRY_Y = 240
CARRY_US = 1 << 13


def decode_saccade(data: bytes) -> Events:
    """Decode ``.bs2`` or ``.bin``. Raises FrameRejected when bytes are missing or time runs backwards."""
    if not data or len(data) % EVENT_BYTES:
        raise FrameRejected(f"an event recording of {len(data)} bytes is not a whole number of 5-byte events")
    raw = np.frombuffer(data, np.uint8).reshape(-1, EVENT_BYTES).astype(np.int64)
    t_us = (raw[:, 2] & 0x7F) << 16 | raw[:, 3] << 8 | raw[:, 4]
    carry = raw[:, 1] == CARRY_Y
    t_us = (t_us + np.cumsum(carry) * CARRY_US)[~carry]
    if np.any(np.diff(t_us) < 0):
        at = int(np.argmax(np.diff(t_us) < 0)) + 1
        raise FrameRejected(f"time runs backwards at event {at}", "the recording is damaged or of another format")
    raw = raw[~carry]
    return Events(
        x=raw[:, 0].astype(np.uint16),
        y=raw[:, 1].astype(np.uint16),
        polarity=(raw[:, 2] >> 7).astype(np.uint8),
        t_us=t_us,
    )
