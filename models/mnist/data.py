"""MNIST in the folder that ``EDGED_DATA`` names, and which of its training images calibrate instead of train.

The data are third-party (LeCun et al., CC BY-SA 3.0) and no part of the repository: ``mnist/mnist_train.npz`` and
``mnist/mnist_test.npz`` hold ``x`` uint8 (N, 28, 28) and ``y`` (N,), sorted by label. Whatever is drawn here is
stratified and shuffled with NumPy's legacy generator, whose stream is frozen for ever (NEP 19).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models import thirdparty

Images: TypeAlias = NDArray[np.uint8]
Labels: TypeAlias = NDArray[np.int64]

LABELS = tuple("0123456789")
WHITE = 256  # a grey is divided by this; a power of two keeps every input exact in float32
CALIBRATION = 1000

_SEED = 20242


def folder() -> Path:
    """Where the two files are, or would be."""
    return thirdparty.folder("mnist")


def train() -> tuple[Images, Labels]:
    """Images to fit weights on: 59,000, shuffled. Raises OSError without the data, as all here."""
    return _drawn("train", slice(CALIBRATION, None))


def calibration() -> tuple[Images, Labels]:
    """1,000 training images that are kept from training, the same number of each class."""
    return _drawn("train", slice(CALIBRATION))


def test(count: int = 10_000) -> tuple[Images, Labels]:
    """The first ``count`` test images of a fixed shuffle in which every stretch has all classes alike."""
    return _drawn("test", slice(count))


def _drawn(part: Literal["train", "test"], chosen: slice) -> tuple[Images, Labels]:
    with np.load(folder() / f"mnist_{part}.npz", allow_pickle=False) as archive:
        images, labels = archive["x"], archive["y"].astype(np.int64)
    order = _dealt(labels)[chosen]
    return images[order], labels[order]


def _dealt(labels: Labels) -> NDArray[np.int64]:
    """All indices, shuffled within each class, the classes dealt out evenly along the whole order."""
    random = np.random.RandomState(_SEED)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + random.random_sample()) / len(members)
    return np.argsort(place, kind="stable")
