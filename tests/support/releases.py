"""Releases of the bundled digits for a whole device: good ones that differ in their number, and bad ones."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.manifest import ManifestDraft
from edged.bundle.writer import write_contents
from tests.support.store import Key, sign_bundle

DIGITS = Path(__file__).resolve().parents[2] / "models" / "digits" / "bundle"


def release(folder: Path, key: Key | None, counter: int, *, model: bytes | None = None) -> Bundle:
    """The digits as release 1.0.COUNTER, with another graph if one is given."""
    source = open_bundle(DIGITS)
    contents = {name: source.read(name) for name in source.manifest.files}
    contents["model.onnx"] = model or contents["model.onnx"]
    said = {name: getattr(source.manifest, name) for name in ManifestDraft.__struct_fields__}
    draft = msgspec.structs.replace(ManifestDraft(**said), version=f"1.0.{counter}", release_counter=counter)
    bundle = write_contents(folder / f"release-{counter}", draft, contents)
    return sign_bundle(bundle, key) if key is not None else bundle


def wrong_weights() -> bytes:
    """The digits with one weight matrix scaled: a graph in order that computes something else."""
    model = onnx.load_model_from_string(open_bundle(DIGITS).read("model.onnx"))
    weights = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(1.05), weights.name))
    return bytes(model.SerializeToString(deterministic=True))
