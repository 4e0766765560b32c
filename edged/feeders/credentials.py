"""Reads a password where the settings say it is, anew each time, so that it can be rotated. Never logged."""

from __future__ import annotations

import os
from pathlib import Path

from edged.errors import ConfigError


def password(file: Path | None, variable: str) -> str | None:
    """The password of a file or an environment variable; None where neither is set. Raises ConfigError."""
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"password_file {file}: {reason}", "the feeder's user must be able to read it") from None
    if variable and variable not in os.environ:
        raise ConfigError(f"the environment has no {variable}", "password_env names the variable with the password")
    return os.environ[variable] if variable else None
