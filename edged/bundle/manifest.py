"""The bundle's manifest: schema ``edged.bundle.v1`` as frozen structs, read strictly, written with fixed bytes.

The manifest names every other file with its size and sha256, so the sha256 of its own bytes, the *digest*, identifies
the whole bundle. Unknown schemas and fields, wrong types and values out of bounds are a BundleError that names each
field, its value and what is expected. Reads no files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Literal

import msgspec

from edged.bundle.graph.neurons import NEURONS
from edged.bundle.graph.spec import READOUT, GraphSpec, InputSpec, ReadoutKind, ReadoutSpec, StateSpec
from edged.bundle.strict_json import clipped, read_json, shown
from edged.errors import BundleError
from edged.settings import Problem, parse

SCHEMA = "edged.bundle.v1"
MANIFEST = "manifest.json"

MAX_MANIFEST_BYTES = 1 << 20  # 1,000 states with long names take 150 KB; parsing 1 MiB takes milliseconds
MAX_FILE_BYTES = 512 << 20  # protobuf ends at 2 GiB; a model has to fit in the memory of a small device twice
MAX_TOTAL_BYTES = 1 << 30  # what a device reserves for one download
MAX_FILES = 32  # a bundle is a handful of files; each costs an open and a hash
MAX_TIMESTEPS = 1024  # published models use 4 to 300; the unrolled plan grows with it
MAX_ELEMENTS = 1 << 26  # of one tensor of one sample: 256 MiB as float32
MAX_STATES = 1024  # deep networks have hundreds of neurons' layers
MAX_CLASSES = 1 << 16  # the largest published label sets have some 22,000
MAX_PREPROCESS = 16  # real chains have three or four
MAX_TEXT = 4096  # descriptions are for people; the card has room for more

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1, description="must be a whole number, at least 1")]
Finite = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30, description="must be a finite number")]
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT, description=f"must be text, at most {MAX_TEXT} characters")]
Name = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z",
        description="must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit",
    ),
]
Tensor = Annotated[
    str, msgspec.Meta(min_length=1, max_length=256, description="must be the name of a tensor, 1 to 256 characters")
]
Sha256 = Annotated[
    str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z", description="must be a sha256 in 64 lower-case hexadecimal digits")
]
Shape = Annotated[
    tuple[Positive, ...],
    msgspec.Meta(max_length=6, description="must be at most 6 whole numbers, each at least 1, without the batch axis"),
]


Precision = Literal["f32", "int8"]  # int8: weights in 8 bits with a scale a channel, float32 everywhere else


class Constant(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="constant"):
    """A payload is one array, shown unchanged at every step."""


class Sequence(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="sequence"):
    """A payload is an array (T, …) with one value for each step."""


class EventFrames(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="events"):
    """A payload is a recording of an event camera, binned into one frame (polarities, height, width) for each step.

    Step t holds the events with ``t·dt_us ≤ time - t0 < (t+1)·dt_us``. ``tail`` says what becomes of later events:
    ``drop`` them, or ``clip`` them into the last step.
    """

    width: Annotated[int, msgspec.Meta(ge=1, le=65536, description="must be pixels, 1 to 65536")]
    height: Annotated[int, msgspec.Meta(ge=1, le=65536, description="must be pixels, 1 to 65536")]
    polarities: Annotated[Literal[1, 2], msgspec.Meta(description="must be 1 (merged) or 2 (apart)")]
    dt_us: Positive
    t0: Annotated[Literal["first_event", "recording"], msgspec.Meta(description="must be first_event or recording")]
    polarity_order: Annotated[Literal["off,on", "on,off"], msgspec.Meta(description="must be off,on or on,off")]
    accumulate: Annotated[Literal["count", "binary"], msgspec.Meta(description="must be count or binary")]
    tail: Annotated[Literal["drop", "clip"], msgspec.Meta(description="must be drop or clip")]


class Scale(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="scale"):
    """x·factor + offset."""

    factor: Finite = 1.0
    offset: Finite = 0.0


class Normalize(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="normalize"):
    """(x - mean) / std for each channel; needs the channel axis first."""

    mean: tuple[Finite, ...]
    std: tuple[Annotated[float, msgspec.Meta(gt=0, le=1e30, description="must be more than 0")], ...]


class Layout(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="layout"):
    """Brings an image to CHW. ``axes`` is what arrives: HW gains a channel axis; HWC is transposed, HW taken as HW1.

    A payload that has the input's shape already passes unchanged.
    """

    axes: Annotated[Literal["HW", "HWC"], msgspec.Meta(description="must be HW or HWC")]


class Grayscale(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="grayscale"):
    """Three channels (red, green, blue; CHW) become one by the weights of ITU-R BT.601; one channel stays."""


class Resize(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="resize"):
    """An image (CHW) is resized linearly, averaged over the source pixels where it shrinks (antialiased).

    Pixel centres are at half coordinates, as in Pillow and OpenCV.
    """

    height: Annotated[int, msgspec.Meta(ge=1, le=8192, description="must be pixels, 1 to 8192")]
    width: Annotated[int, msgspec.Meta(ge=1, le=8192, description="must be pixels, 1 to 8192")]


Encoding = Constant | Sequence | EventFrames
Preprocess = Scale | Normalize | Layout | Grayscale | Resize


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """One input of the graph: ``shape`` of one sample at one step, and how a payload becomes it."""

    name: Tensor
    dtype: Annotated[Literal["float32"], msgspec.Meta(description="must be float32")]
    shape: Shape
    time: Annotated[Literal["constant", "sequence"], msgspec.Meta(description="must be constant or sequence")]
    encoding: Encoding
    preprocess: tuple[Preprocess, ...] = ()


class State(msgspec.Struct, frozen=True, kw_only=True, rename={"input": "in", "output": "out"}):
    """The graph's input ``in`` is its output ``out`` one step later; zero at first."""

    input: Tensor
    output: Tensor
    shape: Shape
    neuron: Annotated[str, msgspec.Meta(description="must be the op of a neuron, or empty for a delayed tensor")] = ""


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """The graph's output, (B, classes) at each step."""

    name: Tensor
    classes: Annotated[int, msgspec.Meta(ge=1, le=MAX_CLASSES, description=f"must be 1 to {MAX_CLASSES}")]


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The steps start ≤ t < stop."""

    start: Annotated[int, msgspec.Meta(ge=0, description="must be a step, at least 0")]
    stop: Positive


class Readout(msgspec.Struct, frozen=True, kw_only=True):
    """How the outputs of the window become scores, and which of equal scores wins."""

    kind: Annotated[ReadoutKind, msgspec.Meta(description="must be mean, sum, last, max or first_spike")]
    window: Window
    ties: Annotated[Literal["lowest_index"], msgspec.Meta(description="must be lowest_index")] = "lowest_index"


class Semantics(msgspec.Struct, frozen=True, kw_only=True):
    """What the source model meant. The graph always compares with >=; ``comparison`` records the source's own."""

    reset: Annotated[Literal["subtract", "zero", "value", "mixed", "none"],
                     msgspec.Meta(description="must be subtract, zero, value, mixed or none")]  # fmt: skip
    comparison: Annotated[Literal[">=", ">"], msgspec.Meta(description="must be >= or >")]
    source: Text
    dt_us: Positive | None = None


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One precision of the model's weights, with golden data of its own."""

    name: Annotated[Precision, msgspec.Meta(description="must be f32 or int8")]
    model: Name
    golden: Name


