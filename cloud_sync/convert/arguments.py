"""What every way of ``edged-convert`` asks in the same words: who the model is, and how a payload is prepared."""

from __future__ import annotations

import argparse
import enum
import hashlib
import re
import sys
from fractions import Fraction
from pathlib import Path

from cloud_sync.convert.bundle import Identity
from cloud_sync.convert.errors import ConversionError
from edged.bundle.manifest import Grayscale, Layout, Normalize, Preprocess, Resize, Scale


class Exit(enum.IntEnum):
    """Exit codes of the command; 2 is argparse's own, for a wrong command line."""

    WRITTEN = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3  # the ANN holds nodes that cannot be converted; each was named


def add_identity(parser: argparse.ArgumentParser) -> None:
    """The model's name, version, labels and so on."""
    add = parser.add_argument
    add("--name", help="the model's name (default: the file's)")
    add("--version", default="1.0.0", help="the model's version (default: %(default)s)")
    add("--release-counter", type=int, default=0, metavar="N", help="grows with each release (default: 0)")
    add("--labels", metavar="A,B,…|FILE", help="names of the classes in order (default: 0, 1, …)")
    add("--description", default="", help="one sentence for the manifest and the card")
    add("--license", default="", help="the licence of the weights, as an SPDX identifier")


def settle(options: argparse.Namespace, source: Path) -> None:
    """Fill in what was left out: the name from that of the ``source``, the bundle's place from the name."""
    if options.name is None:
        options.name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.stem).strip("-._")[:64]
    if options.out is None:
        options.out = Path(f"{options.name}-bundle")


def identity(options: argparse.Namespace, classes: int) -> Identity:
    """What the options say about a model of so many classes. Raises ConversionError."""
    return Identity(
        options.name,
        options.version,
        _labels(options.labels, classes),
        options.description,
        options.license,
        options.release_counter,
    )


def digest(path: Path) -> str:
    """The sha256 of a file, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _labels(given: str | None, classes: int) -> tuple[str, ...]:
    if given is None:
        return tuple(str(index) for index in range(classes))
    try:
        text = Path(given).read_text(encoding="utf-8") if Path(given).is_file() else given.replace(",", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{given} cannot be read: {error}") from None
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != classes:
        raise ConversionError(f"{len(names)} labels for {classes} classes", "give one for each class, in order")
    return names


def preprocess(options: argparse.Namespace) -> tuple[Preprocess, ...]:
    """The preprocessing that the options describe, in its order. Raises ConversionError."""
    steps: list[Preprocess] = []
    if options.layout:
        steps.append(Layout(axes=options.layout))
    if options.grayscale:
        steps.append(Grayscale())
    if options.resize:
        steps.append(Resize(height=options.resize[0], width=options.resize[1]))
    if options.scale != 1 or options.offset != 0:
        steps.append(Scale(factor=options.scale, offset=options.offset))
    if bool(options.mean) != bool(options.std):
        raise ConversionError("--mean and --std belong together")
    if options.mean:
        steps.append(Normalize(mean=options.mean, std=options.std))
    return tuple(steps)


def add_preprocessing(group: argparse._ArgumentGroup) -> None:
    """What ``preprocess`` reads."""
    add = group.add_argument
    add("--layout", choices=("HW", "HWC"), help="axes of an image; it becomes CHW")
    add("--grayscale", action="store_true", help="three channels become one")
    add("--resize", type=_size, metavar="HxW", help="resize linearly, in pixels")
    add("--scale", type=_number, default=1.0, metavar="F", help="multiply, for example by 1/255")
    add("--offset", type=_number, default=0.0, metavar="F", help="add, after the scale")
    add("--mean", type=_numbers, default=(), metavar="F,…", help="subtract, one number for each channel")
    add("--std", type=_numbers, default=(), metavar="F,…", help="then divide")


def _number(text: str) -> float:
    try:
        return float(Fraction(text))
    except ZeroDivisionError:
        raise argparse.ArgumentTypeError(f"{text!r} divides by zero") from None


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(part) for part in text.split(","))


def _size(text: str) -> tuple[int, int]:
    height, width = text.lower().split("x")
    return int(height), int(width)


def say(line: str) -> None:
    """One line of progress, to stderr."""
    print(line, file=sys.stderr, flush=True)
