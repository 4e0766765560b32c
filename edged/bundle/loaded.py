"""Opens a bundle directory: every file is verified before any is used, and the result is the pipeline's ``Model``.

Rules: only regular files named by the manifest (and the signature), opened without following links, exact in size and
sha256. Imports neither onnx nor onnxruntime: what the graph holds is checked where plans are made
(``edged.bundle.plans``). Whether a signature holds is for ``edged.bundle.signing`` to say.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edged.bundle.encoding import encode
from edged.bundle.graph.spec import GraphSpec
from edged.bundle.manifest import (
    MANIFEST,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    EventFrames,
    FileEntry,
    Input,
    Manifest,
    decode_manifest,
    digest,
    graph_spec,
)  # fmt: skip
from edged.domain import Array, Payload, Prediction
from edged.errors import BundleError, EngineError
from edged.ports import EventWindow, TensorSpec

CHUNK = 1 << 20  # bytes hashed at a time
SIGNATURE = "model.sig"  # may lie beside the files; no part of what it signs, so the manifest does not name it
MAX_SIGNATURE_BYTES = 64 << 10  # one of the most files allowed takes 6 KiB


@dataclass(frozen=True)
class Bundle:
    """A verified bundle; implements ``edged.ports.Model``."""

    path: Path
    manifest: Manifest
    digest: str
    name: str = field(init=False)
    version: str = field(init=False)
    timesteps: int = field(init=False)
    classes: int = field(init=False)
    labels: tuple[str, ...] = field(init=False)
    inputs: tuple[TensorSpec, ...] = field(init=False)
    states: tuple[TensorSpec, ...] = field(init=False)
    output: str = field(init=False)
    spec: GraphSpec = field(init=False)

    def __post_init__(self) -> None:
        manifest = self.manifest
        derived = {
            "name": manifest.name,
            "version": manifest.version,
            "timesteps": manifest.timesteps,
            "classes": manifest.output.classes,
            "labels": manifest.labels,
            "inputs": tuple(_input_spec(entry) for entry in manifest.inputs),
            "states": tuple(TensorSpec(s.input, "float32", s.shape) for s in manifest.states),
            "output": manifest.output.name,
            "spec": graph_spec(manifest),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def encode(self, payload: Payload) -> dict[str, Array]:
        """Turn a payload into one sample by input name: (*shape) or (T, *shape). Raises FrameRejected."""
        entry = self.manifest.inputs[0]
        return {entry.name: encode(entry, self.timesteps, payload)}

    def decode(self, readout: NDArray[np.float32]) -> list[Prediction]:
        """Turn readouts (B, classes) into predictions; of equal scores the lowest index wins.

        Raises EngineError when the readout has another shape or is not finite: no correct engine returns that.
        """
        if readout.ndim != 2 or readout.shape[1] != self.classes:
            raise EngineError(f"the readout has shape {readout.shape}", f"expected (batch, {self.classes})")
        if not np.isfinite(readout).all():
            raise EngineError("the readout is not finite", "the engine computed NaN or infinity")
        winners: list[int] = readout.argmax(axis=1).tolist()
        scores: list[list[float]] = readout.tolist()
        return [Prediction(index, self.labels[index], tuple(row)) for index, row in zip(winners, scores, strict=True)]

    def manifest_bytes(self) -> bytes:
        """The bytes of the manifest, whose sha256 is the digest. Raises BundleError."""
        with _directory(self.path) as folder:
            data = _manifest_bytes(self.path, folder)
        if digest(data) != self.digest:
            raise BundleError(f"{self.path / MANIFEST} was changed since the bundle was opened")
        return data

    def signature(self) -> bytes | None:
        """The bytes of the signature that lies beside the files, None where there is none. Raises BundleError."""
        with _directory(self.path) as folder:
            if SIGNATURE not in _names(self.path, folder):
                return None
            with _opened(self.path, folder, SIGNATURE) as fd:
                size = os.fstat(fd).st_size
                if size > MAX_SIGNATURE_BYTES:
                    raise BundleError(f"{self.path / SIGNATURE} has {size} bytes", f"at most {MAX_SIGNATURE_BYTES}")
                return _read(self.path / SIGNATURE, fd, size)

    def read(self, name: str) -> bytes:
        """The bytes of one file, verified again. Raises BundleError."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"{self.path} has no file {name!r}", f"it has {', '.join(sorted(self.manifest.files))}")
        with _directory(self.path) as folder, _opened(self.path, folder, name) as fd:
            data = _read(self.path / name, fd, entry.size)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleError(f"{self.path / name} was changed: its sha256 differs from the manifest")
        return data


