"""The last pass: a converted network with its report → a bundle directory.

The same inputs give the same bytes on one machine. Elsewhere the golden data may differ in their last bits (they record
how sums round), and without ``--exact`` the report may, by a sample whose scores nearly tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloud_sync.convert import report as reports
from cloud_sync.convert.card import card
from cloud_sync.convert.network import Floats
from cloud_sync.convert.pipeline import Converted
from cloud_sync.convert.report import Report
from edged import __version__
from edged.bundle.golden import make_golden
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.loaded import Bundle
from edged.bundle.manifest import (
    Constant,
    Converter,
    Input,
    ManifestDraft,
    Output,
    Preprocess,
    Readout,
    Semantics,
    State,
    Window,
)
from edged.bundle.writer import write_bundle

CONVERTER = "edged-convert"

_GOLDEN_SEED = 1  # any, but always the same
_GOLDEN_POOL = 64  # as many as golden data are chosen from


@dataclass(frozen=True, slots=True)
class Identity:
    """What a person says about a model."""

    name: str
    version: str
    labels: tuple[str, ...]
    description: str = ""
    license: str = ""
    release_counter: int = 0
    notes: str = ""  # Markdown for the card: what goes in, where it came from, what it is not for


def input_entry(name: str, shape: tuple[int, ...], preprocess: tuple[Preprocess, ...]) -> Input:
    """The manifest's input of a converted network: one array, shown unchanged at every step."""
    return Input(name=name, dtype="float32", shape=shape, time="constant", encoding=Constant(), preprocess=preprocess)


def draft(converted: Converted, entry: Input, identity: Identity, ann_sha256: str) -> ManifestDraft:
    """Everything the manifest says about a converted network."""
    graph, timesteps = converted.spiking.graph, converted.spiking.steps
    states = tuple(State(input=s.input, output=s.output, shape=s.shape, neuron=s.neuron) for s in graph.states)
    return ManifestDraft(
        name=identity.name,
        version=identity.version,
        release_counter=identity.release_counter,
        description=identity.description,
        license=identity.license,
        timesteps=timesteps,
        inputs=(entry,),
        states=states,
        output=Output(name=graph.output, classes=graph.classes),
        readout=Readout(kind="mean", window=Window(start=0, stop=timesteps)),
        labels=identity.labels,
        semantics=Semantics(reset="subtract", comparison=">=", source="ReLU network, rate-converted (QCFS thresholds)"),
        converter=Converter(name=CONVERTER, version=__version__),
        source_ann_sha256=ann_sha256,
    )


def write(
    dest: Path, converted: Converted, entry: Input, identity: Identity, report: Report, ann_sha256: str
) -> Bundle:
    """Write the bundle to ``dest``, which must not exist. Raises BundleError; then nothing was written."""
    manifest = draft(converted, entry, identity, ann_sha256)
    spec = converted.spiking.graph.spec(converted.spiking.steps)
    model = check_step_graph(converted.spiking.graph.model, spec)
    return write_bundle(
        dest,
        manifest=manifest,
        model=converted.stored(),
        precision="int8" if converted.options.weights == "int8" else "f32",
        golden=make_golden(model, spec, _GOLDEN_SEED, _noise(converted)),
        report=reports.encode(report),
        card=card(manifest, identity.notes, report),
    )


def _noise(converted: Converted) -> Floats | None:
    """Synthetic golden inputs that reach as far as the calibration images; None where the usual ones, 0 to 1, do.

    Noise of a thousandth of what a network is used to would leave it silent, and golden data would prove nothing.
    """
    low, high = converted.reach
    if 0 <= low < high <= 1:
        return None
    random = np.random.default_rng(_GOLDEN_SEED)
    shape = converted.ann.input_shape
    level = random.uniform(0.2, 1.0, (_GOLDEN_POOL, *(1,) * len(shape)))
    return np.asarray(low + (high - low) * level * random.random((_GOLDEN_POOL, *shape)), np.float32)
