"""The N-MNIST recordings in the folder that ``EDGED_DATA`` names, and how 1,000 of them are split for cross-validation.

The data are third-party (Orchard et al., 2015, CC BY-SA 4.0) and no part of the repository: ``nmnist/train`` and
``nmnist/test`` hold one ``.bs2`` file a recording, and ``labels.txt`` with lines "number label". The two come from the
two parts of N-MNIST itself, so no image of one is in the other. The split is stratified and drawn with NumPy's legacy
generator, whose stream is frozen for ever (NEP 19).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edged.domain import Events
from edged.sources.events import decode_saccade
from models import thirdparty

Labels: TypeAlias = NDArray[np.int64]
Part: TypeAlias = Literal["train", "test"]

LABELS = tuple("0123456789")
SIDE = 34  # pixels of the sensor's window, both ways
POLARITIES: Final = 2  # off, on

# A recording lasts some 306 ms: three saccades of 100 ms. Twelve steps of 26 ms hold it, and four of them a saccade.
TIMESTEPS = 12
STEP_US = 26_000

FOLDS = 5

_SEED = 20241


def folder() -> Path:
    """Where the recordings are, or would be."""
    return thirdparty.folder("nmnist")


def recordings(part: Part) -> tuple[list[Events], Labels]:
    """All recordings of a part in the order of ``labels.txt``, and their labels (N,). Raises OSError without data."""
    lines = (folder() / part / "labels.txt").read_text(encoding="ascii").split()
    found = [decode_saccade((folder() / part / f"{number}.bs2").read_bytes()) for number in lines[::2]]
    return found, np.array(lines[1::2], dtype=np.int64)


def folds(labels: Labels) -> Labels:
    """Which of FOLDS parts each recording belongs to, (N,): every class is dealt out evenly."""
    random = np.random.RandomState(_SEED)
    dealt = np.zeros_like(labels)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        dealt[members] = np.arange(len(members)) % FOLDS
    return dealt
