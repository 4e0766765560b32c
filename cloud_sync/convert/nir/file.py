"""Reads a NIR file (HDF5) that nobody vouches for: checked before any array is loaded, nothing followed outside it.

Refused: what is no HDF5 file, more than MAX_FILE_BYTES, links that leave the file, virtual and external data, compound
and object types, filters that would load plugins, and whatever unpacks to more than MAX_BYTES. The nir package is not
used: it would read everything first. Knows the form of a file, not what its nodes mean.
"""

from __future__ import annotations

import io
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloud_sync.convert.errors import ConversionError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_FILE_BYTES = 256 << 20  # a network of 60 million weights
MAX_BYTES = 1 << 30  # everything unpacked; deflate alone could make a thousand times the file
MAX_OBJECTS = 200_000  # 20,000 nodes with ten fields each
MAX_DEPTH = 16  # groups in groups; files of today have four
MAX_NAME = 256
FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}  # all inside h5py; others load plugins

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
        import h5py  # type: ignore[import-untyped]  # it ships no types
    except ImportError:
        raise ConversionError("reading NIR needs h5py", "install edged[convert]") from None
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            tree = _Reader(h5py, len(data)).group(file, "", 0)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error.message}", error.hint) from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeError, OverflowError, MemoryError) as error:
        raise ConversionError(f"{path}: damaged HDF5: {str(error)[:200]}") from None
    root = tree.get("node")
    if not isinstance(root, dict):
        raise ConversionError(f"{path}: not a NIR file: there is no group 'node'")
    return _graph(root, "")


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


class _Reader:
    """Walks an open file within a budget of objects and bytes."""

    def __init__(self, h5py: Any, file_bytes: int) -> None:
        self._h5py = h5py
        self._file_bytes = file_bytes
        self._objects = 0
        self._bytes = 0

    def group(self, group: Any, where: str, depth: int) -> dict[str, Value]:
        if depth > MAX_DEPTH:
            raise ConversionError(f"groups are nested more than {MAX_DEPTH} deep at {where!r}")
        found: dict[str, Value] = {}
        for name in group:
            self._objects += 1
            if self._objects > MAX_OBJECTS or len(name) > MAX_NAME:
                raise ConversionError(
                    f"more than {MAX_OBJECTS} objects, or a name longer than {MAX_NAME}, at {where!r}"
                )
            if not isinstance(group.get(name, getlink=True), self._h5py.HardLink):
                raise ConversionError(f"{where}/{name} is a link", "a NIR file holds its own data")
            entry = group[name]
            if isinstance(entry, self._h5py.Group):
                found[name] = self.group(entry, f"{where}/{name}", depth + 1)
            elif isinstance(entry, self._h5py.Dataset):
                found[name] = self._dataset(entry, f"{where}/{name}")
            else:
                raise ConversionError(f"{where}/{name} is neither a group nor data")
        return found

    def _dataset(self, data: Any, where: str) -> Array | str | list[str]:
        text = self._h5py.check_string_dtype(data.dtype)
        if data.shape is None or (text is None and data.dtype.kind not in "biuf"):
            raise ConversionError(f"{where} has the type {data.dtype}", "numbers or text")
        self._check_storage(data, where)
        if text is not None:
            return self._text(data, where)
        self._take(math.prod(data.shape) * max(data.dtype.itemsize, 4), where)
        return np.asarray(data[()])

    def _check_storage(self, data: Any, where: str) -> None:
        plist = data.id.get_create_plist()
        if data.is_virtual or plist.get_external_count():
            raise ConversionError(f"{where} keeps its data in another file", "a NIR file holds its own data")
        for index in range(plist.get_nfilters()):
            number = plist.get_filter(index)[0]
            if number not in FILTERS:
                raise ConversionError(f"{where} is packed by filter {number}", f"known: {', '.join(FILTERS.values())}")
        if data.chunks is not None and math.prod(data.chunks) * data.dtype.itemsize > MAX_BYTES:
            raise ConversionError(f"{where} has chunks of {math.prod(data.chunks)} numbers")

    def _text(self, data: Any, where: str) -> str | list[str]:
        """Text one by one: many entries may share the same long string in the file."""
        if data.shape == ():
            return _decoded(data[()], where)
        lines = []
        self._take(math.prod(data.shape), where)
        for index in np.ndindex(data.shape):
            line = _decoded(data[index], where)
            self._take(len(line), where)
            lines.append(line)
        return lines

    def _take(self, size: int, where: str) -> None:
        self._bytes += size
        if self._bytes > MAX_BYTES:
            raise ConversionError(f"{where} brings the file to more than {MAX_BYTES} bytes")


def _decoded(value: object, where: str) -> str:
    text = value.decode("utf-8") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise ConversionError(f"{where} is not text")
    return text


def _graph(tree: Mapping[str, Value], prefix: str) -> Graph:
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
            graphs[name] = _graph(fields, f"{prefix}{name}.")
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
