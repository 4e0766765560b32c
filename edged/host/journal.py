"""Logging for a service: structured records in the journal under systemd, one line a record on stderr elsewhere.

Rules: whatever a caller puts into ``extra=`` is a field: ``EDGED_<KEY>`` in the journal, ``key=value`` on stderr. The
journal is spoken to in its own protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL), with the standard library only. Does not
decide what is logged, only where it goes.
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import logging
import os
import re
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

IDENTIFIER = "edged"
JOURNAL = "/run/systemd/journal/socket"
# Libraries speak only when something is wrong: their "started", "finished" lines say nothing that ours do not.
QUIET = ("uvicorn", "asyncio")
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_ALL_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_PLAIN_VALUE = re.compile(r"[^\s\"=]+")


def set_up(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send all records to the journal when systemd runs us, else to ``stream`` (stderr). Replaces earlier handlers."""
    handler: logging.Handler
    if _under_journal() and Path(JOURNAL).exists():
        handler = JournalHandler(JOURNAL)
    else:
        handler = logging.StreamHandler(stream or sys.stderr)
        handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    for earlier in list(root.handlers):
        root.removeHandler(earlier)
        earlier.close()
    root.addHandler(handler)
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


class JournalHandler(logging.Handler):
    """Writes a record as one entry of the journal, its extras as fields. A journal that is away is not waited for."""

    def __init__(self, address: str = JOURNAL) -> None:
        super().__init__()
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; what cannot be sent goes where logging sends its own errors."""
        try:
            self._send(encode_fields(journal_fields(record)))
        except OSError:
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _send(self, entry: bytes) -> None:
        try:
            self._socket.sendto(entry, self._address)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_in_memory(entry)

    def _send_in_memory(self, entry: bytes) -> None:
        """An entry that no datagram holds travels as a sealed file in memory."""
        fd = os.memfd_create("edged-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(fd, entry)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _ALL_SEALS)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            self._socket.sendmsg([], rights, 0, self._address)
        finally:
            os.close(fd)


def journal_fields(record: logging.LogRecord) -> dict[str, str]:
    """The fields of a record: those that journalctl knows, and every extra as ``EDGED_<KEY>``."""
    fields = {
        "MESSAGE": record.getMessage(),
        "PRIORITY": str(_priority(record.levelno)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "LOGGER": record.name,
        "CODE_FILE": record.pathname,
        "CODE_LINE": str(record.lineno),
        "CODE_FUNC": record.funcName or "",
    }
    if record.exc_info:
        fields["EXCEPTION_TEXT"] = logging.Formatter().formatException(record.exc_info)
    more = {_field_name(name): str(value) for name, value in extras(vars(record)).items()}
    return fields | more


def encode_fields(fields: Mapping[str, str]) -> bytes:
    """Fields as the journal's socket takes them: a value with a line break is preceded by its length."""
    entry = bytearray()
    for name, value in fields.items():
        data = value.encode("utf-8", "surrogateescape")
        if b"\n" in data:
            entry += name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        else:
            entry += name.encode() + b"=" + data + b"\n"
    return bytes(entry)


def _priority(level: int) -> int:
    """The level as syslog(3) counts it."""
    steps = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
    return next((priority for least, priority in steps if level >= least), 7)


def extras(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the caller of a log function put into ``extra=``."""
    return {name: value for name, value in record.items() if name not in _OWN}


class LineFormatter(logging.Formatter):
    """``LEVEL name: message key=value``; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """One line for the record, however many its message has."""
        message = record.getMessage().replace("\n", "\n  ")
        words = [f"{record.levelname} {record.name}: {message}"]
        words += [f"{name}={_shown(value)}" for name, value in extras(vars(record)).items()]
        line = " ".join(words)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _shown(value: Any) -> str:
    text = str(value)
    return text if _PLAIN_VALUE.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _field_name(key: str) -> str:
    return "EDGED_" + re.sub(r"[^A-Z0-9_]", "_", key.upper())


def _under_journal() -> bool:
    """Whether stderr is the journal: JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    try:
        device, _, inode = os.environ["JOURNAL_STREAM"].partition(":")
        stderr = os.fstat(sys.stderr.fileno())
    except (KeyError, OSError, ValueError):
        return False
    return (str(stderr.st_dev), str(stderr.st_ino)) == (device, inode)
