"""Convert ``ann.onnx`` into the bundle ``bearing``. Needs the recordings (``EDGED_DATA``).

EDGED_DATA=… python -m models.bearing.make [DIRECTORY]
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cloud_sync.convert.bundle import Identity, input_entry, write
from cloud_sync.convert.load import load
from cloud_sync.convert.network import Floats
from cloud_sync.convert.pipeline import convert
from cloud_sync.convert.report import Evaluation, assess
from cloud_sync.convert.samples import samples
from edged.bundle.loaded import Bundle
from edged.bundle.manifest import Layout
from models.bearing import across, data
from models.remake import remake

HERE = Path(__file__).parent
ANN = HERE / "ann.onnx"
BUNDLE = HERE / "bundle"

TIMESTEPS = 16  # the least of the reported ones that names 99 % of the training part rightly; 8 names some 90 %
INPUT = input_entry("vibration", (1, 1, data.WINDOW), (Layout(axes="HW"),))


def make(dest: Path) -> Bundle:
    """Write the bundle to ``dest``, which must not exist. Raises OSError without the recordings."""
    network = load(ANN)
    calibration, _ = encoded("train")
    converted = convert(network, calibration, TIMESTEPS)
    windows, labels = encoded("test")
    evaluation = Evaluation(windows, labels, "the last 30 % of each of ten recordings")
    report = assess(network, calibration, converted, evaluation)
    return write(dest, converted, INPUT, identity(), report, hashlib.sha256(ANN.read_bytes()).hexdigest())


def encoded(which: data.Part) -> tuple[Floats, data.Labels]:
    """Windows of a part as the network takes them, by the manifest's rules, and their labels."""
    windows, labels = data.samples(which)
    return samples(INPUT, list(windows)), labels


def identity() -> Identity:
    """What the card says beside the report."""
    return Identity(
        name="bearing",
        version="1.0.0",
        labels=data.LABELS,
        description="The vibration of a ball bearing, 85 ms at 12 kHz: which fault, if any; a small spiking CNN.",
        license="Apache-2.0",
        release_counter=1,
        notes=_NOTES.replace("ACROSS", _across()),
    )


def _across() -> str:
    rows = [
        f"| {one.size} | {one.right} of {one.windows} | {100 * one.right / one.windows:.0f} % |"
        for one in across.read()
    ]
    return "\n".join(rows)


_NOTES = """
## What goes in

1024 samples of one accelerometer at 12,000 samples a second, in g: an array (1, 1024), from a `.npy` file or from a
source of type `serial-windows`. Another rate or another unit gives answers that mean nothing.

## Where it came from

`models/bearing/train.py` trained the ANN on the drive end's recordings of the Case Western Reserve University Bearing
Data Center at 1797 rpm: one without a fault, nine with a fault of the ball, the inner or the outer race, of 7, 14 or 21
thousandths of an inch. The first 60 % of each recording trained it and chose the thresholds, the last 30 % judge it. A
tenth lies between the two and is left out, so no window of one part shares a sample with one of the other.

## How far to believe it

The figures below are high because the question is easy. Every class of the test part is the same bearing on the same
rig in the same minute as in training; only time has passed. There is one speed and no load, faults were eroded by
sparks and are clean, and there is one recording of a sound bearing. It has 48,000 samples a second, the others 12,000:
it is brought to 12,000 here, for else a network could name it by that alone. T was chosen on the training part.

A harder question is a fault of a size that was never seen. Three more networks of the same recipe, each without the
recordings of one size, named the faults of that size (these are figures of the ANN, each over all three kinds):

| size, thousandths of an inch | named rightly | |
|---|---|---|
ACROSS

Guessing gives a quarter. So this model recognises the faults of these recordings, and cannot be relied on for a bearing
that it was not trained on. A demonstration of the whole path of a vibration sensor, not a diagnosis.
"""


if __name__ == "__main__":
    remake("models.bearing.make", make, BUNDLE)
