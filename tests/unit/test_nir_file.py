"""NIR files from strangers: what is read, and what is refused before it can cost anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]  # it ships no types
import numpy as np
import pytest

from cloud_sync.convert.errors import ConversionError
from cloud_sync.convert.nir import file as nir_file
from cloud_sync.convert.nir.file import Graph, read
from tests.support.nir_files import Net

NET = Net(
    {
        "in": {"type": "Input", "shape": np.array([2])},
        "w": {"type": "Linear", "weight": np.arange(4.0).reshape(2, 2), "metadata": "mine"},
        "out": {"type": "Output", "shape": np.array([2])},
    },
    [("w", "out"), ("in", "w")],
)


def test_a_file_is_read_with_its_nodes_and_edges_in_order_of_their_names(tmp_path: Path) -> None:
    graph = read(NET.write(tmp_path / "a.nir"))
    assert [(node.name, node.kind) for node in graph.nodes.values()] == [
        ("in", "Input"), ("out", "Output"), ("w", "Linear")
    ]  # fmt: skip
    assert graph.edges == (("in", "w"), ("w", "out"))
    assert set(graph.nodes["w"].fields) == {"weight"}
    np.testing.assert_array_equal(np.asarray(graph.nodes["w"].fields["weight"]), [[0, 1], [2, 3]])


def test_packed_data_are_read(tmp_path: Path) -> None:
    path = NET.write(tmp_path / "a.nir")
    with h5py.File(path, "a") as file:
        weight = file["node/nodes/w"]
        del weight["weight"]
        weight.create_dataset("weight", data=np.ones((2, 2)), compression="gzip", shuffle=True, fletcher32=True)
    np.testing.assert_array_equal(np.asarray(read(path).nodes["w"].fields["weight"]), np.ones((2, 2)))


def soft_link(file: Any, _: Path) -> None:
    file["node/nodes/w/bias"] = h5py.SoftLink("/node/nodes/w/weight")


def external_link(file: Any, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["secret"] = np.ones(3)
    file["node/nodes/w/bias"] = h5py.ExternalLink("other.h5", "/secret")


def external_data(file: Any, folder: Path) -> None:
    (folder / "raw").write_bytes(bytes(64))
    file["node/nodes/w"].create_dataset("bias", (4,), "f8", external=[(str(folder / "raw"), 0, 64)])


def virtual_data(file: Any, folder: Path) -> None:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(folder / "other.h5", "secret", shape=(3,))
    file["node/nodes/w"].create_virtual_dataset("bias", layout)


def bomb(file: Any, _: Path) -> None:
    file["node/nodes/w"].create_dataset("bias", (1 << 30,), "f8", chunks=(1 << 20,), compression="gzip")


def compound(file: Any, _: Path) -> None:
    file["node/nodes/w/bias"] = np.zeros(2, dtype=[("a", "f4"), ("b", "f4")])


def reference(file: Any, _: Path) -> None:
    file["node/nodes/w"].create_dataset("bias", data=file["node"].ref, dtype=h5py.ref_dtype)


def nothing(file: Any, _: Path) -> None:
    file["node/nodes/w/bias"] = h5py.Empty("f4")


def named_type(file: Any, _: Path) -> None:
    file["node/nodes/w/bias"] = np.dtype("f4")


def deep(file: Any, _: Path) -> None:
    file.create_group("node/nodes/w/" + "/".join("a" * 20))


def endless(file: Any, _: Path) -> None:
    file["node/nodes/w/again"] = file["node"]  # a hard link to what holds it


def not_text(file: Any, _: Path) -> None:
    file["node/nodes/w"].create_dataset("bias", data=b"\xff\xfe", dtype=h5py.string_dtype("utf-8"))


def a_long_name(file: Any, _: Path) -> None:
    file["node/nodes/" + "n" * 300] = 1.0


def no_graph(file: Any, _: Path) -> None:
    del file["node"]


def another_type(file: Any, _: Path) -> None:
    del file["node/type"]
    file["node/type"] = "Affine"


def no_type(file: Any, _: Path) -> None:
    del file["node/nodes/w/type"]


def an_edge_to_nowhere(file: Any, _: Path) -> None:
    file["node/edges"][0] = ["w", "elsewhere"]


def an_edge_twice(file: Any, _: Path) -> None:
    file["node/edges"][0] = ["in", "w"]


HOSTILE: dict[Callable[[Any, Path], None], str] = {
    soft_link: "is a link",
    external_link: "is a link",
    external_data: "keeps its data in another file",
    virtual_data: "keeps its data in another file",
    bomb: "brings the file to more than",
    compound: "has the type",
    reference: "has the type",
    nothing: "has the type",
    named_type: "is neither a group nor data",
    deep: "nested more than",
    endless: "nested more than",
    not_text: "damaged HDF5",
    a_long_name: "a name longer than",
    no_graph: "there is no group 'node'",
    another_type: "the graph is no NIRGraph",
    no_type: "node w has no type",
    an_edge_to_nowhere: "an edge to 'elsewhere'",
    an_edge_twice: "has the edge in → w twice",
}


@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda spoil: spoil.__name__)
def test_a_hostile_or_broken_file_is_refused_with_its_reason(
    spoil: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    path = NET.write(tmp_path / "a.nir")
    with h5py.File(path, "a") as file:
        spoil(file, tmp_path)
    with pytest.raises(ConversionError) as refused:
        read(path)
    assert HOSTILE[spoil] in str(refused.value)
    assert str(path) in str(refused.value)


def test_what_is_no_file_or_no_hdf5_is_refused(tmp_path: Path) -> None:
    for name, hint in (("missing.nir", "cannot be read"), ("folder.nir", "not a regular file"), ("text.nir", "HDF5")):
        path = tmp_path / name
        if name == "folder.nir":
            path.mkdir()
        elif name == "text.nir":
            path.write_text("a spiking network")
        with pytest.raises(ConversionError, match=hint):
            read(path)
    os.mkfifo(tmp_path / "pipe.nir")
    with pytest.raises(ConversionError, match="not a regular file"):
        read(tmp_path / "pipe.nir")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = NET.write(tmp_path / "a.nir")
    monkeypatch.setattr(nir_file, "MAX_FILE_BYTES", 100)
    with pytest.raises(ConversionError, match="at most 100"):
        read(path)


def test_a_damaged_file_is_an_error_or_another_graph_but_never_a_crash(tmp_path: Path) -> None:
    data = bytearray(NET.write(tmp_path / "a.nir").read_bytes())
    rng = np.random.default_rng(1)
    refused = 0
    for round_ in range(16):
        spoiled = bytearray(data)
        if round_ % 2 == 0:
            del spoiled[int(rng.integers(8, len(data))) :]
        else:
            for at in rng.integers(8, len(data), 4):
                spoiled[at] = rng.integers(256)
        (tmp_path / "b.nir").write_bytes(spoiled)
        try:
            assert isinstance(read(tmp_path / "b.nir"), Graph)
        except ConversionError:
            refused += 1
    assert refused > 5


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("while True: pass", "could not be read in time"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its reader ended with -11"),
    ],
)
def test_a_reader_that_is_lost_takes_nothing_with_it(
    program: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = tmp_path / "lost.py"
    lost.write_text(program)
    path = NET.write(tmp_path / "a.nir")
    assert read(path).nodes  # the control: the true reader reads it
    monkeypatch.setattr(nir_file, "READER", lost)
    monkeypatch.setattr(nir_file, "READER_SECONDS", 1)
    with pytest.raises(ConversionError, match=reason):
        read(path)
