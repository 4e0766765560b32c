"""The model card of ``nmnist``, from manifest and report."""

from __future__ import annotations

from cloud_sync.convert.card import cost_rows, percent
from edged.bundle.manifest import ManifestDraft
from models.nmnist import data
from models.nmnist.report import TrainedReport


def card(manifest: ManifestDraft, report: TrainedReport) -> str:
    """The card as Markdown."""
    head = f"# {manifest.name} {manifest.version}\n\n{manifest.description}\n"
    return "\n".join([head, _IN, _FROM, _what(manifest, report), _quality(report), _cost(report)])


_IN = """## What goes in

A recording of an event camera as N-MNIST has them: a `.bin` or `.bs2` file of five bytes an event, x and y from 0 to
33. Time counts from the first event. The device bins it into 12 frames of 26 ms, one channel a polarity (off, then on),
1 where a pixel saw one event or more. What comes after 312 ms is left out; a shorter recording is silent for the rest.
Frames that were made elsewhere are taken too: an array (12, 2, 34, 34) of zeros and ones.
"""

_FROM = """## Where it came from

`models/nmnist/train.py` trained it in PyTorch on 1,000 recordings of N-MNIST's training part (Orchard et al.,
*Converting Static Image Datasets to Spiking Neuromorphic Datasets Using Saccades*, 2015, CC BY-SA 4.0), through time
with surrogate gradients. Recordings were bent, turned, moved and thinned out at random. Nothing was chosen on the test
recordings. A demonstration, not a product for reading post.
"""


def _what(manifest: ManifestDraft, report: TrainedReport) -> str:
    entry = manifest.inputs[0]
    step_ms = data.STEP_US // 1000
    return f"""## What it is

Four convolutions with stride 2, each with its spiking neurons (binary spikes, reset by subtraction), and a dense layer.
The neurons of the first two layers leak: half of a potential is gone after a step. Those of the last two do not.
It runs {report.timesteps} time steps of {step_ms} ms, one event frame each; the scores are the sum of the outputs.
Its weights lie on a grid on which every engine computes the same bits.

- Input: `{entry.name}`, float32 {list(entry.shape)} at each step
- Classes: {", ".join(manifest.labels)}
- License: {manifest.license}
"""


def _quality(report: TrainedReport) -> str:
    found = report.cross_validation
    low, high = (percent(end) for end in found.confidence_95)
    return f"""## Quality

| on | accuracy |
|---|---|
| {report.evaluated_on} | {percent(report.spiking.accuracy)} |
| {found.recordings:,} training recordings, cross-validated | {percent(found.accuracy)} |

Cross-validation trains {len(found.folds)} networks by the same recipe, each on the recordings outside of one fold, and
asks it about that fold: {", ".join(percent(fold) for fold in found.folds)}. The standard deviation
between folds is {100 * found.deviation:.2f} points; the true accuracy of such a network lies between {low} and
{high} with 95 % confidence. Of {report.samples} test recordings, one more mistake is {100 / report.samples:.0f} points.
The recipe was chosen among a few by what they reached on two of the folds, so these figures may flatter it a little.
"""


def _cost(report: TrainedReport) -> str:
    rows = [f"| {name} | {figure} |" for name, figure, _ in cost_rows(report.spiking, report.spiking)]
    return "\n".join(
        [
            "## Cost of one recording (NeuroBench fields)",
            "",
            f"Summed over {report.timesteps} steps. Every layer sees only spikes and events, so it adds (AC).",
            "",
            "| | spiking |",
            "|---|---|",
            *rows,
            "",
        ]
    )
