"""Convert ``ann.onnx`` into a bundle as ``edged-convert`` does by default. Needs the data (``EDGED_DATA``).

    EDGED_DATA=… python -m models.mnist.make DIRECTORY       # some four minutes of one processor
    cp DIRECTORY/report.json models/mnist/                   # the figures that the tests hold it to

The report judges T = 4, 8, 16 and 32 on all 10,000 test images. The bundle itself is no part of the repository: it is
the proof of the converter, not a model to install.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import msgspec

from cloud_sync.convert.bundle import Identity, input_entry, write
from cloud_sync.convert.load import load
from cloud_sync.convert.network import Floats
from cloud_sync.convert.pipeline import convert
from cloud_sync.convert.report import SWEEP, Evaluation, Report, assess
from cloud_sync.convert.samples import samples
from edged.bundle.loaded import Bundle
from edged.bundle.manifest import Grayscale, Layout, Scale
from models.mnist import data

ANN = Path(__file__).parent / "ann.onnx"
REPORT = Path(__file__).parent / "report.json"

TIMESTEPS = 8
INPUT = input_entry("image", (1, 28, 28), (Layout(axes="HWC"), Grayscale(), Scale(factor=1 / data.WHITE)))

_IDENTITY = Identity(
    name="mnist",
    version="1.0.0",
    labels=data.LABELS,
    description="Handwritten digits, 28x28 grey: a CNN with BatchNorm and max pooling, converted.",
    license="Apache-2.0",
    release_counter=1,
    notes="""
## What goes in

One 28x28 image of 8-bit grey, bright ink on dark ground, 0 to 255: an array (28, 28) in a `.npy` file, or a PNG. Both
are divided by 256. Colour PNGs are turned to grey. Images of another size are refused.

## Where it came from

`models/mnist/train.py` trained the ANN on 59,000 of MNIST's training images (LeCun et al., CC BY-SA 3.0);
`models/mnist/make.py` converted it with the other 1,000 and judged it on the 10,000 test images, which neither had
seen. A demonstration, not a product for reading post.
""",
)


def make(dest: Path, test_images: int = 10_000, sweep: tuple[int, ...] = SWEEP) -> Bundle:
    """Write the bundle to ``dest``, which must not exist. Raises OSError without the data."""
    network = load(ANN)
    calibration, _ = encoded(data.calibration())
    converted = convert(network, calibration, TIMESTEPS, say=_say)
    evaluation = Evaluation(*encoded(data.test(test_images)), f"{test_images:,} test images of MNIST")
    report = assess(network, calibration, converted, evaluation, sweep=sweep, say=_say)
    return write(dest, converted, INPUT, _IDENTITY, report, hashlib.sha256(ANN.read_bytes()).hexdigest())


def encoded(part: tuple[data.Images, data.Labels]) -> tuple[Floats, data.Labels]:
    """Images as the network takes them, by the manifest's rules, and their labels."""
    images, labels = part
    return samples(INPUT, list(images)), labels


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Make the bundle in the directory that is named; print what the report says of each T."""
    parser = argparse.ArgumentParser(prog="python -m models.mnist.make", description="Convert ann.onnx into a bundle.")
    parser.add_argument("directory", type=Path, help="where the bundle goes; must not exist")
    bundle = make(parser.parse_args().directory)
    report = msgspec.json.decode(bundle.read("report.json"), type=Report)
    print(f"ANN     {report.ann.accuracy:.4f} of {report.samples}")
    for point in report.by_timesteps:
        print(f"T = {point.timesteps:2}  {point.accuracy:.4f}, agrees with the ANN on {point.agreement:.4f}")
    print(f"{bundle.name} {bundle.version}, digest {bundle.digest}")


if __name__ == "__main__":
    main()
