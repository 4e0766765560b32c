"""Reads what a network is calibrated and judged on, and encodes it exactly as a device will: by the manifest's rules.

A folder of ``.npy`` and ``.png`` files (in the order of their names), or one ``.npz`` with ``images`` (N, …) and, for
judging, ``labels`` (N,), or a folder with one such folder for each class. Pickles are refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
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


def samples(entry: Input, images: Iterable[Array], timesteps: int = 1) -> Floats:
    """Images as the network's input ``entry`` wants them: (N, *shape), of a sequence (N, T, *shape).

    Raises ConversionError naming the image.
    """
    encoded = []
    for index, image in enumerate(images):
        try:
            encoded.append(encode(entry, timesteps, image))
        except FrameRejected as error:
            raise ConversionError(f"image {index}: {error.message}", error.hint) from None
    if not encoded:
        raise ConversionError("there are no images", "give at least a few hundred")
    return np.stack(encoded)


def read_images(path: Path) -> list[Array]:
    """The images of a folder (those of its folders too), or of an .npz file."""
    if not path.is_dir():
        return list(_array(path, "images"))
    files = [file for folder in (path, *_folders(path)) for file in _files(folder)]
    if not files:
        others = sorted({file.suffix for file in path.iterdir() if file.is_file()})
        raise ConversionError(
            f"{path} holds no {' or '.join(_SUFFIXES)} files",
            f"it has {' '.join(others)}: a device takes arrays and PNGs, so save them as such" if others else "",
        )
    return [_read_image(file) for file in files]


def read_labelled(path: Path, classes: int, names: Sequence[str] = ()) -> tuple[list[Array], NDArray[np.int64]]:
    """Images and labels of an .npz file, or of a folder with a folder of images for each class.

    Folders count in the order of ``names`` where they are called so, else in that of the alphabet. Raises
    ConversionError when images and labels do not fit each other.
    """
    if path.is_dir():
        return _read_classes(path, classes, names)
    images, labels = _array(path, "images"), _array(path, "labels")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise ConversionError(
            f"{path}: labels of type {labels.dtype} and shape {labels.shape}",
            f"they must be {len(images)} whole numbers",
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ConversionError(f"{path}: labels from {labels.min()} to {labels.max()}", f"the ANN has {classes} classes")
    return list(images), labels.astype(np.int64)


def _read_classes(path: Path, classes: int, names: Sequence[str]) -> tuple[list[Array], NDArray[np.int64]]:
    folders = _folders(path)
    if len(folders) != classes:
        raise ConversionError(f"{path} holds {len(folders)} folders", f"one for each of the {classes} classes")
    by_name = {folder.name: folder for folder in folders}
    ordered = [by_name[name] for name in names] if by_name.keys() == set(names) else folders
    files = [(file, label) for label, folder in enumerate(ordered) for file in _files(folder)]
    return [_read_image(file) for file, _ in files], np.array([label for _, label in files], np.int64)


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir())


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)


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
