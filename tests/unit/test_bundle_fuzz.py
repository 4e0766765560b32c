"""Damaged bundles of every sort end in a BundleError, never in another exception, and never write outside."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.bundle.archive import pack, unpack
from edged.bundle.arrays import decode_npz
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.manifest import decode_manifest, encode_manifest
from edged.errors import BundleError
from tests.support.bundles import make_bundle

SEVERAL = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("b") / "dense")


@pytest.fixture(scope="module")
def tar(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("t") / "dense.tar"
    pack(bundle.path, out)
    return out.read_bytes()


Damage = Callable[[bytes], bytes]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """One to three of: flip bits of a byte, cut the end, cut a piece, insert bytes, repeat a piece. Early bytes, which
    hold headers and structure, are hit as often as all the rest."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["flip", "truncate", "cut", "insert", "repeat"]),
                st.one_of(st.floats(0, 1), st.floats(0, 0.05)),
                st.binary(min_size=1, max_size=40),
            ),
            min_size=1,
            max_size=3,
        )
    )

    def damage(data: bytes) -> bytes:
        for kind, where, extra in steps:
            at = int(where * max(0, len(data) - 1))
            piece = data[at : at + len(extra)]
            data = {
                "flip": data[:at] + bytes(byte ^ (extra[0] or 1) for byte in data[at : at + 1]) + data[at + 1 :],
                "truncate": data[:at],
                "cut": data[:at] + data[at + len(extra) :],
                "insert": data[:at] + extra + data[at:],
                "repeat": data[:at] + piece + data[at:],
            }[kind]
        return data

    return damage


@given(damage=damages())
@SEVERAL
def test_a_damaged_archive_is_refused_and_leaves_nothing(tar: bytes, damage: Damage) -> None:
    data = damage(tar)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.tar").write_bytes(data)
        if data == tar:
            unpack(Path(folder) / "a.tar", Path(folder) / "in" / "new")
            return
        with pytest.raises(BundleError):
            unpack(Path(folder) / "a.tar", Path(folder) / "in" / "new")
        assert sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*")) == ["a.tar", "in"]


@given(damage=damages())
@SEVERAL
def test_a_damaged_manifest_is_refused_or_another_bundle(bundle: Bundle, damage: Damage) -> None:
    data = damage(bundle.manifest_bytes())
    try:
        manifest = decode_manifest(data)
    except BundleError:
        return
    assert decode_manifest(encode_manifest(manifest)) == manifest, "what passes is a whole manifest"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(data=st.data(), value=JSON)
@SEVERAL
def test_any_value_anywhere_in_a_manifest_is_taken_or_refused(bundle: Bundle, data: st.DataObject, value: Any) -> None:
    table = json.loads(bundle.manifest_bytes())
    inner: Any = table
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(inner[key], (dict, list)) or not inner[key] or data.draw(st.booleans()):
            inner[key] = value
            break
        inner = inner[key]
    try:
        manifest = decode_manifest(json.dumps(table).encode())
    except BundleError:
        return
    assert decode_manifest(encode_manifest(manifest)) == manifest


@given(damage=damages())
@SEVERAL
def test_a_damaged_model_is_refused_or_still_canonical(bundle: Bundle, damage: Damage) -> None:
    try:
        model = check_step_graph(damage(bundle.read("model.onnx")), bundle.spec)
    except BundleError:
        return
    assert isinstance(model, onnx.ModelProto)
    assert check_step_graph(model, bundle.spec) is model


@given(damage=damages())
@SEVERAL
def test_damaged_golden_data_is_refused_or_numbers(bundle: Bundle, damage: Damage) -> None:
    try:
        arrays = decode_npz(damage(bundle.read("golden.npz")))
    except BundleError:
        return
    assert all(value.dtype.kind in "biuf" for value in arrays.values())


@given(
    damage=damages(), name=st.sampled_from(["manifest.json", "model.onnx", "golden.npz", "report.json", "README.md"])
)
@SEVERAL
def test_a_directory_with_a_damaged_file_is_refused(bundle: Bundle, damage: Damage, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for path in bundle.path.iterdir():
            (Path(folder) / path.name).write_bytes(path.read_bytes())
        whole = (Path(folder) / name).read_bytes()
        (Path(folder) / name).write_bytes(damage(whole))
        try:
            found = open_bundle(Path(folder))
        except BundleError:
            return
        assert damage(whole) == whole or (name == "manifest.json" and found.digest != bundle.digest)
