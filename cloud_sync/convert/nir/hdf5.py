"""Reads and writes HDF5 for NIR. A file that nobody vouches for is read by a process of its own, which may be lost.

``libhdf5`` loops, or worse, on some damaged files. So this module runs as a program too: the file's bytes come on
stdin, what they hold goes to stdout as an ``.npz`` without pickles, within limits of time and memory. It stands alone,
and is started with ``python -I``.

Refused: links, virtual and external data, compound and object types, filters that would load plugins, and whatever
unpacks to more than MAX_BYTES. The nir package is not used: it would read everything first.
"""

from __future__ import annotations

import enum
import io
import json
import math
import resource
import sys
from collections.abc import Mapping
from typing import Any, TypeAlias

import h5py  # type: ignore[import-untyped]  # it ships no types
import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 1 << 30  # everything unpacked; deflate alone could make a thousand times the file
MAX_OBJECTS = 200_000  # 20,000 nodes with ten fields each
MAX_LINES = 40_000  # 20,000 edges
MAX_DEPTH = 16  # groups in groups; files of today have four
MAX_NAME = 256
MAX_SECONDS = 60  # of a processor; a gigabyte takes some ten
MAX_MEMORY = 6 << 30  # the file, its arrays and their copy on the way out
FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}  # all inside h5py; others load plugins
TREE = "tree"  # the member of the .npz that holds names and text, with {"array": member} where an array belongs

Array = NDArray[Any]
Value: TypeAlias = "Array | str | list[str] | dict[str, Value]"


class Exit(enum.IntEnum):
    """How the reading process ends, where it is not killed."""

    READ = 0
    REFUSED = 3  # stderr holds a JSON list: message, hint


class RefusedError(Exception):
    """The file holds what no NIR file has: message and hint."""


def write(file: Any, tree: Mapping[str, Value]) -> None:
    """Write a tree of groups, arrays and text to a path or a binary file, as the nir package does."""
    with h5py.File(file, "w") as opened:
        _fill(opened, tree)


def _fill(group: Any, tree: Mapping[str, Value]) -> None:
    for name, value in tree.items():
        if isinstance(value, dict):
            _fill(group.create_group(name), value)
        elif isinstance(value, (str, list)) or value.dtype == object:
            group.create_dataset(name, data=value, dtype=h5py.string_dtype())
        else:
            packing = {"compression": "gzip", "shuffle": True} if value.ndim and value.size else {}
            group.create_dataset(name, data=value, **packing)


def read(data: bytes) -> dict[str, Value]:
    """Everything in a file. Raises RefusedError, or what h5py raises for a damaged one."""
    with h5py.File(io.BytesIO(data), "r") as file:
        return _Reader().group(file, "", 0)


class _Reader:
    """Walks an open file within a budget of objects and bytes."""

    def __init__(self) -> None:
        self._objects = 0
        self._lines = 0
        self._bytes = 0

    def group(self, group: Any, where: str, depth: int) -> dict[str, Value]:
        if depth > MAX_DEPTH:
            raise RefusedError(f"groups are nested more than {MAX_DEPTH} deep at {where!r}")
        found: dict[str, Value] = {}
        for name in group:
            self._objects += 1
            if self._objects > MAX_OBJECTS or len(name) > MAX_NAME:
                raise RefusedError(f"more than {MAX_OBJECTS} objects, or a name longer than {MAX_NAME}, at {where!r}")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise RefusedError(f"{where}/{name} is a link", "a NIR file holds its own data")
            entry = group[name]
            if isinstance(entry, h5py.Group):
                found[name] = self.group(entry, f"{where}/{name}", depth + 1)
            elif isinstance(entry, h5py.Dataset):
                found[name] = self._dataset(entry, f"{where}/{name}")
            else:
                raise RefusedError(f"{where}/{name} is neither a group nor data")
        return found

    def _dataset(self, data: Any, where: str) -> Array | str | list[str]:
        text = h5py.check_string_dtype(data.dtype)
        if data.shape is None or (text is None and data.dtype.kind not in "biuf"):
            raise RefusedError(f"{where} has the type {data.dtype}", "numbers or text")
        self._check_storage(data, where)
        if text is not None:
            return self._text(data, where)
        self._take(math.prod(data.shape) * max(data.dtype.itemsize, 4), where)
        return np.asarray(data[()])

    def _check_storage(self, data: Any, where: str) -> None:
        plist = data.id.get_create_plist()
        if data.is_virtual or plist.get_external_count():
            raise RefusedError(f"{where} keeps its data in another file", "a NIR file holds its own data")
        for index in range(plist.get_nfilters()):
            number = plist.get_filter(index)[0]
            if number not in FILTERS:
                raise RefusedError(f"{where} is packed by filter {number}", f"known: {', '.join(FILTERS.values())}")
        if data.chunks is not None and math.prod(data.chunks) * data.dtype.itemsize > MAX_BYTES:
            raise RefusedError(f"{where} has chunks of {math.prod(data.chunks)} numbers")

    def _text(self, data: Any, where: str) -> str | list[str]:
        """Text one by one: many entries may share the same long string in the file."""
        if data.shape == ():
            return _decoded(data[()], where)
        lines = []
        self._lines += math.prod(data.shape)
        if self._lines > MAX_LINES:
            raise RefusedError(f"{where} brings the file to more than {MAX_LINES} lines of text")
        for index in np.ndindex(data.shape):
            line = _decoded(data[index], where)
            self._take(len(line), where)
            lines.append(line)
        return lines

    def _take(self, size: int, where: str) -> None:
        self._bytes += size
        if self._bytes > MAX_BYTES:
            raise RefusedError(f"{where} brings the file to more than {MAX_BYTES} bytes")


def _decoded(value: object, where: str) -> str:
    text = value.decode("utf-8") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise RefusedError(f"{where} is not text")
    return text


def main() -> int:
    """The reading process."""
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    try:
        tree = read(sys.stdin.buffer.read())
    except RefusedError as error:
        json.dump([*error.args, ""][:2], sys.stderr)
        return Exit.REFUSED
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        json.dump([f"damaged HDF5: {str(error)[:200]}", ""], sys.stderr)
        return Exit.REFUSED
    arrays: dict[str, Array] = {}
    named = _named(tree, arrays)
    arrays[TREE] = np.frombuffer(json.dumps(named).encode(), np.uint8)
    np.savez(sys.stdout.buffer, allow_pickle=False, **arrays)
    return Exit.READ


def _named(value: Value, arrays: dict[str, Array]) -> Any:
    if isinstance(value, dict):
        return {"group": {name: _named(inner, arrays) for name, inner in value.items()}}
    if isinstance(value, (str, list)):
        return value
    name = f"a{len(arrays)}"
    arrays[name] = value
    return {"array": name}


if __name__ == "__main__":
    sys.exit(main())
