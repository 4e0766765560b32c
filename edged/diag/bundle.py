"""Makes the bundle: every text redacted, cut to its bound, and packed so that it appears whole or not at all."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from edged import __version__
from edged.diag.redaction import Redactor, secrets_of
from edged.errors import EdgedError
from edged.settings import strings_of

TAKEN_CHARS = 3 << 20  # of one text, before secrets are looked for: that takes half a second a megabyte
PART_BYTES = 2 << 20  # of one text; of a longer one its end is kept, which is the newest of a log
SECRET_FILE_BYTES = 64 << 10  # a key or a password; what is longer is not one of them
MANIFEST = "manifest.json"


class DiagError(EdgedError):
    """The bundle cannot be written. Nothing was left behind."""

    code = "diag"


class Member(msgspec.Struct, frozen=True):
    """One text in the bundle. ``cut_bytes``: so much of its beginning was left out."""

    name: str
    size: int
    cut_bytes: int = 0


def known_secrets(table: dict[str, Any], base: Path) -> set[str]:
    """What must never stand in the bundle: secrets in the configuration, and what the files hold that it names."""
    found = secrets_of(table)
    for value in strings_of(table):
        path = base / value
        with suppress(OSError, ValueError, UnicodeDecodeError):
            if _is_private(path):
                found.add(path.read_text(encoding="utf-8"))
    return {secret for text in found for secret in (text, text.strip()) if secret}


def write(out: Path, device: str, texts: Iterable[tuple[str, str]], redactor: Redactor) -> list[Member]:
    """Write the bundle for its owner alone (mode 0600). Raises DiagError; then there is none."""
    if out.exists():
        raise DiagError(f"{out} exists", "name a new file")
    top = out.name.removesuffix(".gz").removesuffix(".tar")
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    except OSError as error:
        raise DiagError(f"{out} cannot be written: {error.strerror}", "name another place with --out") from None
    try:
        with os.fdopen(handle, "wb") as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
            members = _fill(packed, top, device, texts, redactor)
        Path(temporary).rename(out)
    except OSError as error:
        raise DiagError(f"{out} cannot be written: {error.strerror}", "name another place with --out") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
    return members


def _fill(
    packed: gzip.GzipFile, top: str, device: str, texts: Iterable[tuple[str, str]], redactor: Redactor
) -> list[Member]:
    members: list[Member] = []
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, text in texts:
            taken = text[-TAKEN_CHARS:]
            data = redactor.redact(taken)
            if redactor.leaks(data):  # a bug of ours: rather no text than a secret
                data = "left out: a secret would have stood in it\n"
            whole = data.encode("utf-8", "replace")
            kept = whole[-PART_BYTES:]
            members.append(Member(name, len(kept), len(text) - len(taken) + len(whole) - len(kept)))
            _add(tar, f"{top}/{name}", kept)
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        table = {"format": 1, "device": device, "version": __version__, "made": made, "members": members}
        _add(tar, f"{top}/{MANIFEST}", msgspec.json.format(msgspec.json.encode(table), indent=1))
    return members


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
    tar.addfile(member, io.BytesIO(data))


def _is_private(path: Path) -> bool:
    """A small file that is not for everybody, or says that it is a key. Certificates and public keys are for all."""
    if not path.is_file() or path.stat().st_size > SECRET_FILE_BYTES:
        return False
    return not path.stat().st_mode & 0o004 or path.suffix in (".key", ".pass", ".password", ".secret", ".token") or (
        "PRIVATE KEY" in path.read_text(encoding="utf-8", errors="replace"))  # fmt: skip
