"""Releases of the bundled digits for a whole device: good ones that differ in their number, and bad ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.manifest import ManifestDraft
from edged.bundle.writer import write_contents
from tests.support.store import Key, sign_bundle

DIGITS = Path(__file__).resolve().parents[2] / "models" / "digits" / "bundle"


def release(
    folder: Path, key: Key | None, counter: int, *, model: bytes | None = None, source: Path = DIGITS, version: str = ""
) -> Bundle:
    """The digits as release 1.0.COUNTER, with another graph if one is given; or what ``source`` holds by their name."""
    bundle = open_bundle(source)
    contents = {name: bundle.read(name) for name in bundle.manifest.files}
    contents["model.onnx"] = model or contents["model.onnx"]
    said = {name: getattr(bundle.manifest, name) for name in ManifestDraft.__struct_fields__}
    version = version or f"1.0.{counter}"
    said |= {"name": "digits", "version": version, "release_counter": counter}
    written = write_contents(folder / f"release-{version.rpartition('.')[2]}", ManifestDraft(**said), contents)
    return sign_bundle(written, key) if key is not None else written


def wrong_weights() -> bytes:
    """The digits with one weight matrix scaled: a graph in order that computes something else."""
    model = onnx.load_model_from_string(open_bundle(DIGITS).read("model.onnx"))
    weights = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(1.05), weights.name))
    return bytes(model.SerializeToString(deterministic=True))