class Converter(msgspec.Struct, frozen=True, kw_only=True):
    """What wrote the bundle."""

    name: Name
    version: Text


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file beside the manifest."""

    sha256: Sha256
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE_BYTES, description=f"must be bytes, at most {MAX_FILE_BYTES}")]


class ManifestDraft(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the maker of a bundle says; the writer adds the schema and the files."""

    name: Name
    version: Name
    release_counter: Annotated[int, msgspec.Meta(ge=0, le=2**53, description="must be a whole number, at least 0")]
    description: Text
    license: Text
    timesteps: Annotated[int, msgspec.Meta(ge=1, le=MAX_TIMESTEPS, description=f"must be 1 to {MAX_TIMESTEPS}")]
    inputs: tuple[Input, ...]
    states: tuple[State, ...]
    output: Output
    readout: Readout
    labels: tuple[Text, ...]
    semantics: Semantics
    converter: Converter
    source_ann_sha256: Sha256 | None = None


class Manifest(ManifestDraft, frozen=True, kw_only=True):
    """The whole manifest."""

    schema: Annotated[Literal["edged.bundle.v1"], msgspec.Meta(description=f"must be {SCHEMA}")]
    variants: tuple[Variant, ...]
    files: dict[str, FileEntry]

    @property
    def variant(self) -> Variant:
        """The one variant of version 1."""
        return self.variants[0]


