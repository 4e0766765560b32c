"""The last pass of a NIR import: the canonical graph → a bundle with report and card.

The report says what the file holds and how it was read; with labelled samples also how good it is and NeuroBench's
fields. The same inputs give the same bytes on one machine. Elsewhere golden data may differ in their last bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from cloud_sync.convert import report as reports
from cloud_sync.convert.bundle import CONVERTER, Identity
from cloud_sync.convert.card import input_line, percent
from cloud_sync.convert.evaluate import accuracy, run_spiking
from cloud_sync.convert.network import Floats
from cloud_sync.convert.nir.semantics import Semantics
from cloud_sync.convert.report import Cost, Evaluation, share, spiking_cost
from cloud_sync.convert.step import SpikingNetwork
from edged import __version__
from edged.bundle import manifest as said
from edged.bundle.golden import POOL_ROWS, make_golden
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.neurons import NEURONS
from edged.bundle.graph.plans import window_plan
from edged.bundle.graph.probe import probe_batch
from edged.bundle.graph.spec import READOUT, GraphSpec
from edged.bundle.graph.stock import Stock
from edged.bundle.loaded import Bundle
from edged.bundle.manifest import Converter, Input, ManifestDraft, Output, Readout, State
from edged.bundle.writer import write_bundle
from edged.errors import BundleError

SCHEMA = "edged.report.nir.v1"

_GOLDEN_SEED = 1  # any, but always the same
_AMPLITUDES = (1, 4, 16, 64, 256, 1024)  # of golden inputs: a file's weights may expect numbers far above 1
_BATCH = 16  # windows at a time: 300 event frames of 2 x 34 x 34 are 44 MB


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """A NIR file as it was read: the network, what was chosen for what the file leaves open, and the file's sha256."""

    network: SpikingNetwork
    semantics: Semantics
    preset: str
    sha256: str
    notes: tuple[str, ...] = ()


class NirReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The whole report. Where samples were given, ``accuracy`` is that of the manifest's readout, and ``spiking`` has
    NeuroBench's fields. ``amplitude`` is that of the golden inputs."""

    schema: str
    nir_sha256: str
    preset: str
    semantics: str
    timesteps: int
    layers: tuple[str, ...]
    parameters_bytes: int
    states_bytes: int
    amplitude: int
    evaluated_on: str | None = None
    samples: int | None = None
    accuracy: float | None = None
    spiking: Cost | None = None
    notes: tuple[str, ...] = ()


def write(
    dest: Path, made: Imported, entry: Input, identity: Identity, readout: Readout, evaluation: Evaluation | None
) -> tuple[Bundle, NirReport]:
    """Write the bundle to ``dest``, which must not exist. Raises BundleError; then nothing was written."""
    manifest = draft(made, entry, identity, readout)
    said.check_draft(manifest)  # before the long work
    spec = said.graph_spec(manifest)
    model = check_step_graph(made.network.graph.model, spec)
    probe_batch(model, spec)
    golden, amplitude = _golden(model, spec)
    report = _report(made, spec, model, amplitude, evaluation)
    card = _card(manifest, identity.notes, report)
    text = reports.encode(report)
    return write_bundle(dest, manifest=manifest, model=model, golden=golden, report=text, card=card), report


def draft(made: Imported, entry: Input, identity: Identity, readout: Readout) -> ManifestDraft:
    """Everything the manifest says about an imported network."""
    graph = made.network.graph
    encoding = entry.encoding
    return ManifestDraft(
        name=identity.name,
        version=identity.version,
        release_counter=identity.release_counter,
        description=identity.description,
        license=identity.license,
        timesteps=made.network.steps,
        inputs=(entry,),
        states=tuple(State(input=s.input, output=s.output, shape=s.shape, neuron=s.neuron) for s in graph.states),
        output=Output(name=graph.output, classes=graph.classes),
        readout=readout,
        labels=identity.labels,
        semantics=said.Semantics(
            reset=_reset(made),
            comparison=made.semantics.comparison,
            source=f"NIR; preset {made.preset or 'none'}; {made.semantics}",
            dt_us=encoding.dt_us if isinstance(encoding, said.EventFrames) else None,
        ),
        converter=Converter(name=CONVERTER, version=__version__),
    )


def _reset(made: Imported) -> Any:
    ops = {state.neuron for state in made.network.graph.states if state.neuron and NEURONS[state.neuron].spiking}
    chosen = made.semantics
    found = {(chosen.if_reset or chosen.reset) if op.startswith("IF") else chosen.reset for op in ops}
    return "none" if not found else found.pop() if len(found) == 1 else "mixed"


def _golden(model: onnx.ModelProto, spec: GraphSpec) -> tuple[dict[str, Floats], int]:
    """Golden data from noise, as loud as it must be for the network to answer; and how loud that is."""
    first: BundleError | None = None
    for amplitude in _AMPLITUDES:
        try:
            return make_golden(model, spec, _GOLDEN_SEED, _noise(spec) * np.float32(amplitude)), amplitude
        except BundleError as error:
            first = first or error
    assert first is not None
    raise BundleError(f"{first.message}, noise of up to {_AMPLITUDES[-1]} included", "is the network alive?")


