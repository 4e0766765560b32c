"""The last pass for a transformer: converted network and report → a bundle directory with its card.

The same inputs give the same bytes on one machine. Elsewhere golden data may differ in their last bits, and the report
by a sample whose scores nearly tie.
"""

from __future__ import annotations

from pathlib import Path

from cloud_sync.convert import report as reports
from cloud_sync.convert.bundle import CONVERTER, Identity
from cloud_sync.convert.card import cost_rows, input_line, percent
from cloud_sync.convert.transformer import Converted
from cloud_sync.convert.transformer_report import TransformerReport
from edged import __version__
from edged.bundle.golden import make_golden
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.probe import probe_batch
from edged.bundle.loaded import Bundle
from edged.bundle.manifest import Converter, Input, ManifestDraft, Output, Readout, Semantics, State, Window
from edged.bundle.writer import write_bundle

_GOLDEN_SEED = 1  # any, but always the same


def draft(converted: Converted, entry: Input, identity: Identity, ann_sha256: str) -> ManifestDraft:
    """Everything the manifest says about a converted transformer."""
    graph, timesteps = converted.spiking.graph, converted.timesteps
    return ManifestDraft(
        name=identity.name,
        version=identity.version,
        release_counter=identity.release_counter,
        description=identity.description,
        license=identity.license,
        timesteps=timesteps,
        inputs=(entry,),
        states=tuple(State(input=s.input, output=s.output, shape=s.shape, neuron=s.neuron) for s in graph.states),
        output=Output(name=graph.output, classes=graph.classes),
        readout=Readout(kind="mean", window=Window(start=0, stop=timesteps)),
        labels=identity.labels,
        semantics=Semantics(
            reset="subtract",
            comparison=">=",
            source=f"transformer, converted with spikes of {converted.levels} levels and temporal differences",
        ),
        converter=Converter(name=CONVERTER, version=__version__),
        source_ann_sha256=ann_sha256,
    )


def write(
    dest: Path, converted: Converted, entry: Input, identity: Identity, report: TransformerReport, ann_sha256: str
) -> Bundle:
    """Write the bundle to ``dest``, which must not exist. Raises BundleError; then nothing was written."""
    manifest = draft(converted, entry, identity, ann_sha256)
    spec = converted.spiking.graph.spec(converted.timesteps)
    model = check_step_graph(converted.spiking.graph.model, spec)
    probe_batch(model, spec)
    return write_bundle(
        dest,
        manifest=manifest,
        model=model,
        golden=make_golden(model, spec, _GOLDEN_SEED),
        report=reports.encode(report),
        card=card(manifest, identity.notes, report),
    )


def card(manifest: ManifestDraft, notes: str, report: TransformerReport) -> str:
    """The card as Markdown."""
    head = f"# {manifest.name} {manifest.version}\n\n{manifest.description}\n"
    sections = [head, _what(manifest, report), _quality(report), _host(report), _cost(report)]
    if notes:
        sections.insert(1, notes.strip() + "\n")
    return "\n".join(sections)


def _what(manifest: ManifestDraft, report: TransformerReport) -> str:
    return f"""## What it is

A vision transformer, converted without training. Whatever enters a matrix product is carried by signed neurons whose
spikes have {report.levels} sizes (alphabet: 0 and ±1, ±1/2, … of the largest; {len(report.alphabet)} values), with
reset by subtraction. It runs {manifest.timesteps} time steps on the same input; the scores are the mean output.

- Input: {input_line(manifest.inputs[0])}
- Classes: {", ".join(manifest.labels)}
- License: {manifest.license or "not stated"}
"""


def _quality(report: TransformerReport) -> str:
    size = len(report.alphabet)
    rows = [
        f"| spiking, {size} values, T = {p.timesteps} | {percent(p.accuracy)} | {percent(p.agreement)} |"
        for p in report.by_timesteps
    ]
    return "\n".join(
        [
            "## Quality",
            "",
            f"On {report.samples} images ({report.evaluated_on}); levels from {report.calibration_samples} images,",
            f"chosen anew for each T. This bundle is T = {report.timesteps}: {percent(report.spiking.accuracy)}.",
            "Not comparable with binary spikes at the same T: a spike of several sizes says more.",
            "",
            "| network | accuracy | agrees with the ANN |",
            "|---|---|---|",
            f"| the ANN | {percent(report.ann.accuracy)} | |",
            *rows,
            "",
        ]
    )


def _host(report: TransformerReport) -> str:
    rows = [f"| {one.operation} | {one.nodes} | {one.results:,} | {one.macs:,} |" for one in report.host]
    return "\n".join(
        [
            "## What stays floating point",
            "",
            f"These are no neurons. A processor computes them at each of {report.timesteps} steps, on running means;",
            "they have no form on Loihi or other hardware that knows spikes only.",
            "",
            "| operation | nodes | results a step | multiplications a step |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _cost(report: TransformerReport) -> str:
    return "\n".join(
        [
            "## Cost of one image (NeuroBench fields)",
            "",
            f"Weighted layers only, summed over {report.timesteps} steps. NeuroBench counts an addition (AC) where",
            "spikes are 0 and ±1; spikes of several sizes count as multiplications (MAC), though shifts would do.",
            "",
            "| | spiking | ANN |",
            "|---|---|---|",
            *(f"| {name} | {one} | {other} |" for name, one, other in cost_rows(report.spiking, report.ann)),
            "",
        ]
    )
