"""Convert ``ann.onnx`` into the bundle ``spikeformer-digits``.

    python -m models.spikeformer_digits.make [DIRECTORY]

Four steps with spikes of four sizes keep all but a fraction of a percent of the ANN's accuracy; the report has the
other numbers of steps. Graph and manifest come out with the same bytes on every machine, for the levels are rounded.
Golden data record how sums round, and a sample whose scores nearly tie may count otherwise elsewhere.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cloud_sync.convert.bundle import Identity
from cloud_sync.convert.report import Evaluation
from cloud_sync.convert.transformer import LEVELS, convert
from cloud_sync.convert.transformer_bundle import write
from cloud_sync.convert.transformer_load import load
from cloud_sync.convert.transformer_report import assess
from edged.bundle.loaded import Bundle
from models.digits import data
from models.digits.make import INPUT, encoded
from models.remake import remake

HERE = Path(__file__).parent
ANN = HERE / "ann.onnx"
BUNDLE = HERE / "bundle"

TIMESTEPS = 4

_IDENTITY = Identity(
    name="spikeformer-digits",
    version="1.0.0",
    labels=data.LABELS,
    description="Handwritten digits, 8x8 grey: a tiny vision transformer that shows attention with spikes.",
    license="Apache-2.0",
    release_counter=1,
    notes="""
## What goes in

One 8x8 image of 8-bit grey, bright ink on dark ground, 0 to 255: an array (8, 8) in a `.npy` file, or a PNG. Both are
divided by 256, as for the bundle `digits`, whose images and splits these are (`models/digits/data.py`).

## Where it came from

`models/spikeformer_digits/train.py` trained the ANN (two blocks of width 32, two heads, patches of 2x2) on 1,078 of the
1,797 images that come with scikit-learn (Alpaydin and Kaynak, *Optical Recognition of Handwritten Digits*, UCI, CC BY
4.0); `models/spikeformer_digits/make.py` converted it with 269 others and judged it on the remaining 450, which neither
had seen. At 450 images, differences below one percent are chance. A demonstration: the network `digits` is smaller,
faster and as good.
""",
)


def make(dest: Path) -> Bundle:
    """Write the bundle to ``dest``, which must not exist."""
    network = load(ANN)
    calibration, held_out = encoded(data.calibration()), encoded(data.held_out())
    converted = convert(network, calibration[0], TIMESTEPS, LEVELS)
    report = assess(calibration[0], converted, Evaluation(*held_out, "held-out quarter of scikit-learn's digits"))
    return write(dest, converted, INPUT, _IDENTITY, report, hashlib.sha256(ANN.read_bytes()).hexdigest())


if __name__ == "__main__":
    remake("models.spikeformer_digits.make", make, BUNDLE)
