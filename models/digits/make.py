"""Convert ``ann.onnx`` into the bundle ``digits``.

    python -m models.digits.make [DIRECTORY]

T is the smallest of the reported ones, because time grows with T and four steps keep more than 98 % of the images
right. The weights lie on the exact grid: every engine gives the same scores to the last bit, and graph, report and card
come out with the same bytes on every machine. Golden data record how sums round, so theirs may differ elsewhere.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from cloud_sync.convert.bundle import Identity, input_entry, write
from cloud_sync.convert.load import load
from cloud_sync.convert.network import Floats
from cloud_sync.convert.pipeline import Options, convert
from cloud_sync.convert.report import Evaluation, assess
from cloud_sync.convert.samples import samples
from edged.bundle.loaded import Bundle
from edged.bundle.manifest import Grayscale, Layout, Scale
from models.digits import data
from models.remake import remake

HERE = Path(__file__).parent
ANN = HERE / "ann.onnx"
BUNDLE = HERE / "bundle"

TIMESTEPS = 4
INPUT = input_entry("image", (1, 8, 8), (Layout(axes="HWC"), Grayscale(), Scale(factor=1 / data.WHITE)))

_IDENTITY = Identity(
    name="digits",
    version="1.0.0",
    labels=data.LABELS,
    description="Handwritten digits, 8x8 grey: a small spiking CNN that shows the whole path of a frame.",
    license="Apache-2.0",
    release_counter=1,
    notes="""
## What goes in

One 8x8 image of 8-bit grey, bright ink on dark ground, 0 to 255: an array (8, 8) in a `.npy` file, or a PNG. Both are
divided by 256. Colour PNGs are turned to grey. scikit-learn counts 0 to 16 inked dots a pixel: multiply its arrays by
16 and stop at 255 (`models/digits/data.py` does). Images of another size are refused.

## Where it came from

`models/digits/train.py` trained the ANN on 1,078 of the 1,797 images that come with scikit-learn (Alpaydin and Kaynak,
*Optical Recognition of Handwritten Digits*, UCI, CC BY 4.0); `models/digits/make.py` converted it with 269 others and
judged it on the remaining 450, which neither had seen. At 450 images, differences below one percent are chance.
A demonstration, not a product for reading post.
""",
)


def make(dest: Path) -> Bundle:
    """Write the bundle to ``dest``, which must not exist."""
    network = load(ANN)
    calibration, held_out = encoded(data.calibration()), encoded(data.held_out())
    converted = convert(network, calibration[0], TIMESTEPS, Options(exact=True))
    evaluation = Evaluation(*held_out, "held-out quarter of scikit-learn's digits")
    report = assess(network, calibration[0], converted, evaluation)
    return write(dest, converted, INPUT, _IDENTITY, report, hashlib.sha256(ANN.read_bytes()).hexdigest())


def encoded(part: tuple[data.Images, data.Labels]) -> tuple[Floats, data.Labels]:
    """Images as the network takes them, by the manifest's rules, and their labels."""
    images, labels = part
    return samples(INPUT, list(np.asarray(images))), labels


if __name__ == "__main__":
    remake("models.digits.make", make, BUNDLE)