def _input_spec(entry: Input) -> TensorSpec:
    how = entry.encoding
    window = EventWindow(how.width, how.height, how.dt_us, how.t0, how.tail) if isinstance(how, EventFrames) else None
    return TensorSpec(entry.name, entry.dtype, entry.shape, entry.time == "sequence", window)


def open_bundle(path: Path) -> Bundle:
    """Open and verify a bundle directory. Raises BundleError; reads only."""
    with _directory(path) as folder:
        data = _manifest_bytes(path, folder)
        manifest = decode_manifest(data)
        present = _names(path, folder)
        if SIGNATURE in manifest.files:
            raise BundleError(f"{path / MANIFEST} names {SIGNATURE}", "a signature cannot be a file that it signs")
        for name in sorted(present - set(manifest.files) - {MANIFEST, SIGNATURE}):
            raise BundleError(f"{path / name} is not named by the manifest", "remove it, or write the bundle again")
        for name, entry in sorted(manifest.files.items()):
            if name not in present:
                raise BundleError(f"{path / name} is missing", "the bundle is incomplete; copy it again")
            _verify(path, folder, name, entry)
    return Bundle(path.resolve(), manifest, digest(data))


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(f"{path} cannot be opened: {error.strerror}", "name a bundle directory") from None
    try:
        yield folder
    finally:
        os.close(folder)


def _names(path: Path, folder: int) -> set[str]:
    names: set[str] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            names.add(entry.name)
            if len(names) > MAX_FILES + 2:  # the manifest and the signature
                raise BundleError(f"{path} holds more than {MAX_FILES} files", "this is not a bundle directory")
    return names


@contextmanager
def _opened(path: Path, folder: int, name: str) -> Iterator[int]:
    """A regular file of the bundle, open for reading; never through a link, never blocking on a pipe."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        raise BundleError(f"{path / name} is missing", "this is not a bundle directory") from None
    except OSError as error:
        hint = "a bundle holds plain files only, no links" if (path / name).is_symlink() else ""
        raise BundleError(f"{path / name} cannot be opened: {error.strerror}", hint) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BundleError(f"{path / name} is not a regular file", "a bundle holds plain files only")
        yield fd
    finally:
        os.close(fd)


def _manifest_bytes(path: Path, folder: int) -> bytes:
    with _opened(path, folder, MANIFEST) as fd:
        size = os.fstat(fd).st_size
        if size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path / MANIFEST} has {size} bytes", f"at most {MAX_MANIFEST_BYTES}")
        return _read(path / MANIFEST, fd, size)


def _read(path: Path, fd: int, size: int) -> bytes:
    _check_size(path, fd, size)
    try:
        with os.fdopen(os.dup(fd), "rb") as file:
            data = file.read(size)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) != size:
        raise BundleError(f"{path} shrank while it was read")
    return data


def _verify(path: Path, folder: int, name: str, entry: FileEntry) -> None:
    with _opened(path, folder, name) as fd:
        _check_size(path / name, fd, entry.size)
        found = hashlib.sha256()
        try:
            while chunk := os.read(fd, CHUNK):
                found.update(chunk)
        except OSError as error:
            raise BundleError(f"{path / name} cannot be read: {error.strerror}") from None
    if found.hexdigest() != entry.sha256:
        hint = f"sha256 {found.hexdigest()[:12]}…, the manifest says {entry.sha256[:12]}…; copy the bundle again"
        raise BundleError(f"{path / name} is damaged", hint)


def _check_size(path: Path, fd: int, size: int) -> None:
    found = os.fstat(fd).st_size
    if found != size:
        raise BundleError(f"{path} has {found} bytes, the manifest says {size}", "the file is truncated or not its own")
