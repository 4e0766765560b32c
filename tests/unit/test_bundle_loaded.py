"""A bundle directory is opened only when every file is exactly what the manifest says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edged.bundle.arrays import decode_npz, encode_npz
from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.writer import write_contents
from edged.errors import BundleError, EngineError
from edged.ports import Model, TensorSpec
from tests.support.bundles import make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", kind="conv")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_open_bundle_is_the_pipelines_model(bundle: Bundle) -> None:
    model: Model = bundle
    assert (model.name, model.version, model.timesteps, model.classes) == ("test-conv", "1.0.0", 4, 4)
    assert model.inputs == (TensorSpec("image", "float32", (1, 8, 8)),)
    assert model.states[0] == TensorSpec("conv1.v", "float32", (6, 8, 8))
    assert model.path == bundle.path
    assert len(model.digest) == 64
    assert bundle.labels == ("class-0", "class-1", "class-2", "class-3")
    sample = model.encode(np.full((8, 8), 16, dtype=np.uint8))
    np.testing.assert_array_equal(sample["image"], np.ones((1, 8, 8), dtype=np.float32))


def test_decode_gives_each_row_its_prediction_and_ties_to_the_lowest_index(bundle: Bundle) -> None:
    readout = np.array([[0, 1, 3, 2], [5, 1, 5, 5], [0, 0, 0, 0]], dtype=np.float32)
    found = bundle.decode(readout)
    assert [(p.index, p.label) for p in found] == [(2, "class-2"), (0, "class-0"), (0, "class-0")]
    assert found[0].scores == (0.0, 1.0, 3.0, 2.0)
    assert all(type(score) is float for score in found[0].scores)


@pytest.mark.parametrize("readout", [np.zeros((2, 3)), np.zeros(4), np.full((1, 4), np.nan), np.full((1, 4), np.inf)])
def test_a_readout_that_no_engine_should_return_is_the_engines_error(bundle: Bundle, readout: np.ndarray) -> None:
    with pytest.raises(EngineError):
        bundle.decode(readout.astype(np.float32))


def test_the_same_contents_give_the_same_digest_and_any_change_another(tmp_path: Path) -> None:
    first, again = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b")
    assert contents(first.path) == contents(again.path)
    assert first.digest == again.digest
    assert make_bundle(tmp_path / "c", seed=1).digest != first.digest
    golden = {name: first.read(name) for name in first.manifest.files} | {"README.md": b"# another card\n"}
    assert write_contents(tmp_path / "d", first.manifest, golden).digest != first.digest


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def link(folder: Path) -> None:
    (folder / "model.onnx").rename(folder.parent / "elsewhere.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere.onnx")


def pipe(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")


def folder_for_file(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()


def manifest_link(folder: Path) -> None:
    (folder / "manifest.json").rename(folder.parent / "m.json")
    (folder / "manifest.json").symlink_to(folder.parent / "m.json")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a truncated model": (edit("model.onnx", lambda data: data[:-1]), "model.onnx has .* bytes, the manifest says"),
    "a changed byte": (edit("model.onnx", lambda data: data[:-1] + bytes([data[-1] ^ 1])), "model.onnx is damaged"),
    "a longer file": (edit("golden.npz", lambda data: data + b"x"), "golden.npz has"),
    "a missing file": (lambda folder: (folder / "model.onnx").unlink(), "model.onnx is missing"),
    "a file too many": (lambda folder: (folder / "extra.bin").write_bytes(b""), "extra.bin is not named"),
    "a folder too many": (lambda folder: (folder / "sub").mkdir(), "sub is not named"),
    "a link that is too many": (lambda folder: (folder / "link").symlink_to("/etc/passwd"), "link is not named"),
    "a link for a file": (link, "model.onnx cannot be opened.*no links"),
    "a pipe for a file": (pipe, "model.onnx is not a regular file"),
    "a folder for a file": (folder_for_file, "model.onnx is not a regular file"),
    "a manifest behind a link": (manifest_link, "manifest.json cannot be opened.*no links"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "a manifest that is no JSON": (edit("manifest.json", lambda data: data[:100]), "is not JSON"),
    "a huge manifest": (edit("manifest.json", lambda data: data + b" " * (1 << 20)), "manifest.json has"),
    "thousands of files": (
        lambda folder: [(folder / f"f{k}").write_bytes(b"") for k in range(200)], "more than 32 files"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_directory_that_is_not_exactly_the_bundle_is_refused(bundle: Bundle, name: str) -> None:
    change, message = BAD[name]
    change(bundle.path)
    before = contents(bundle.path)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle.path)
    assert contents(bundle.path) == before


def test_paths_that_are_no_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "nowhere", tmp_path / "file", tmp_path):
        with pytest.raises(BundleError):
            open_bundle(path)


def test_a_slot_may_be_a_link_to_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle.path)
    opened = open_bundle(tmp_path / "current")
    assert opened.path == bundle.path, "the link may move on; what was opened stays"


def test_a_file_that_changes_after_opening_is_noticed_when_it_is_read(bundle: Bundle) -> None:
    assert bundle.read("report.json").startswith(b"{")
    (bundle.path / "report.json").write_bytes(b"[" + bundle.read("report.json")[1:])
    with pytest.raises(BundleError, match="was changed"):
        bundle.read("report.json")
    with pytest.raises(BundleError, match="has no file 'other'"):
        bundle.read("other")


def test_writing_onto_something_changes_nothing(bundle: Bundle, tmp_path: Path) -> None:
    before = contents(bundle.path)
    with pytest.raises(BundleError, match="exists"):
        make_bundle(bundle.path)
    assert contents(bundle.path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_failed_write_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    graph_data = {name: bundle.read(name) for name in bundle.manifest.files}
    del graph_data["model.onnx"]
    with pytest.raises(BundleError, match=r"'model\.onnx': is not among files"):
        write_contents(tmp_path / "new", bundle.manifest, graph_data)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_golden_arrays_survive_and_have_fixed_bytes() -> None:
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.asarray(3), "c": np.ones(2, dtype=bool)}
    data = encode_npz(arrays)
    assert data == encode_npz(dict(reversed(arrays.items())))
    found = decode_npz(data)
    assert all(
        np.array_equal(found[name], value) and found[name].dtype == value.dtype for name, value in arrays.items()
    )


def test_golden_data_with_pickles_or_lies_is_refused() -> None:
    good = encode_npz({"a": np.zeros(4, dtype=np.float32)})
    with pytest.raises(ValueError, match=r"allow_pickle"):
        encode_npz({"a": np.array([object()], dtype=object)})
    for data in (b"", b"PK", good[:-10], good.replace(b"(4,)", b"(9,)"), good.replace(b"'<f4'", b"'|O8'"),
                 good.replace(b"NUMPY", b"NUMPX")):  # fmt: skip
        with pytest.raises(BundleError, match="golden data cannot be read"):
            decode_npz(data)


def test_the_daemons_side_imports_neither_onnx_nor_onnxruntime() -> None:
    program = (
        "import sys, edged.bundle.loaded, edged.bundle.plans, edged.bundle.selftest, edged.bundle.archive, "
        "edged.bundle.cli\n"
        "print(sorted({'onnx', 'onnxruntime', 'google.protobuf'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "[]\n"
