"""The graph of a NIR file that nobody vouches for: a process of its own reads the HDF5 (``hdf5``), here it is checked.

Refused: what is no HDF5 file, more than MAX_FILE_BYTES, what ``hdf5`` refuses, and whatever has not the form of a NIR
graph. Knows the form of a file, not what its nodes mean.
"""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloud_sync.convert.errors import ConversionError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_FILE_BYTES = 256 << 20  # a network of 60 million weights
READER = Path(__file__).with_name("hdf5.py")
READER_SECONDS = 300  # the reader limits its own work; a loaded machine may take longer over it
REFUSED = 3  # ``hdf5.Exit``, which this process does not import: it would bring in h5py

Array = NDArray[Any]
Value: TypeAlias = "Array | str | list[str] | dict[str, Value]"


@dataclass(frozen=True)
class Node:
    """One node of a file: its type and its fields as they were found."""

    name: str
    kind: str
    fields: Mapping[str, Value]


@dataclass(frozen=True)
class Graph:
    """The nodes of one graph by name, and its edges, both sorted: their order in a file is chance.

    A NIRGraph among the nodes has its own in ``graphs``.
    """

    nodes: Mapping[str, Node]
    edges: tuple[tuple[str, str], ...]
    graphs: Mapping[str, Graph]


def read(path: Path) -> Graph:
    """The graph of a NIR file. Raises ConversionError."""
    data = _bytes(path)
    try:
        root = _tree(data).get("node")
        if not isinstance(root, dict):
            raise ConversionError("not a NIR file: there is no group 'node'")
        return graph(root)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error.message}", error.hint) from None


def _tree(data: bytes) -> dict[str, Value]:
    """What a process of its own finds in the file."""
    command = [sys.executable, "-I", str(READER)]
    one_thread = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # more would count against its memory
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, check=False, timeout=READER_SECONDS, env=one_thread
        )
    except subprocess.TimeoutExpired:
        raise ConversionError("damaged HDF5: it could not be read in time") from None
    if done.returncode == REFUSED:
        raise ConversionError(*json.loads(done.stderr))
    if b"No module named 'h5py'" in done.stderr:
        raise ConversionError("reading NIR needs h5py", "install edged[convert]")
    if done.returncode:
        raise ConversionError(f"damaged HDF5: its reader ended with {done.returncode}")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as found:
        root = _placed(json.loads(found["tree"].tobytes()), found)
    assert isinstance(root, dict)
    return root


def _placed(named: Any, arrays: Mapping[str, Array]) -> Value:
    """The tree with its arrays in their places."""
    if not isinstance(named, dict):
        return named  # type: ignore[no-any-return]  # text and lists of text, as the reader wrote them
    if "array" in named:
        return arrays[named["array"]]
    return {name: _placed(inner, arrays) for name, inner in named["group"].items()}


def _bytes(path: Path) -> bytes:
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise ConversionError(f"{path} is not a regular file")
        if info.st_size > MAX_FILE_BYTES:
            raise ConversionError(f"{path} has {info.st_size} bytes", f"at most {MAX_FILE_BYTES}")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConversionError(f"{path} cannot be read: {error.strerror}") from None
    if not data.startswith(SIGNATURE):
        raise ConversionError(f"{path} is not a NIR file", "its first bytes are not those of HDF5")
    return data


def graph(tree: Mapping[str, Value], prefix: str = "") -> Graph:
    """The graph that a tree of groups and data describes. Raises ConversionError."""
    where = f"graph {prefix!r}" if prefix else "the graph"
    nodes, edges = tree.get("nodes"), tree.get("edges")
    if tree.get("type") != "NIRGraph" or not isinstance(nodes, dict) or not isinstance(edges, list) or len(edges) % 2:
        raise ConversionError(f"{where} is no NIRGraph with nodes and edges")
    found, graphs = {}, {}
    for name, fields in sorted(nodes.items()):
        kind = fields.get("type") if isinstance(fields, dict) else None
        if not isinstance(fields, dict) or not isinstance(kind, str):
            raise ConversionError(f"node {prefix}{name} has no type")
        found[name] = Node(f"{prefix}{name}", kind, {k: v for k, v in fields.items() if k not in ("type", "metadata")})
        if kind == "NIRGraph":
            graphs[name] = graph(fields, f"{prefix}{name}.")
    pairs = list(zip(edges[::2], edges[1::2], strict=True))
    for end in {end for pair in pairs for end in pair}:
        if end not in found:
            raise ConversionError(f"{where} has an edge to {end!r}, which is no node of it")
    if len(set(pairs)) != len(pairs):
        twice = next(pair for pair in pairs if pairs.count(pair) > 1)
        raise ConversionError(
            f"{where} has the edge {twice[0]} → {twice[1]} twice", "it is unclear whether it counts twice"
        )
    return Graph(found, tuple(sorted(pairs)), graphs)
