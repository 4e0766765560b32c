"""``edged-convert``: a trained network in ONNX, a ReLU network or a vision transformer → a spiking bundle.

Progress and errors go to stderr; the last line of stdout is ``NAME VERSION DIGEST``. Everything is checked before the
long work begins, and the bundle appears whole or not at all. Holds no logic of the conversion.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cloud_sync.convert import summary, transformer, transformer_bundle, transformer_load, transformer_report
from cloud_sync.convert.arguments import (
    Exit,
    add_identity,
    add_preprocessing,
    digest,
    identity,
    preprocess,
    say,
    settle,
)
from cloud_sync.convert.bundle import Identity, input_entry, write
from cloud_sync.convert.errors import ConversionError, RefusedNodesError
from cloud_sync.convert.firing import Firing
from cloud_sync.convert.load import load
from cloud_sync.convert.network import Floats, Network
from cloud_sync.convert.nir import cli as nir
from cloud_sync.convert.pipeline import Options, convert
from cloud_sync.convert.report import SWEEP, Evaluation, Report, assess
from cloud_sync.convert.samples import read_images, read_labelled, samples
from cloud_sync.convert.timing import Times, compare, measure
from cloud_sync.convert.transformer_emit import ann
from cloud_sync.convert.transformer_report import TransformerReport
from edged.bundle.loaded import Bundle
from edged.bundle.manifest import Input
from edged.errors import EdgedError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if nir.asked(given):
            nir.run(given)
        else:
            _run(_parser().parse_args(given))
    except RefusedNodesError as error:
        say(f"edged-convert: {error}")
        return Exit.REFUSED
    except EdgedError as error:
        say(f"edged-convert: {error}")
        return Exit.FAILED
    return Exit.WRITTEN


def _run(options: argparse.Namespace) -> None:
    settle(options, options.ann)
    if os.path.lexists(options.out):
        raise ConversionError(f"{options.out} exists", "name a directory that does not exist yet")
    if options.levels is not None:
        _run_transformer(options)
        return
    network = _network(options)
    entry = input_entry(network.input, network.input_shape, preprocess(options))
    who = identity(options, network.classes)
    say(f"{options.ann}: {sum(1 for _ in network.relus())} layers of neurons, {network.parameters:,} parameters")
    calibration = _calibration(options, entry)
    judged = _evaluation(options.evaluate, who, entry, calibration)
    say(f"calibrating on {len(calibration)} images for T = {options.timesteps}")
    converted = convert(network, calibration, options.timesteps, _recipe(options), say)
    say(f"judging on {judged.name}, at T = {', '.join(map(str, SWEEP))} too")
    report = assess(network, calibration, converted, judged, say=say)
    _tell(report, measure(converted, judged.samples[:1]), network.classes)
    _wrote(options, write(options.out, converted, entry, who, report, digest(options.ann)))


def _network(options: argparse.Namespace) -> Network:
    """The ANN. A refusal says so where ``--levels`` would take the whole network."""
    try:
        return load(options.ann, options.until)
    except RefusedNodesError as refused:
        try:
            transformer_load.load(options.ann)
        except ConversionError:
            raise refused from None
        offer = f"--levels {transformer.LEVELS} converts the whole network, with spikes of several sizes"
        raise RefusedNodesError(str(options.ann), refused.refusals, refused.prefix, offer) from None


def _run_transformer(options: argparse.Namespace) -> None:
    """The same for a network with attention: other passes, another report."""
    if _recipe(options) != Options() or options.until:
        raise ConversionError("--levels is for transformers", "it goes with none of the other ways to fire and to cut")
    network = transformer_load.load(options.ann)
    entry = input_entry(network.input, network.input_shape, preprocess(options))
    who = identity(options, network.classes)
    say(f"{options.ann}: {len(network.spiking())} layers of neurons, {network.parameters:,} constants")
    calibration = _calibration(options, entry)
    judged = _evaluation(options.evaluate, who, entry, calibration)
    say(f"calibrating on {len(calibration)} images for T = {options.timesteps}, {options.levels} levels")
    converted = transformer.convert(network, calibration, options.timesteps, options.levels)
    say(f"judging on {judged.name}, at T = {', '.join(map(str, transformer_report.SWEEP))} too")
    report = transformer_report.assess(calibration, converted, judged, say=say)
    times = compare(ann(network).model, converted.spiking.graph, options.timesteps, judged.samples[:1])
    _tell(report, times, network.classes)
    _wrote(options, transformer_bundle.write(options.out, converted, entry, who, report, digest(options.ann)))


def _wrote(options: argparse.Namespace, bundle: Bundle) -> None:
    say(f"wrote {options.out}")
    print(bundle.name, bundle.version, bundle.digest)


def _recipe(options: argparse.Namespace) -> Options:
    return Options(
        firing=options.firing,
        exact=options.exact,
        correct_biases=options.bias_correction,
        weights=options.weights,
    )


def _tell(report: Report | TransformerReport, times: Times, classes: int) -> None:
    for line in summary.lines(report, times, classes):
        say(line)


def _calibration(options: argparse.Namespace, entry: Input) -> Floats:
    found = samples(entry, read_images(options.calibrate))
    for note in summary.suspicions(found):
        say(f"note: {note}")
    return found


def _evaluation(path: Path | None, who: Identity, entry: Input, calibration: Floats) -> Evaluation:
    if path is None:
        return Evaluation(calibration, None, "the calibration images, without labels")
    images, labels = read_labelled(path, len(who.labels), who.labels)
    return Evaluation(samples(entry, images), labels, path.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edged-convert",
        description="Convert a trained network to a spiking bundle.",
        epilog="NIR: edged-convert MODEL.nir imports, edged-convert BUNDLE --to nir exports (each with --help)",
    )
    add = parser.add_argument
    add("ann", type=Path, metavar="ANN.onnx", help="a trained feed-forward classifier, exported for inference")
    add(
        "--calibrate", type=Path, required=True, metavar="DIR|NPZ", help="images to choose thresholds on (256 and more)"
    )
    add("--out", type=Path, metavar="DIR", help="the bundle to write; must not exist (default: NAME-bundle)")
    add_identity(parser)
    add("--timesteps", type=int, default=16, metavar="T", help="more steps: closer to the ANN, slower (default: 16)")
    add(
        "--levels",
        type=int,
        metavar="K",
        help=f"the ANN is a vision transformer: carry it by signed spikes of K sizes (try {transformer.LEVELS})",
    )
    add("--evaluate", type=Path, metavar="DIR|NPZ", help="labelled images to judge on, which training never saw")
    add("--until", default="", metavar="NODE", help="convert the part up to this node; its output is the bundle's")
    _add_recipe(parser.add_argument_group("how spikes carry activations"))
    add_preprocessing(parser.add_argument_group("preprocessing, in this order; goes into the manifest"))
    return parser


def _add_recipe(group: argparse._ArgumentGroup) -> None:
    firing = group.add_mutually_exclusive_group()
    add = firing.add_argument
    add("--signed", dest="firing", action="store_const", const=Firing.SIGNED, help="neurons may take a spike back")
    add(
        "--accumulate",
        dest="firing",
        action="store_const",
        const=Firing.ACCUMULATE,
        help="a layer fires when all of its input has come: equal to the ANN rounded to T levels, but more steps",
    )
    group.set_defaults(firing=Firing.BINARY)
    add = group.add_argument
    add("--bias-correction", action="store_true", help="move biases until each channel's mean is the ANN's")
    add("--exact", action="store_true", help="round weights to a grid on which every engine computes the same bits")
    add(
        "--weights",
        choices=("float32", "int8"),
        default="float32",
        help="int8: 255 levels for each output channel, kept in 8 bits",
    )


if __name__ == "__main__":
    sys.exit(main())