def graph_spec(manifest: ManifestDraft) -> GraphSpec:
    """The part of a manifest that plans and checks need."""
    window = manifest.readout.window
    return GraphSpec(
        inputs=tuple(InputSpec(i.name, i.shape, i.time == "sequence") for i in manifest.inputs),
        states=tuple(StateSpec(s.input, s.output, s.shape, s.neuron) for s in manifest.states),
        output=manifest.output.name,
        classes=manifest.output.classes,
        timesteps=manifest.timesteps,
        readout=ReadoutSpec(manifest.readout.kind, window.start, window.stop),
    )


def digest(data: bytes) -> str:
    """The identity of a bundle: sha256 of its manifest's bytes, hex."""
    return hashlib.sha256(data).hexdigest()


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of a manifest: the same for equal manifests, and readable."""
    fields = msgspec.to_builtins(manifest, order="deterministic")
    schema_first = {"schema": fields.pop("schema"), **fields}
    return msgspec.json.format(msgspec.json.encode(schema_first), indent=2) + b"\n"


def decode_manifest(data: bytes) -> Manifest:
    """Read and check a manifest. Raises BundleError with every problem."""
    table = read_json(data, MANIFEST, MAX_MANIFEST_BYTES)
    if isinstance(table, dict) and table.get("schema") != SCHEMA:
        raise BundleError(
            f"{MANIFEST}: schema = {shown(table.get('schema'))}: must be {SCHEMA}",
            "this edged is older than the bundle, or it is not a bundle",
        )
    problems: list[Problem] = []
    manifest = parse(Manifest, _checked_files(table, problems), problems)
    if manifest is not None:
        problems += _cross_checks(manifest)
        problems += _file_checks(manifest)
    _raise(problems)
    assert manifest is not None
    return manifest


def _checked_files(table: object, problems: list[Problem]) -> object:
    """Check each file on its own, so that a problem names the file; the table without them where there was one."""
    files = table.get("files") if isinstance(table, dict) else None
    if not isinstance(table, dict) or not isinstance(files, dict):
        return table
    for name in list(files)[: MAX_FILES + 1]:
        parse(FileEntry, files[name], problems, f"files.{clipped(name)}")
    return {**table, "files": {}} if problems else table


def check_draft(draft: ManifestDraft) -> None:
    """Check a draft as strictly as a manifest that was read. Raises BundleError with every problem."""
    problems: list[Problem] = []
    fields = {field.encode_name for field in msgspec.structs.fields(ManifestDraft)}
    table = json.loads(msgspec.json.encode(draft))  # a whole manifest is a draft too: what else it says is left out
    parsed = parse(ManifestDraft, {name: value for name, value in table.items() if name in fields}, problems)
    if parsed is not None:
        problems += _cross_checks(parsed)
    _raise(problems)


def _raise(problems: list[Problem]) -> None:
    if problems:
        lines = [
            f"{p.key}{'' if p.value is msgspec.UNSET else ' = ' + shown(p.value)}: {p.hint}" for p in problems[:20]
        ]
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise BundleError(f"{MANIFEST}: " + "; ".join(lines + more))


def _cross_checks(manifest: ManifestDraft) -> Iterator[Problem]:
    if len(manifest.inputs) != 1:
        yield Problem("inputs", len(manifest.inputs), "must be exactly one: a frame fills one input")
    if len(manifest.states) > MAX_STATES:
        yield Problem("states", len(manifest.states), f"must be at most {MAX_STATES}")
    if len(manifest.labels) != manifest.output.classes:
        yield Problem("labels", len(manifest.labels), f"must be one for each of the {manifest.output.classes} classes")
    window = manifest.readout.window
    if not window.start < window.stop <= manifest.timesteps:
        hint = f"must be steps start < stop <= {manifest.timesteps} (timesteps)"
        yield Problem("readout.window", [window.start, window.stop], hint)
    yield from _name_checks(manifest)
    shapes = [(f"inputs[{k}]", i.shape) for k, i in enumerate(manifest.inputs)]
    shapes += [(f"states[{k}]", s.shape) for k, s in enumerate(manifest.states)]
    for key, shape in shapes:
        if math.prod(shape) > MAX_ELEMENTS:
            yield Problem(f"{key}.shape", list(shape), f"must hold at most {MAX_ELEMENTS} numbers")
    for k, state in enumerate(manifest.states):
        if state.neuron and state.neuron not in NEURONS:
            yield Problem(f"states[{k}].neuron", state.neuron, f"must be empty or one of {', '.join(NEURONS)}")
    for k, entry in enumerate(manifest.inputs):
        yield from _input_checks(f"inputs[{k}]", entry)


def _name_checks(manifest: ManifestDraft) -> Iterator[Problem]:
    names = [i.name for i in manifest.inputs] + [s.input for s in manifest.states]
    names += [s.output for s in manifest.states] + [manifest.output.name]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem("inputs, states, output", name, "names a tensor twice; every tensor has one name")
    if READOUT in (i.name for i in manifest.inputs):
        yield Problem("inputs", READOUT, "is the name of every plan's output; choose another")


def _input_checks(key: str, entry: Input) -> Iterator[Problem]:
    constant = isinstance(entry.encoding, Constant)
    if constant != (entry.time == "constant"):
        hint = "must be constant" if constant else "must be sequence"
        yield Problem(f"{key}.time", entry.time, f"{hint} with this encoding")
    if isinstance(entry.encoding, EventFrames):
        expected = (entry.encoding.polarities, entry.encoding.height, entry.encoding.width)
        if entry.shape != expected:
            yield Problem(f"{key}.shape", list(entry.shape), f"must be {list(expected)}: polarities, height, width")
    if len(entry.preprocess) > MAX_PREPROCESS:
        yield Problem(f"{key}.preprocess", len(entry.preprocess), f"must be at most {MAX_PREPROCESS}")
    for k, op in enumerate(entry.preprocess):
        if not constant and not isinstance(op, Scale):
            hint = "must be scale: only that has a meaning for sequences"
            yield Problem(f"{key}.preprocess[{k}]", type(op).__name__.lower(), hint)
        if isinstance(op, Normalize) and not 1 <= len(op.mean) == len(op.std):
            yield Problem(f"{key}.preprocess[{k}]", [len(op.mean), len(op.std)], "must have one mean and std a channel")


def _file_checks(manifest: Manifest) -> Iterator[Problem]:
    if len(manifest.variants) != 1:
        yield Problem("variants", len(manifest.variants), "must be exactly one")
    for k, variant in enumerate(manifest.variants):
        for role in ("model", "golden"):
            if getattr(variant, role) not in manifest.files:
                yield Problem(f"variants[{k}].{role}", getattr(variant, role), "is not among files")
    if len(manifest.files) > MAX_FILES:
        yield Problem("files", len(manifest.files), f"must be at most {MAX_FILES}")
    for name in list(manifest.files)[: MAX_FILES + 1]:
        if not is_file_name(name):
            yield Problem("files", name, "must be a plain file name: no folder, no leading '.', not the manifest")
    total = sum(entry.size for entry in manifest.files.values())
    if total > MAX_TOTAL_BYTES:
        yield Problem("files", total, f"must be at most {MAX_TOTAL_BYTES} bytes together")


def is_file_name(name: str) -> bool:
    """Whether a name may stand for a file of a bundle: plain, portable, no folder, not the manifest itself."""
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        return False
    return name != MANIFEST and PurePosixPath(name).name == name
