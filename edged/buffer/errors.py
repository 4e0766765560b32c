"""Turns the errors of SQLite and of the system into StoreError, whose ``code`` names the cause.

Codes: ``full`` (no space: try again later), ``io`` (the medium failed), ``corrupt`` (damaged content), ``busy``
(somebody holds the store), ``cursor`` (the ack file cannot be used), ``closed``, ``entry`` (it can never be stored).
"""

from __future__ import annotations

import errno
import sqlite3

from edged.errors import StoreError

_CORRUPT = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_SCHEMA", "SQLITE_FORMAT", "SQLITE_MISMATCH")
_SYSTEM = {errno.ENOSPC: "full", errno.EDQUOT: "full", errno.EWOULDBLOCK: "busy"}
_HINTS = {
    "full": "free some space; the store goes on by itself",
    "io": "the medium fails; look at the kernel's log",
    "corrupt": "the file is put aside and what can be read of it is kept",
    "busy": "is another daemon running?",
}


def store_error(code: str, message: str, hint: str = "") -> StoreError:
    """A StoreError with its cause as ``code``."""
    error = StoreError(message, hint)
    error.code = code
    return error


def translate(error: Exception, where: str) -> StoreError:
    """The StoreError for an error of SQLite or of the system."""
    if isinstance(error, StoreError):
        return error
    code = cause(error)
    return store_error(code, f"{where}: {error}", _HINTS.get(code, ""))


def cause(error: Exception) -> str:
    """One word for what went wrong: full, io, corrupt or busy."""
    if isinstance(error, StoreError):
        return error.code
    if isinstance(error, OSError):
        return _SYSTEM.get(error.errno or 0, "io")
    name = str(getattr(error, "sqlite_errorname", ""))
    if name.startswith("SQLITE_FULL"):
        return "full"
    # READONLY_…: the daemon was killed in the middle; it will finish that when it is back
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_READONLY_")):
        return "busy"
    if name.startswith(_CORRUPT) or (isinstance(error, sqlite3.Error) and not name.startswith("SQLITE_")):
        return "corrupt"
    # "no such table" and its like: the schema is ours, so the file is not
    return "corrupt" if name == "SQLITE_ERROR" else "io"
