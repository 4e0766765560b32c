"""Writes a bundle directory: the same contents always give the same bytes and the same digest.

The directory appears whole or not at all, and is opened (so verified) before it is returned. Checks the manifest, not
the graph: ``edged bundle verify`` does that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import onnx

from edged.bundle.arrays import encode_npz
from edged.bundle.files import appearing, write_durably
from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    ManifestDraft,
    Precision,
    Variant,
    check_draft,
    encode_manifest,
)  # fmt: skip
from edged.domain import Array

MODEL = "model.onnx"
GOLDEN = "golden.npz"
REPORT = "report.json"
CARD = "README.md"


def write_bundle(
    dest: Path,
    *,
    manifest: ManifestDraft,
    model: onnx.ModelProto,
    golden: Mapping[str, Array],
    report: bytes | Mapping[str, Any],
    card: str,
    precision: Precision = "f32",
) -> Bundle:
    """Write a bundle to ``dest``, which must not exist. Raises BundleError; then nothing was written.

    ``precision`` is that of the weights in ``model``.
    """
    check_draft(manifest)
    if not isinstance(report, bytes):
        encoded = msgspec.json.encode(dict(report), order="deterministic")
        report = msgspec.json.format(encoded, indent=2) + b"\n"
    contents = {
        MODEL: model.SerializeToString(deterministic=True),
        GOLDEN: encode_npz(golden),
        REPORT: report,
        CARD: card.encode(),
    }
    return write_contents(dest, manifest, contents, precision)


def write_contents(
    dest: Path, draft: ManifestDraft, contents: Mapping[str, bytes], precision: Precision = "f32"
) -> Bundle:
    """Write given files and the manifest that names them. Raises BundleError; then nothing was written."""
    files = {
        name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data)) for name, data in contents.items()
    }
    variants = (Variant(name=precision, model=MODEL, golden=GOLDEN),)
    said = {name: getattr(draft, name) for name in ManifestDraft.__struct_fields__}
    whole = Manifest(**said, schema="edged.bundle.v1", variants=variants, files=dict(sorted(files.items())))
    with appearing(dest) as temporary:
        for name, data in contents.items():
            write_durably(temporary / name, data)
        write_durably(temporary / MANIFEST, encode_manifest(whole))
        open_bundle(temporary)
    return open_bundle(dest)
