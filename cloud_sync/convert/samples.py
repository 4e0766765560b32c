"""Reads what a network is calibrated and judged on, and encodes it exactly as a device will: by the manifest's rules.

A folder of ``.npy`` and ``.png`` files (in the order of their names), or one ``.npz`` with ``images`` (N, …) and, for
judging, ``labels`` (N,). Pickles are refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud_sync.convert.errors import ConversionError
from cloud_sync.convert.network import Floats
from edged.bundle.encoding import encode
from edged.bundle.manifest import Input
from edged.domain import Array
from edged.errors import FrameRejected

_SUFFIXES = (".npy", ".png")
_UNREADABLE = (OSError, ValueError, zipfile.BadZipFile, EOFError)


def samples(entry: Input, images: Iterable[Array]) -> Floats:
    """Images as the network's input ``entry`` wants them: (N, *shape). Raises ConversionError naming the image."""
    encoded = []
    for index, image in enumerate(images):
        try:
            encoded.append(encode(entry, 1, image))
        except FrameRejected as error:
            raise ConversionError(f"image {index}: {error.message}", error.hint) from None
    if not encoded:
        raise ConversionError("there are no images", "give at least a few hundred")
    return np.stack(encoded)


def read_images(path: Path) -> list[Array]:
    """The images of a folder or of an .npz file."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
        if not files:
            raise ConversionError(f"{path} holds no {' or '.join(_SUFFIXES)} files")
        return [_read_image(file) for file in files]
    return list(_array(path, "images"))


def read_labelled(path: Path, classes: int) -> tuple[list[Array], NDArray[np.int64]]:
    """Images and labels of an .npz file. Raises ConversionError when they do not fit each other."""
    images, labels = _array(path, "images"), _array(path, "labels")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise ConversionError(
            f"{path}: labels of type {labels.dtype} and shape {labels.shape}",
            f"they must be {len(images)} whole numbers",
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ConversionError(f"{path}: labels from {labels.min()} to {labels.max()}", f"the ANN has {classes} classes")
    return list(images), labels.astype(np.int64)


def _array(path: Path, key: str) -> NDArray[Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile) or key not in archive:
                raise ConversionError(
                    f"{path} has no array {key!r}", "write it with numpy.savez(path, images=…, labels=…)"
                )
            found: NDArray[Any] = archive[key]
    except _UNREADABLE as error:
        raise ConversionError(f"{path} cannot be read: {error}") from None
    if not found.ndim:
        raise ConversionError(f"{path}: {key!r} is a single number")
    return found


def _read_image(path: Path) -> Array:
    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        from PIL import Image  # here: only a folder with PNGs needs it

        with Image.open(path, formats=["PNG"]) as image:
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except _UNREADABLE as error:
        raise ConversionError(f"{path} cannot be read: {error}") from None
