"""The three splits of scikit-learn's handwritten digits as 8-bit grey images (8x8, ink bright), the same everywhere.

The arrays come with scikit-learn, so nothing is downloaded and nothing is committed. The split is stratified (each
class is cut by itself) and drawn from a seed with NumPy's legacy generator, whose stream is frozen for ever (NEP 19):
training, calibration, the tests and the demo agree on every machine.

The data set counts the inked dots of 4x4 blocks, 0 to 16. Here such a count is an 8-bit grey, as in a PNG: 16 a dot,
255 at most. So the model has one rule for an image, whether it comes as an array or as a PNG: grey / 256.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Images: TypeAlias = NDArray[np.uint8]
Labels: TypeAlias = NDArray[np.int64]

LABELS = tuple("0123456789")
WHITE = 256  # a grey is divided by this; a power of two keeps every input exact in float32

_SEED = 20240
_CALIBRATION = 0.15  # enough for thresholds (facts: 256 samples and more)
_HELD_OUT = 0.25


def train() -> tuple[Images, Labels]:
    """Images to fit weights on: uint8 (N, 8, 8) of 0..255, and labels (N,)."""
    return _take(0)


def calibration() -> tuple[Images, Labels]:
    """Images to choose thresholds on, also used to watch the training. Shapes as ``train``."""
    return _take(1)


def held_out() -> tuple[Images, Labels]:
    """Images that neither training nor conversion has seen: a quarter of each class. Shapes as ``train``."""
    return _take(2)


def _take(part: int) -> tuple[Images, Labels]:
    # scikit-learn is not a dependency of the product, hence imported here.
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it ships no types

    images, labels = load_digits(return_X_y=True)
    chosen = split(np.asarray(labels))[part]
    return grey(images[chosen].reshape(-1, 8, 8)), labels[chosen].astype(np.int64)


def grey(counts: NDArray[np.float64]) -> Images:
    """The data set's counts, 0..16, as 8-bit grey."""
    return np.minimum(counts * 16, 255).astype(np.uint8)


def split(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Indices of (train, calibration, held-out): each class cut in the same proportions, then shuffled."""
    random = np.random.RandomState(_SEED)
    parts: tuple[list[NDArray[np.int64]], ...] = ([], [], [])
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        held_out = round(_HELD_OUT * len(members))
        calibration = round(_CALIBRATION * len(members))
        cuts = np.split(members, [held_out, held_out + calibration])
        for part, cut in zip(parts, (cuts[2], cuts[1], cuts[0]), strict=True):
            part.append(cut)
    train, calibrate, held = (random.permutation(np.concatenate(part)) for part in parts)
    return train, calibrate, held
