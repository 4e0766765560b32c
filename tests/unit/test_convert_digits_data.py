"""The split of the handwritten digits: complete, disjoint, stratified, shuffled, and the same on every machine."""

from __future__ import annotations

import hashlib

import numpy as np

from models.digits import data


def test_the_splits_cover_every_image_once_and_hold_out_at_least_a_fifth_of_each_class() -> None:
    labels = np.repeat(np.arange(10), 180)
    train, calibration, held_out = data.split(labels)
    assert sorted(np.concatenate([train, calibration, held_out])) == list(range(1800))
    assert np.bincount(labels[held_out]).min() >= 36
    assert np.bincount(labels[calibration]).min() >= 27


def test_the_held_out_split_is_shuffled_and_never_changes() -> None:
    images, labels = data.held_out()
    assert images.shape == (450, 8, 8)
    assert images.dtype == np.uint8
    assert images.max() == 255
    assert len(set(labels[:20])) > 5  # not sorted by class
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert digest == "d74f0494f6b500bbe1052364568e3734c19ebc893185e0577457149804f8f6b4"
