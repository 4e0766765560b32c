"""Vibration of ball bearings in the folder that ``EDGED_DATA`` names, and how it is split: by time, with a gap.

The recordings are third-party (Case Western Reserve University Bearing Data Center) and no part of the repository:
``cwru_bearing`` holds the drive end's accelerometer at 1797 rpm as float32 in g, one recording without a fault and nine
with one: ball, inner race, outer race (at 6 o'clock), each of 7, 14 and 21 thousandths of an inch.

**Rate.** Recordings of faults have 12,000 samples a second. The one without, read at that rate, has its lines at a
quarter of theirs (40.4 Hz for 161.6 Hz): it has 48,000, and a network could name it by that alone. It is brought to
12,000 here, behind a low-pass filter.

**Split.** The first TRAIN of each recording trains, the last TEST judges. What lies between, about a second, is left
out, so that no window of one part touches one of the other.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models import thirdparty

Signal: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.int64]
Part: TypeAlias = Literal["train", "test", "all"]

RATE_HZ = 12_000
WINDOW = 1024  # samples: 85 ms, two and a half turns of the shaft
LABELS = ("normal", "ball", "inner-race", "outer-race")
SIZES = (7, 14, 21)  # thousandths of an inch

TRAIN, TEST = 0.6, 0.3  # of a recording's time

_KINDS = {"ball": "B_{}_DE12", "inner-race": "IR_{}_DE12", "outer-race": "OR@6_{}_DE12"}
_NORMAL = "Normal"
_NORMAL_IS_FASTER = 4  # times
_TAPS = 129  # of the low-pass filter: flat to 4.5 kHz, 60 dB down at 6 kHz and more


def names(sizes: tuple[int, ...] = SIZES) -> dict[str, str]:
    """Name of each recording → its label: the one without a fault, and the faults of these sizes."""
    faults = {form.format(size): label for label, form in _KINDS.items() for size in sizes}
    return {_NORMAL: "normal", **faults}


def signal(name: str) -> Signal:
    """A whole recording at RATE_HZ, in g, (N,). Raises OSError without the data."""
    stored = np.load(thirdparty.folder("cwru_bearing") / f"{name}.npy", allow_pickle=False)
    return _slower(stored) if name == _NORMAL else stored.astype(np.float32)


def part(recording: Signal, which: Part) -> Signal:
    """The samples of a recording that train, or that judge."""
    spans: dict[Part, tuple[float, float]] = {"train": (0, TRAIN), "test": (1 - TEST, 1), "all": (0, 1)}
    start, stop = (round(edge * len(recording)) for edge in spans[which])
    return recording[start:stop]


def windows(recording: Signal, hop: int = WINDOW) -> Signal:
    """(N, 1, WINDOW): a window of one channel every ``hop`` samples, as the model takes them."""
    count = (len(recording) - WINDOW) // hop + 1
    return np.stack([recording[start : start + WINDOW] for start in range(0, count * hop, hop)])[:, np.newaxis]


def samples(
    which: Part, sizes: tuple[int, ...] = SIZES, hop: int = WINDOW, *, normal: bool = True
) -> tuple[Signal, Labels]:
    """Windows of a part of the recordings (N, 1, WINDOW), and their labels (N,). Raises OSError without the data."""
    found = [
        (windows(part(signal(name), which), hop), LABELS.index(label))
        for name, label in names(sizes).items()
        if normal or label != "normal"
    ]
    labels = np.concatenate([np.full(len(made), label) for made, label in found])
    return np.concatenate([made for made, _ in found]), labels


def _slower(recording: NDArray[np.float32]) -> Signal:
    """Every fourth sample behind a windowed-sinc low-pass filter."""
    at = np.arange(_TAPS) - _TAPS // 2
    cut = 5250 / (RATE_HZ * _NORMAL_IS_FASTER)  # cycles a sample
    taps = 2 * cut * np.sinc(2 * cut * at) * np.blackman(_TAPS)
    filtered = np.convolve(recording, taps / taps.sum(), mode="valid")
    return filtered[::_NORMAL_IS_FASTER].astype(np.float32)