def _noise(spec: GraphSpec) -> Floats:
    """Spike trains of different rate (N, T, *shape), or images of different brightness (N, *shape)."""
    entry, rng = spec.inputs[0], np.random.default_rng(_GOLDEN_SEED)
    shape = (spec.timesteps, *entry.shape) if entry.sequence else entry.shape
    level = rng.uniform(0.2, 1.0, (POOL_ROWS, *(1 for _ in shape)))
    noise = rng.random((POOL_ROWS, *shape), dtype=np.float32)
    return np.asarray(noise < 0.5 * level if entry.sequence else noise * level, np.float32)


def _report(
    made: Imported, spec: GraphSpec, model: onnx.ModelProto, amplitude: int, evaluation: Evaluation | None
) -> NirReport:
    network = made.network
    parameters = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    return NirReport(
        schema=SCHEMA,
        nir_sha256=made.sha256,
        preset=made.preset,
        semantics=str(made.semantics),
        timesteps=spec.timesteps,
        layers=tuple(f"{layer.stands_for}: {list(layer.shape)}" for layer in network.neurons),
        parameters_bytes=4 * parameters,
        states_bytes=4 * sum(math.prod(state.shape) for state in spec.states),
        amplitude=amplitude,
        evaluated_on=evaluation.name if evaluation else None,
        samples=len(evaluation.samples) if evaluation else None,
        accuracy=_accuracy(spec, model, evaluation),
        spiking=_cost(network, evaluation),
        notes=made.notes,
    )


def _accuracy(spec: GraphSpec, model: onnx.ModelProto, evaluation: Evaluation | None) -> float | None:
    if evaluation is None or evaluation.labels is None:
        return None
    return share(accuracy(readouts(spec, model, evaluation.samples), evaluation.labels))


def _cost(network: SpikingNetwork, evaluation: Evaluation | None) -> Cost | None:
    if evaluation is None or not network.synapses or not network.neurons:  # shares of nothing
        return None
    activity = run_spiking(network, evaluation.samples, network.steps)
    return msgspec.structs.replace(spiking_cost(network, network.steps, activity, evaluation), accuracy=None)


def readouts(spec: GraphSpec, model: onnx.ModelProto, samples: Floats) -> Floats:
    """What the manifest's readout makes of samples (N, *shape) or (N, T, *shape): (N, classes)."""
    entry, plan = spec.inputs[0], Stock(window_plan(model, spec, "scan"))
    scores = []
    for start in range(0, len(samples), _BATCH):
        batch = samples[start : start + _BATCH]
        feed = np.ascontiguousarray(np.swapaxes(batch, 0, 1)) if entry.sequence else batch
        scores.append(plan.run({entry.name: feed})[READOUT])
    return np.concatenate(scores)


def _card(manifest: ManifestDraft, notes: str, report: NirReport) -> str:
    window = manifest.readout.window
    lines = [f"# {manifest.name} {manifest.version}", "", manifest.description, ""]
    lines += [notes.strip(), ""] if notes else []
    lines += [
        "## What it is",
        "",
        f"A spiking network, imported from a NIR file. It runs {manifest.timesteps} steps; the scores are its output's",
        f"{manifest.readout.kind} over steps {window.start} ≤ t < {window.stop}.",
        "",
        f"- Input: {input_line(manifest.inputs[0])}",
        f"- Classes: {', '.join(manifest.labels)}",
        f"- Neurons: {'; '.join(report.layers) or 'none that spike'}",
        f"- Parameters: {report.parameters_bytes:,} bytes; state of one sample: {report.states_bytes:,} bytes",
        f"- The file's sha256: `{report.nir_sha256}`",
        f"- What the file leaves open: {report.semantics} (preset: {report.preset or 'none'})",
        *(f"- Note: {note}" for note in report.notes),
        f"- License: {manifest.license or 'not stated'}",
        "",
        *_quality(report),
    ]
    return "\n".join(lines)


def _quality(report: NirReport) -> list[str]:
    if report.samples is None:
        return []
    lines = ["## Quality and cost (NeuroBench fields)", "", f"On {report.samples} samples ({report.evaluated_on}):", ""]
    if report.accuracy is not None:
        lines.append(f"- {percent(report.accuracy)} right")
    if report.spiking is not None:
        done = report.spiking.synaptic_operations
        lines.append(
            f"- {done.effective_macs:,.0f} effective MACs and {done.effective_acs:,.0f} effective ACs a sample"
        )
        lines.append(f"- {report.spiking.membrane_updates:,} membrane updates a sample")
        lines.append(f"- {percent(report.spiking.activation_sparsity)} of all activations were zero")
    return [*lines, ""]
