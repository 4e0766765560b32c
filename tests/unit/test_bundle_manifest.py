"""The manifest is read strictly: whatever is wrong is named with its value and what is expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edged.bundle.manifest import (
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    SCHEMA,
    check_draft,
    decode_manifest,
    encode_manifest,
    graph_spec,
)
from edged.errors import BundleError
from tests.support.bundles import make_bundle

Table = dict[str, Any]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (make_bundle(tmp_path_factory.mktemp("b") / "conv", kind="conv").path / "manifest.json").read_bytes()


def test_a_manifest_survives_reading_and_writing_byte_by_byte(table: bytes) -> None:
    manifest = decode_manifest(table)
    assert encode_manifest(manifest) == table
    assert next(iter(json.loads(table))) == "schema", "a reader of any version looks there first"
    spec = graph_spec(manifest)
    assert (spec.timesteps, spec.readout.kind, spec.readout.stop) == (4, "mean", 4)
    assert [state.neuron for state in spec.states] == ["IF", "LIF", "LI"]


def put(*path: str | int, value: object) -> Callable[[Table], None]:
    def change(table: Table) -> None:
        inner: Any = table
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


def drop(key: str) -> Callable[[Table], object]:
    return lambda table: table.pop(key)


BAD: dict[str, tuple[Callable[[Table], object], str]] = {
    "another schema": (put("schema", value="edged.bundle.v2"), f"schema = 'edged.bundle.v2': must be {SCHEMA}"),
    "no schema": (drop("schema"), f"schema = missing: must be {SCHEMA}"),
    "an unknown field": (put("colour", value="red"), "colour = 'red': is not a setting"),
    "a misspelt field": (put("timestep", value=3), "did you mean 'timesteps'"),
    "an unknown field inside": (put("readout", "top", value=3), "readout.top = 3"),
    "a missing field": (drop("labels"), "labels: is missing"),
    "text for a number": (put("timesteps", value="four"), "timesteps = 'four': must be 1 to 1024"),
    "a boolean for a number": (put("timesteps", value=True), "timesteps = True"),
    "too many steps": (put("timesteps", value=100000), "timesteps = 100000: must be 1 to 1024"),
    "a fraction of a step": (put("timesteps", value=1.5), "timesteps = 1.5"),
    "a bad name": (put("name", value="../etc"), "name = '../etc': must be 1 to 64 letters"),
    "a name with a newline": (put("name", value="digits\n"), "must be 1 to 64 letters"),
    "an empty shape entry": (put("inputs", 0, "shape", value=[1, 0, 8]), "inputs.0..shape = .1, 0, 8."),
    "a huge shape": (put("states", 0, "shape", value=[65536, 65536]), "must hold at most"),
    "a shape of many axes": (put("states", 0, "shape", value=[1] * 9), "at most 6"),
    "another dtype": (put("inputs", 0, "dtype", value="float16"), "must be float32"),
    "an unknown encoding": (put("inputs", 0, "encoding", "kind", value="poisson"),
                            "inputs.0..encoding.kind = 'poisson': must be one of constant, events, sequence"),
    "an unknown op": (put("inputs", 0, "preprocess", 0, "op", value="crop"), "op = 'crop': must be one of"),
    "an op without a field": (put("inputs", 0, "preprocess", 0, value={"op": "resize", "height": 3}), "width: is"),
    "an infinite factor": (put("inputs", 0, "preprocess", 1, "factor", value=1e300), "must be a finite number"),
    "too much preprocessing": (put("inputs", 0, "preprocess", value=[{"op": "scale"}] * 17), "must be at most 16"),
    "time that contradicts the encoding": (put("inputs", 0, "time", value="sequence"), "must be constant with this"),
    "two inputs": (lambda t: t["inputs"].append(dict(t["inputs"][0], name="other")), "exactly one"),
    "no input": (put("inputs", value=[]), "exactly one"),
    "a state of an unknown neuron": (put("states", 0, "neuron", value="Izhikevich"), "states.0..neuron = 'Izhikevich'"),
    "a tensor named twice": (put("states", 0, "in", value="image"), "'image': names a tensor twice"),
    "an input named like the readout": (put("inputs", 0, "name", value="readout"), "name of every plan's output"),
    "too few labels": (put("labels", value=["a"]), "one for each of the 4 classes"),
    "a window beyond the end": (put("readout", "window", "stop", value=9), "readout.window = .0, 9."),
    "an empty window": (put("readout", "window", value={"start": 2, "stop": 2}), "start < stop <= 4"),
    "another tie rule": (put("readout", "ties", value="random"), "must be lowest_index"),
    "no variant": (put("variants", value=[]), "variants = 0: must be exactly one"),
    "a variant's missing file": (put("variants", 0, "model", value="other.onnx"), "'other.onnx': is not among files"),
    "another precision": (put("variants", 0, "name", value="fp16"), "must be f32 or int8"),
    "a file in a folder": (put("files", "a/b", value={"sha256": "0" * 64, "size": 1}), "a plain file name"),
    "a file above": (put("files", "..", value={"sha256": "0" * 64, "size": 1}), "a plain file name"),
    "an absolute file": (put("files", "/etc/passwd", value={"sha256": "0" * 64, "size": 1}), "a plain file name"),
    "a hidden file": (put("files", ".x", value={"sha256": "0" * 64, "size": 1}), "a plain file name"),
    "the manifest as a file": (put("files", "manifest.json", value={"sha256": "0" * 64, "size": 1}), "plain file name"),
    "a bad hash": (put("files", "model.onnx", "sha256", value="XYZ"), "must be a sha256"),
    "a huge file": (put("files", "model.onnx", "size", value=1 << 60), "files.model.onnx.size"),
    "a negative size": (put("files", "model.onnx", "size", value=-1), "files.model.onnx.size = -1"),
    "too many files": (
        lambda t: t["files"].update({f"f{k}": {"sha256": "0" * 64, "size": 1} for k in range(MAX_FILES)}),
        "must be at most 32"),
    "files too large together": (
        lambda t: t["files"].update({f"f{k}": {"sha256": "0" * 64, "size": 500 << 20} for k in range(3)}), "together"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_manifest_is_refused_with_field_value_and_expectation(table: bytes, name: str) -> None:
    change, message = BAD[name]
    parsed = json.loads(table)
    change(parsed)
    with pytest.raises(BundleError, match=message):
        decode_manifest(json.dumps(parsed).encode())


def test_all_problems_are_named_at_once(table: bytes) -> None:
    parsed = json.loads(table)
    parsed |= {"timesteps": 0, "license": 7, "name": ""}
    with pytest.raises(BundleError) as caught:
        decode_manifest(json.dumps(parsed).encode())
    assert all(part in str(caught.value) for part in ("timesteps = 0", "license = 7", "name = ''"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b"[1, 2", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "must be a table"),
        (b'{"schema": "edged.bundle.v1", "schema": "edged.bundle.v1"}', "'schema' appears twice"),
        (b'{"schema": NaN}', "NaN is not a number"),
        (b'{"schema": ' + b"9" * 10_000 + b"}", "is not JSON"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "bytes"),
    ],
)
def test_bytes_that_are_no_manifest_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        decode_manifest(data)


def test_an_error_never_prints_a_whole_manifest(table: bytes) -> None:
    parsed = json.loads(table)
    parsed["description"] = "x" * 100_000
    with pytest.raises(BundleError) as caught:
        decode_manifest(json.dumps(parsed).encode())
    assert len(str(caught.value)) < 500


def test_a_draft_is_checked_like_a_manifest(table: bytes, tmp_path: Path) -> None:
    manifest = decode_manifest(table)
    check_draft(manifest)
    broken = type(manifest)(**{name: getattr(manifest, name) for name in manifest.__struct_fields__} | {"timesteps": 0})
    with pytest.raises(BundleError, match="timesteps = 0"):
        check_draft(broken)
