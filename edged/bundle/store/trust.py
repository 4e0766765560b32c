"""Whom this device trusts with its models: public keys in a directory, and those that the configuration names.

A key is withdrawn by removing its file: there is no expiry, because a device without a clock cannot judge one. Keys
(and the directory) that others than root and the daemon may write are refused. What is installed stays installed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edged.bundle.loaded import Bundle
from edged.bundle.signing import Signer, check_signature
from edged.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Trust:
    """``directory`` need not exist. ``allow_unsigned`` is for development: bundles without a signature pass too."""

    directory: Path
    keys: Sequence[Path] = ()
    allow_unsigned: bool = False

    def signer(self, bundle: Bundle) -> Signer | None:
        """Who signed a bundle; None for an unsigned one where that is allowed. Raises SignatureError, ConfigError."""
        if self.allow_unsigned and bundle.signature() is None:
            return None
        return check_signature(bundle.path, self.files())

    def files(self) -> list[Path]:
        """The keys, after a look at who else could have put them there. Raises ConfigError."""
        found = list(self.keys)
        if self.directory.is_dir():
            _check_owner(self.directory)
            found += sorted(self.directory.glob("*.pem"))
        for path in found:
            _check_owner(path)
        return found


def _check_owner(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "name a key in PEM, or remove it") from None
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path} belongs to user {status.st_uid}", "trusted keys must belong to root or the daemon")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{path} can be written by others", f"chmod go-w {path}")
