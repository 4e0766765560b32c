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

from cloud_sync.convert import transformer, transformer_bundle, transformer_load, transformer_report
from cloud_sync.convert.arguments import Exit, add_identity, add_preprocessing, digest, identity, preprocess, say
from cloud_sync.convert.bundle import input_entry, write
from cloud_sync.convert.errors import ConversionError, RefusedNodesError
from cloud_sync.convert.firing import Firing
from cloud_sync.convert.load import load
from cloud_sync.convert.network import Network
from cloud_sync.convert.pipeline import Options, convert
from cloud_sync.convert.report import SWEEP, Evaluation, Report, assess
from cloud_sync.convert.samples import read_images, read_labelled, samples
from cloud_sync.convert.timing import compare, measure
from cloud_sync.convert.transformer_emit import ann
from cloud_sync.convert.transformer_graph import Transformer
from cloud_sync.convert.transformer_report import TransformerReport
from edged.bundle.loaded import Bundle
from edged.bundle.manifest import Input
from edged.errors import EdgedError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except RefusedNodesError as error:
        say(f"edged-convert: {error}")
        return Exit.REFUSED
    except EdgedError as error:
        say(f"edged-convert: {error}")
        return Exit.FAILED
    return Exit.WRITTEN


def _run(options: argparse.Namespace) -> None:
    if os.path.lexists(options.out):
        raise ConversionError(f"{options.out} exists", "name a directory that does not exist yet")
    if options.levels is not None:
        _run_transformer(options)
        return
    network = load(options.ann, options.until)
    entry = input_entry(network.input, network.input_shape, preprocess(options))
    who = identity(options, network.classes)
    say(f"{options.ann}: {sum(1 for _ in network.relus())} layers of neurons, {network.parameters:,} parameters")
    calibration = samples(entry, read_images(options.calibrate))
    evaluation = _evaluation(options.evaluate, network, entry)
    say(f"calibrating on {len(calibration)} images for T = {options.timesteps}")
    converted = convert(network, calibration, options.timesteps, _recipe(options), say)
    say(f"judging on {options.evaluate or 'the calibration images'}, at T = {', '.join(map(str, SWEEP))} too")
    judged = evaluation or Evaluation(calibration, None, "the calibration images, without labels")
    report = assess(network, calibration, converted, judged, say=say)
    _tell(report)
    times = measure(converted, judged.samples[:1])
    say(f"one image, one thread, this machine: ANN {times.ann_us:.0f} µs, spiking {times.spiking_us:.0f} µs")
    _wrote(options, write(options.out, converted, entry, who, report, digest(options.ann)))


def _run_transformer(options: argparse.Namespace) -> None:
    """The same for a network with attention: other passes, another report."""
    if _recipe(options) != Options() or options.until:
        raise ConversionError("--levels is for transformers", "it goes with none of the other ways to fire and to cut")
    network = transformer_load.load(options.ann)
    entry = input_entry(network.input, network.input_shape, preprocess(options))
    who = identity(options, network.classes)
    say(f"{options.ann}: {len(network.spiking())} layers of neurons, {network.parameters:,} constants")
    calibration = samples(entry, read_images(options.calibrate))
    judged = _evaluation(options.evaluate, network, entry) or Evaluation(
        calibration, None, "the calibration images, without labels"
    )
    say(f"calibrating on {len(calibration)} images for T = {options.timesteps}, {options.levels} levels")
    converted = transformer.convert(network, calibration, options.timesteps, options.levels)
    say(f"judging on {judged.name}, at T = {', '.join(map(str, transformer_report.SWEEP))} too")
    report = transformer_report.assess(calibration, converted, judged)
    _tell(report)
    floating = ", ".join(f"{one.nodes} {one.operation}" for one in report.host)
    say(f"  floating point at every step, not spikes: {floating}")
    times = compare(ann(network).model, converted.spiking.graph, options.timesteps, judged.samples[:1])
    say(f"one image, one thread, this machine: ANN {times.ann_us:.0f} µs, spiking {times.spiking_us:.0f} µs")
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


def _tell(report: Report | TransformerReport) -> None:
    for note in report.notes if isinstance(report, Report) else ():
        say(f"note: {note}")
    for point in report.by_timesteps:
        right = "" if point.accuracy is None else f"{100 * point.accuracy:.2f} % right, "
        steps = f" ({point.steps} steps)" if point.steps else ""
        say(f"  T = {point.timesteps}{steps}: {right}{100 * point.agreement:.2f} % as the ANN")
    for name, cost in (("ANN", report.ann), (f"spiking, T = {report.timesteps}", report.spiking)):
        done = cost.synaptic_operations
        right = "" if cost.accuracy is None else f"{100 * cost.accuracy:.2f} % right, "
        say(f"  {name}: {right}{done.effective_macs:,.0f} MACs and {done.effective_acs:,.0f} ACs an image")


def _evaluation(path: Path | None, network: Network | Transformer, entry: Input) -> Evaluation | None:
    if path is None:
        return None
    images, labels = read_labelled(path, network.classes)
    return Evaluation(samples(entry, images), labels, path.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edged-convert", description="Convert a trained network to a spiking bundle.")
    add = parser.add_argument
    add("ann", type=Path, metavar="ANN.onnx", help="a trained feed-forward classifier, exported for inference")
    add(
        "--calibrate", type=Path, required=True, metavar="DIR|NPZ", help="images to choose thresholds on (256 and more)"
    )
    add("--out", type=Path, required=True, metavar="DIR", help="the bundle to write; must not exist")
    add_identity(parser)
    add("--timesteps", type=int, default=16, metavar="T", help="more steps: closer to the ANN, slower (default: 16)")
    add(
        "--levels",
        type=int,
        metavar="K",
        help=f"the ANN is a vision transformer: carry it by signed spikes of K sizes (try {transformer.LEVELS})",
    )
    add("--evaluate", type=Path, metavar="NPZ", help="images and labels to judge on, which training never saw")
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
    add("--weights", choices=("float32", "int8"), default="float32", help="int8: 255 levels for each output channel")


if __name__ == "__main__":
    sys.exit(main())
