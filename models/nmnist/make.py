"""Write the bundle ``nmnist`` from ``weights.npz``. Needs the recordings (``EDGED_DATA``).

    EDGED_DATA=… python -m models.nmnist.make [DIRECTORY]

The weights lie on the exact grid and scores are sums, so graph, report and card come out with the same bytes on every
machine. Golden data record how sums round, so theirs may differ elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from cloud_sync.convert.evaluate import run_spiking
from cloud_sync.convert.report import Cost, Evaluation, encode, share, spiking_cost
from cloud_sync.convert.step import SpikingNetwork
from edged import __version__
from edged.bundle.golden import make_golden
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.probe import probe_batch
from edged.bundle.loaded import Bundle
from edged.bundle.manifest import Converter, ManifestDraft, Output, Readout, Semantics, State, Window
from edged.bundle.writer import write_bundle
from models.nmnist import crossvalidate, data
from models.nmnist.card import card
from models.nmnist.network import INPUT, frames, network
from models.nmnist.report import SCHEMA, CrossValidated, TrainedReport
from models.remake import remake

WEIGHTS = Path(__file__).parent / "weights.npz"
BUNDLE = Path(__file__).parent / "bundle"

_GOLDEN_SEED = 1  # any, but always the same
_RECORDED_STEPS = 2  # of the five that are made: each takes 80 kB, and two keep the bundle below 1 MiB


def make(dest: Path) -> Bundle:
    """Write the bundle to ``dest``, which must not exist. Raises OSError without the recordings."""
    made = network(WEIGHTS)
    spec = made.graph.spec(data.TIMESTEPS, "sum")
    model = check_step_graph(made.graph.model, spec)
    probe_batch(model, spec)
    manifest, report = draft(made), assess(made)
    return write_bundle(
        dest,
        manifest=manifest,
        model=model,
        golden=make_golden(model, spec, _GOLDEN_SEED, most_steps=_RECORDED_STEPS),
        report=encode(report),
        card=card(manifest, report),
    )


def draft(made: SpikingNetwork) -> ManifestDraft:
    """Everything the manifest says."""
    return ManifestDraft(
        name="nmnist",
        version="1.0.0",
        release_counter=1,
        description="Digits that an event camera looks at, 34x34 pixels, two polarities: a small spiking CNN.",
        license="Apache-2.0",
        timesteps=data.TIMESTEPS,
        inputs=(INPUT,),
        states=tuple(State(input=s.input, output=s.output, shape=s.shape, neuron=s.neuron) for s in made.graph.states),
        output=Output(name=made.graph.output, classes=made.graph.classes),
        readout=Readout(kind="sum", window=Window(start=0, stop=data.TIMESTEPS)),
        labels=data.LABELS,
        semantics=Semantics(
            reset="subtract", comparison=">=", dt_us=data.STEP_US, source="PyTorch, trained with surrogate gradients"
        ),
        converter=Converter(name="models.nmnist.make", version=__version__),
    )


def assess(made: SpikingNetwork) -> TrainedReport:
    """Judge the network on the test recordings; what cross-validation says of the recipe stands beside it."""
    events, labels = data.recordings("test")
    evaluation = Evaluation(frames(events), labels, f"the {len(labels)} recordings of nmnist/test")
    activity = run_spiking(made, evaluation.samples, data.TIMESTEPS)
    found = crossvalidate.read()
    low, high = found.interval()
    validated = CrossValidated(
        recordings=found.recordings,
        accuracy=share(found.accuracy),
        confidence_95=(share(low), share(high)),
        deviation=share(found.deviation),
        folds=tuple(share(fold.accuracy) for fold in found.folds),
    )
    cost: Cost = spiking_cost(made, data.TIMESTEPS, activity, evaluation)
    return TrainedReport(
        schema=SCHEMA,
        evaluated_on=evaluation.name,
        samples=len(labels),
        timesteps=data.TIMESTEPS,
        alphabet=(0, 1),
        exact=True,
        spiking=cost,
        cross_validation=validated,
    )


if __name__ == "__main__":
    remake("models.nmnist.make", make, BUNDLE)
