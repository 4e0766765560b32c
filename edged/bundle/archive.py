"""Bundles on the wire: one deterministic tar, byte for byte a function of the bundle's contents.

The form is strict ustar: ``manifest.json`` first, the other files in order of name, then ``model.sig`` if there is one;
plain files only, mode 0644, owner 0, time 0, two zero blocks at the end and nothing after. Reading accepts only headers
that ``header`` would have written, so links, devices, folders, traversal, extensions and odd metadata cannot even be
expressed. Sizes are checked against the manifest before a member is read. Unpacking goes into a temporary directory
that is verified, then renamed: nothing appears on failure.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edged.bundle.files import appearing, sync_directory, write_chunks, write_durably
from edged.bundle.loaded import CHUNK, MAX_SIGNATURE_BYTES, SIGNATURE, Bundle, open_bundle
from edged.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, FileEntry, decode_manifest, is_file_name
from edged.errors import BundleError

BLOCK = 512
END = bytes(2 * BLOCK)
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"5": "a folder",
    b"6": "a pipe", b"x": "a PAX extension", b"g": "a PAX extension", b"L": "a GNU extension",
    b"K": "a GNU extension"}  # fmt: skip


def pack(directory: Path, out: Path) -> Bundle:
    """Write a verified bundle directory as a tar; ``out`` is replaced in one step. Raises BundleError."""
    bundle = open_bundle(directory)
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    except OSError as error:
        raise BundleError(f"{out} cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(fd, "wb") as file:
            _write(bundle, file)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(temporary).replace(out)
        sync_directory(out.parent)
    except OSError as error:
        raise BundleError(f"{out} cannot be written: {error.strerror}") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
    return bundle


def unpack(tar: Path, dest: Path) -> Bundle:
    """Unpack a tar into ``dest``, which must not exist. Raises BundleError; then nothing has appeared."""
    with _reading(tar) as file, appearing(dest) as temporary:
        _read(file, temporary)
        open_bundle(temporary)
    return open_bundle(dest)


@contextmanager
def opened(path: Path) -> Iterator[Bundle]:
    """A bundle from a directory or a tar; a tar is unpacked into a temporary place for as long as it is open."""
    if path.is_dir():
        yield open_bundle(path)
        return
    with tempfile.TemporaryDirectory(prefix="edged-bundle-") as folder:
        yield unpack(path, Path(folder) / "bundle")


def header(name: str, size: int) -> bytes:
    """The one ustar header that a member of this name and size may have."""
    fields = [
        (name.encode(), 100), (b"0000644", 8), (b"0000000", 8), (b"0000000", 8), (b"%011o" % size, 12),
        (b"00000000000", 12), (b" " * 8, 8), (b"0", 1), (b"", 100), (b"ustar\x0000", 8), (b"", 32), (b"", 32),
        (b"0000000", 8), (b"0000000", 8), (b"", 155), (b"", 12),
    ]  # fmt: skip
    block = b"".join(value.ljust(width, b"\0") for value, width in fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _write(bundle: Bundle, file: BinaryIO) -> None:
    _write_member(file, MANIFEST, bundle.manifest_bytes())
    for name in sorted(bundle.manifest.files):
        _write_member(file, name, bundle.read(name))
    signature = bundle.signature()
    if signature is not None:
        _write_member(file, SIGNATURE, signature)
    file.write(END)


def _write_member(file: BinaryIO, name: str, data: bytes) -> None:
    file.write(header(name, len(data)))
    file.write(data)
    file.write(bytes(-len(data) % BLOCK))


@contextmanager
def _reading(tar: Path) -> Iterator[BinaryIO]:
    try:
        if not tar.is_file():
            raise BundleError(f"{tar} is not a file", "name a bundle that edged bundle pack wrote")
        with tar.open("rb") as file:
            yield file
    except OSError as error:
        raise BundleError(f"{tar} cannot be read: {error.strerror}") from None


def _read(file: BinaryIO, dest: Path) -> None:
    name, size = _member(_exactly(file, BLOCK, "its first header"))
    if name != MANIFEST:
        raise BundleError(f"the archive begins with {name!r}", f"a bundle's first member is {MANIFEST}")
    if size > MAX_MANIFEST_BYTES:
        raise BundleError(f"the archive declares a {MANIFEST} of {size} bytes", f"at most {MAX_MANIFEST_BYTES}")
    data = _exactly(file, size, MANIFEST)
    _padding(file, size, MANIFEST)
    manifest = decode_manifest(data)
    write_durably(dest / MANIFEST, data)
    for expected, entry in sorted(manifest.files.items()):
        name, size = _member(_exactly(file, BLOCK, f"the header of {expected}"))
        if name != expected:
            hint = "every file of the manifest once, in order of name, and no other"
            raise BundleError(f"the archive holds {name!r} where {expected!r} belongs", hint)
        if size != entry.size:
            raise BundleError(f"the archive declares {size} bytes for {name}", f"the manifest says {entry.size}")
        write_chunks(dest / name, _chunks(file, name, entry))
        _padding(file, size, name)
    block = _exactly(file, BLOCK, "the end")
    if block[:100].rstrip(b"\0") == SIGNATURE.encode():
        _read_signature(file, block, dest)
        block = _exactly(file, BLOCK, "the end")
    if any(block) or any(_exactly(file, BLOCK, "the end")) or file.read(1):
        raise BundleError("the archive goes on after its last file", "a bundle ends with two zero blocks, nothing more")


def _read_signature(file: BinaryIO, block: bytes, dest: Path) -> None:
    size = _member(block)[1]
    if size > MAX_SIGNATURE_BYTES:
        raise BundleError(f"the archive declares a {SIGNATURE} of {size} bytes", f"at most {MAX_SIGNATURE_BYTES}")
    write_durably(dest / SIGNATURE, _exactly(file, size, SIGNATURE))
    _padding(file, size, SIGNATURE)


def _member(block: bytes) -> tuple[str, int]:
    """Name and size in a header. Raises BundleError for anything that ``header`` would not write."""
    if not any(block):
        raise BundleError("the archive ends before its last file", "it is truncated; copy it again")
    raw_name, raw_size, kind = block[:100].rstrip(b"\0"), block[124:135], block[156:157]
    name = raw_name.decode("ascii", errors="backslashreplace")
    if kind in _KINDS:
        raise BundleError(f"the archive's member {name!r} is {_KINDS[kind]}", "a bundle holds plain files only")
    if name != MANIFEST and not is_file_name(name):
        raise BundleError(f"the archive's member {name!r} is not a plain file name", "no folders, no absolute paths")
    size = int(raw_size, 8) if raw_size.isdigit() and not set(raw_size) & set(b"89") else -1
    if size < 0 or block != header(name, size):
        raise BundleError(f"the archive's header of {name!r} is damaged", "or edged bundle pack did not write it")
    return name, size


def _exactly(file: BinaryIO, size: int, what: str) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise BundleError(f"the archive ends within {what}", "it is truncated; copy it again")
    return data


def _padding(file: BinaryIO, size: int, name: str) -> None:
    if any(_exactly(file, -size % BLOCK, name)):
        raise BundleError(f"the archive hides bytes after {name}", "padding must be zero")


def _chunks(file: BinaryIO, name: str, entry: FileEntry) -> Iterator[bytes]:
    found, left = hashlib.sha256(), entry.size
    while left:
        chunk = _exactly(file, min(left, CHUNK), name)
        found.update(chunk)
        left -= len(chunk)
        yield chunk
    if found.hexdigest() != entry.sha256:
        raise BundleError(f"the archive's {name} is damaged", "its sha256 is not the manifest's; copy it again")
