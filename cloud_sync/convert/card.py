"""The model card, ``README.md`` of a bundle: what the model is, what goes in, how good it is. Made from the report."""

from __future__ import annotations

from collections.abc import Iterator

from cloud_sync.convert.firing import Firing
from cloud_sync.convert.report import Cost, Report
from edged.bundle.manifest import Input, ManifestDraft

_SPIKES = {
    str(Firing.BINARY): "binary spikes",
    str(Firing.SIGNED): "spikes of -1 and 1",
    str(Firing.ACCUMULATE): "binary spikes",
}


def card(manifest: ManifestDraft, notes: str, report: Report) -> str:
    """The card as Markdown."""
    head = f"# {manifest.name} {manifest.version}\n\n{manifest.description}\n"
    sections = [head, _what(manifest, report), _quality(report), _cost(report)]
    if notes:
        sections.insert(1, notes.strip() + "\n")
    return "\n".join(sections)


def _what(manifest: ManifestDraft, report: Report) -> str:
    extra = "".join(f"{line}\n" for line in _extras(report))
    spikes = _SPIKES[report.firing or Firing.BINARY]
    return f"""## What it is

A spiking network of integrate-and-fire neurons ({spikes}, reset by subtraction), converted from a ReLU network.
It runs {manifest.timesteps} time steps on the same input; the scores are the mean output.
{extra}
- Input: {input_line(manifest.inputs[0])}
- Classes: {", ".join(manifest.labels)}
- License: {manifest.license or "not stated"}
"""


def _extras(report: Report) -> Iterator[str]:
    if report.exact:
        yield "Its weights lie on a grid on which every engine computes the same bits."
    if report.steps:
        yield f"A layer fires when all of its input has come, up to {report.timesteps} times a neuron."
    if report.weights == "int8":
        yield "The weights of each output are whole numbers of 8 bits with one scale, which engines turn into float32."
    if report.unrounded is not None:
        bytes_, whole = report.spiking.footprint.parameters_bytes, report.unrounded
        right = "" if whole.accuracy is None else f"{percent(whole.accuracy)} are right and "
        yield f"They and the biases take {bytes_:,} bytes; in float32 {whole.parameters_bytes:,}, with which"
        yield f"{right}{percent(whole.agreement)} agree with the ANN."
    if report.bias_correction:
        yield "Biases were moved until the means of each channel were the ANN's on the calibration images."
    yield from (f"Note: {note}." for note in report.notes)


def input_line(entry: Input) -> str:
    """What goes in, and how it is prepared."""
    steps = ", then ".join(_step(op) for op in entry.preprocess) or "nothing"
    return f"`{entry.name}`, float32 {list(entry.shape)} after preprocessing ({steps})"


def _step(op: object) -> str:
    name = type(op).__name__.lower()
    fields = ", ".join(f"{field} {getattr(op, field)}" for field in getattr(op, "__struct_fields__", ()))
    return f"{name} {fields}".strip()


def _quality(report: Report) -> str:
    rows = [
        f"| spiking, T = {p.timesteps} | {percent(p.accuracy)} | {percent(p.agreement)} |" for p in report.by_timesteps
    ]
    return "\n".join(
        [
            "## Quality",
            "",
            f"On {report.samples} images ({report.evaluated_on}); thresholds from {report.calibration_samples} images,",
            f"chosen anew for each T. This bundle is T = {report.timesteps}: {percent(report.spiking.accuracy)}.",
            "",
            "| network | accuracy | agrees with the ANN |",
            "|---|---|---|",
            f"| the ANN | {percent(report.ann.accuracy)} | |",
            *rows,
            "",
        ]
    )


def _cost(report: Report) -> str:
    return "\n".join(
        [
            "## Cost of one image (NeuroBench fields)",
            "",
            f"Summed over {report.timesteps} steps. A layer that sees only spikes adds (AC); others multiply (MAC).",
            "What depends on the input alone never changes, so an engine that runs whole windows computes it once.",
            "",
            "| | spiking | ANN |",
            "|---|---|---|",
            *(f"| {name} | {one} | {other} |" for name, one, other in cost_rows(report.spiking, report.ann)),
            "",
        ]
    )


def cost_rows(spiking: Cost, ann: Cost) -> list[tuple[str, str, str]]:
    """(field, spiking, ANN) for each NeuroBench field."""

    def row(name: str, *figures: str) -> tuple[str, str, str]:
        return name, figures[0], figures[1]

    both = (spiking, ann)
    return [
        row("effective MACs", *(f"{c.synaptic_operations.effective_macs:,.0f}" for c in both)),
        row("effective ACs", *(f"{c.synaptic_operations.effective_acs:,.0f}" for c in both)),
        row("dense operations", *(f"{c.synaptic_operations.dense:,.0f}" for c in both)),
        row("membrane updates", *(f"{c.membrane_updates:,}" for c in both)),
        row("activation sparsity", *(percent(c.activation_sparsity) for c in both)),
        row("connection sparsity", *(percent(c.connection_sparsity) for c in both)),
        row("parameters, bytes", *(f"{c.footprint.parameters_bytes:,}" for c in both)),
        row("state of one image, bytes", *(f"{c.footprint.states_bytes:,}" for c in both)),
    ]


def percent(share: float | None) -> str:
    """A share in percent; empty where it is not known."""
    return "" if share is None else f"{100 * share:.2f} %"
