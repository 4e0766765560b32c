"""Golden data as an ``.npz`` with fixed bytes, read back without pickles and within bounds.

The zip is stored, not deflated: the same arrays then have the same bytes whatever zlib wrote them.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

import numpy as np

from edged.domain import Array
from edged.errors import BundleError

MAX_GOLDEN_BYTES = 128 << 20  # all arrays together; golden data is a few samples, seldom beyond a megabyte
MAX_ARRAYS = 20 << 10  # at most twenty arrays for each of up to 1024 states
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first instant that a zip can name


def encode_npz(arrays: Mapping[str, Array]) -> bytes:
    """The bytes of an .npz: members in order of name, fixed timestamps."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(arrays[name], order="C"), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
            info.create_system = 3  # Unix, wherever it is written
            archive.writestr(info, member.getvalue())
    return packed.getvalue()


def compact(values: Array) -> Array:
    """Whole numbers from 0 to 255 as bytes: spikes and events take a quarter. All others as they are."""
    small = values.astype(np.uint8) if values.size and values.min() >= 0 and values.max() <= 255 else None
    return small if small is not None and (small == values).all() else values


def decode_npz(data: bytes) -> dict[str, Array]:
    """Read an .npz of numbers. Raises BundleError for anything that is damaged, oversized or holds objects."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > MAX_ARRAYS or sum(member.file_size for member in members) > MAX_GOLDEN_BYTES:
                raise BundleError(f"the golden data is larger than {MAX_GOLDEN_BYTES} bytes or {MAX_ARRAYS} arrays")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise BundleError("the golden data is compressed", "edged writes it stored; make the bundle again")
            return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"the golden data cannot be read: {error}") from None


def _array(data: bytes) -> Array:
    member = io.BytesIO(data)
    version = np.lib.format.read_magic(member)
    if version != (1, 0):
        raise ValueError(f"array format {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise ValueError(f"an array of {dtype}")
    elements = 1
    for size in shape:
        elements *= size
    if elements * dtype.itemsize != len(data) - member.tell():
        raise ValueError(f"an array of shape {shape} in {len(data)} bytes")
    member.seek(0)
    return np.asarray(np.lib.format.read_array(member, allow_pickle=False))
