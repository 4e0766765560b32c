"""Judge the networks of a cross-validation as a device would run them; write what came out to ``crossvalidation.json``.

    EDGED_DATA=… python -m models.nmnist.crossvalidate FOLDER

FOLDER holds the ``fold*.npz`` that ``train FOLDER`` wrote: each has seen four fifths of the 1,000 training
recordings and is asked about the rest, as the canonical graph on stock ONNX Runtime. ``make`` puts the result into
report and card.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import msgspec
import numpy as np

from cloud_sync.convert.evaluate import run_spiking
from cloud_sync.convert.report import encode
from models.nmnist import data
from models.nmnist.network import frames, network

OUT = Path(__file__).parent / "crossvalidation.json"

_Z95 = 1.96  # standard deviations around the middle 95 % of a normal distribution


class Fold(msgspec.Struct, frozen=True, kw_only=True):
    """One network: of how many recordings that it had not seen it named how many rightly."""

    recordings: int
    right: int

    @property
    def accuracy(self) -> float:
        """The share."""
        return self.right / self.recordings


class CrossValidation(msgspec.Struct, frozen=True, kw_only=True):
    """All of them."""

    folds: tuple[Fold, ...]

    @property
    def recordings(self) -> int:
        """How many recordings were asked about, each once."""
        return sum(fold.recordings for fold in self.folds)

    @property
    def accuracy(self) -> float:
        """Share of all recordings that the network that had not seen them named rightly."""
        return sum(fold.right for fold in self.folds) / self.recordings

    @property
    def deviation(self) -> float:
        """Sample standard deviation of the folds' accuracies."""
        return statistics.stdev(fold.accuracy for fold in self.folds)

    def interval(self) -> tuple[float, float]:
        """Where the true accuracy lies with 95 % confidence (Wilson's score interval)."""
        count, share = self.recordings, self.accuracy
        middle = share + _Z95**2 / (2 * count)
        half = _Z95 * math.sqrt(share * (1 - share) / count + _Z95**2 / (4 * count**2))
        whole = 1 + _Z95**2 / count
        return (middle - half) / whole, (middle + half) / whole


def judge(folder: Path) -> CrossValidation:
    """Run each fold's network on the recordings that it has not seen. Raises OSError without the data."""
    events, labels = data.recordings("train")
    shown, dealt, found = frames(events), data.folds(labels), []
    for fold in range(data.FOLDS):
        held_out = np.flatnonzero(dealt == fold)
        scores = run_spiking(network(folder / f"fold{fold}.npz"), shown[held_out], data.TIMESTEPS).scores
        right = int((scores.argmax(axis=1) == labels[held_out]).sum())
        found.append(Fold(recordings=len(held_out), right=right))
    return CrossValidation(folds=tuple(found))


def read() -> CrossValidation:
    """What was written last."""
    return msgspec.json.decode(OUT.read_bytes(), type=CrossValidation)


def main() -> None:
    """Judge, print, write."""
    parser = argparse.ArgumentParser(prog="python -m models.nmnist.crossvalidate", description="Judge the folds.")
    parser.add_argument("folder", type=Path, help="with fold0.npz … as train wrote them")
    found = judge(parser.parse_args().folder)
    for number, fold in enumerate(found.folds):
        print(f"fold {number}: {fold.accuracy:.4f} ({fold.right} of {fold.recordings})")
    low, high = found.interval()
    print(f"cross-validation: {found.accuracy:.4f} of {found.recordings}; 95 % confidence {low:.4f} to {high:.4f}")
    print(f"standard deviation between folds: {found.deviation:.4f}")
    OUT.write_bytes(encode(found))


if __name__ == "__main__":
    main()
