"""``edged-convert MODEL.nir``: a NIR file → a bundle, with what the file leaves open from a preset or from options;
``edged-convert BUNDLE --to nir``: a bundle → a NIR file, with what must be said when it is read.

Errors go to the caller. The last line of stdout is ``NAME VERSION DIGEST`` after an import, and after an export the
options with which the file gives the same spikes again. Holds no logic of either.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cloud_sync.convert.arguments import add_identity, add_preprocessing, digest, identity, preprocess, say, settle
from cloud_sync.convert.bundle import input_entry
from cloud_sync.convert.errors import ConversionError
from cloud_sync.convert.nir.bundle import Imported, write
from cloud_sync.convert.nir.exporter import Exported, export
from cloud_sync.convert.nir.file import read
from cloud_sync.convert.nir.importer import INPUT, lower
from cloud_sync.convert.nir.semantics import PRESETS, Semantics
from cloud_sync.convert.report import Evaluation
from cloud_sync.convert.samples import read_labelled, samples
from edged.bundle import manifest
from edged.bundle.archive import opened
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.manifest import Constant, Encoding, EventFrames, Input, Readout, Window

_CHOICES = ("dt", "reset", "comparison", "start", "decay", "emission")


# What a bundle holds and a NIR file has no place for.
LOST = (
    "how long a step is, how neurons reset, how they compare and where their membranes start (see the last line)",
    "the number of steps, the readout and the labels",
    "how a payload becomes an input: encoding, preprocessing, constant or sequence",
    "self-test, report, card, version and signature",
)


def asked(arguments: Sequence[str]) -> bool:
    """Whether a command line is for this module."""
    return _exports(arguments) or any(Path(argument).suffix == ".nir" for argument in arguments)


def run(arguments: Sequence[str]) -> None:
    """Import or export one file. Raises EdgedError; then nothing was written."""
    (run_export if _exports(arguments) else run_import)(arguments)


def _exports(arguments: Sequence[str]) -> bool:
    return any(argument == "--to" or argument.startswith("--to=") for argument in arguments)


def run_export(arguments: Sequence[str]) -> None:
    """Export the graph of one bundle. Raises EdgedError; then nothing was written."""
    options = _export_parser().parse_args(arguments)
    if os.path.lexists(options.out):
        raise ConversionError(f"{options.out} exists", "name a file that does not exist yet")
    if not 0 < options.dt < float("inf"):
        raise ConversionError(f"a step of {options.dt}", "a time above 0")
    with opened(options.bundle) as bundle:
        model = check_step_graph(bundle.read(bundle.manifest.variant.model), bundle.spec)
        comparison = bundle.manifest.semantics.comparison
        made = export(model, bundle.spec, comparison, options.dt, f"{bundle.name} {bundle.version}")
    _write_file(options.out, made)
    for lost in LOST:
        say(f"not in the file: {lost}")
    say(f"wrote {options.out}")
    chosen = made.semantics
    print(f"--dt {chosen.dt:g} --reset {chosen.reset} --comparison '{chosen.comparison}' --start {chosen.start}")


def _write_file(path: Path, made: Exported) -> None:
    """The file appears whole or not at all."""
    from cloud_sync.convert.nir import hdf5  # here: an import leaves HDF5 to a process of its own

    part = path.with_name(f".{path.name}.part")
    try:
        hdf5.write(part, made.tree)
        part.rename(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConversionError(f"{path} cannot be written: {error}") from None


def run_import(arguments: Sequence[str]) -> None:
    """Import one file as the options say. Raises EdgedError; then nothing was written."""
    options = _parser().parse_args(arguments)
    settle(options, options.nir)
    if os.path.lexists(options.out):
        raise ConversionError(f"{options.out} exists", "name a directory that does not exist yet")
    semantics = _semantics(options)
    graph = read(options.nir)
    network = lower(graph, semantics, sequence=options.input != "constant", where=str(options.nir))
    network = replace(network, steps=options.timesteps)
    entry = _entry(options, network.graph.inputs[0].shape)
    who = identity(options, network.graph.classes)
    say(f"{options.nir}: {len(network.neurons)} layers of neurons, read as {semantics}")
    notes = (PRESETS[options.preset].notes,) if options.preset and PRESETS[options.preset].notes else ()
    for note in notes:
        say(f"note: {note}")
    made = Imported(network, semantics, options.preset or "", digest(options.nir), notes)
    evaluation = _evaluation(options, entry, len(who.labels))
    bundle, report = write(options.out, made, entry, who, _readout(options), evaluation)
    if report.accuracy is not None:
        say(f"{100 * report.accuracy:.2f} % right on {report.samples} samples of {report.evaluated_on}")
    say(f"wrote {options.out}")
    print(bundle.name, bundle.version, bundle.digest)


def _semantics(options: argparse.Namespace) -> Semantics:
    """The preset with what was said beside it; without one, reset and comparison must be said."""
    chosen = {name: getattr(options, name) for name in _CHOICES if getattr(options, name) is not None}
    if options.preset is not None:
        base = PRESETS[options.preset].semantics
        return replace(base, **chosen, if_reset=None if options.reset else base.if_reset)
    missing = [f"--{name}" for name in ("reset", "comparison") if name not in chosen]
    if missing:
        raise ConversionError(
            f"a NIR file does not say how its neurons step: {' and '.join(missing)} must be given",
            f"or --preset with the framework that wrote it: {', '.join(PRESETS)}",
        )
    return Semantics(**{"dt": None, **chosen})


def _entry(options: argparse.Namespace, shape: tuple[int, ...]) -> Input:
    encoding, prepared = _encoding(options, shape), preprocess(options)
    if isinstance(encoding, Constant):
        return input_entry(INPUT, shape, prepared)
    return Input(name=INPUT, dtype="float32", shape=shape, time="sequence", encoding=encoding, preprocess=prepared)


def _encoding(options: argparse.Namespace, shape: tuple[int, ...]) -> Encoding:
    if options.input == "constant":
        return Constant()
    if options.input == "sequence":
        return manifest.Sequence()
    if len(shape) != 3 or shape[0] not in (1, 2):
        raise ConversionError(
            f"events do not fit an input of shape {list(shape)}", "(1 or 2 polarities, height, width) is needed"
        )
    if options.step_us is None:
        raise ConversionError("events need --step-us", "how many microseconds of a recording become one step")
    return EventFrames(
        width=shape[2],
        height=shape[1],
        polarities=1 if shape[0] == 1 else 2,
        dt_us=options.step_us,
        t0=options.t0,
        polarity_order=options.polarity_order,
        accumulate=options.accumulate,
        tail=options.tail,
    )


def _readout(options: argparse.Namespace) -> Readout:
    start, stop = options.window or (0, options.timesteps)
    return Readout(kind=options.readout, window=Window(start=start, stop=stop))


def _evaluation(options: argparse.Namespace, entry: Input, classes: int) -> Evaluation | None:
    if options.evaluate is None:
        return None
    payloads, labels = read_labelled(options.evaluate, classes)
    return Evaluation(samples(entry, payloads, options.timesteps), labels, options.evaluate.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edged-convert MODEL.nir", description="Import a spiking network from a NIR file into a bundle."
    )
    add = parser.add_argument
    add("nir", type=Path, metavar="MODEL.nir", help="a file of nir 1.0.8 or before (HDF5)")
    add("--out", type=Path, metavar="DIR", help="the bundle to write; must not exist (default: NAME-bundle)")
    add_identity(parser)
    add("--timesteps", type=int, required=True, metavar="T", help="how many steps a sample lasts")
    add("--readout", choices=("mean", "sum", "last", "max", "first_spike"), default="mean", help="output → scores")
    add("--window", type=_window, metavar="START:STOP", help="the steps that are read out (default: all)")
    add("--evaluate", type=Path, metavar="NPZ", help="payloads (images) and labels to judge on")
    _add_semantics(parser.add_argument_group("what a NIR file leaves open"))
    _add_input(parser.add_argument_group("what a payload is"))
    add_preprocessing(
        parser.add_argument_group("preprocessing, in this order; sequences and events take scale, offset")
    )
    return parser


def _export_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edged-convert BUNDLE --to nir", description="Export the network of a bundle to a NIR file."
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="a bundle directory or file")
    add("--to", choices=("nir",), required=True, help="the format")
    add("--out", type=Path, required=True, metavar="FILE.nir", help="the file to write; must not exist")
    add("--dt", type=float, default=1.0, metavar="TIME", help="one step, in the file's unit of time (default: 1)")
    return parser


def _add_semantics(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--preset", choices=tuple(PRESETS), help="the framework that wrote the file, or nir for its bare equations")
    add("--dt", type=float, metavar="TIME", help="one step, in the unit of the file's time constants")
    add("--reset", choices=("subtract", "zero", "value"), help="a spike subtracts the threshold, or sets 0 or v_reset")
    add("--comparison", choices=(">=", ">"), help="a neuron fires at its threshold, or only above")
    add("--start", choices=("zero", "half", "reset", "leak"), help="where membranes begin: 0, θ/2, v_reset or v_leak")
    add("--decay", choices=("euler", "exponential"), help="1 - dt/τ or exp(-dt/τ)")
    add("--emission", choices=("now", "next"), help="a spike is seen at once, or one step later by everybody")


def _add_input(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--input", choices=("sequence", "events", "constant"), default="sequence",
        help="an array (T, …), a recording of an event camera, or one array shown at every step")  # fmt: skip
    add("--step-us", type=int, metavar="US", help="events: microseconds of a recording for each step")
    add("--t0", choices=("first_event", "recording"), default="first_event", help="events: where time begins")
    add("--polarity-order", choices=("off,on", "on,off"), default="off,on", help="events: which channel is which")
    add("--accumulate", choices=("count", "binary"), default="count", help="events of one pixel in one step")
    add("--tail", choices=("drop", "clip"), default="drop", help="events after the last step")


def _window(text: str) -> tuple[int, int]:
    start, _, stop = text.partition(":")
    return int(start), int(stop)
