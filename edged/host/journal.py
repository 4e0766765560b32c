"""Logging for a service: structured records in the journal under systemd, one line a record on stderr elsewhere.

Rules: whatever a caller puts into ``extra=`` is a field: ``EDGED_<KEY>`` in the journal, ``key=value`` on stderr.
Does not decide what is logged, only where it goes.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

IDENTIFIER = "edged"
# Libraries speak only when something is wrong: their "started", "finished" lines say nothing that ours do not.
QUIET = ("uvicorn", "asyncio")
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_PLAIN_VALUE = re.compile(r"[^\s\"=]+")


def set_up(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send all records to the journal when systemd runs us, else to ``stream`` (stderr). Replaces earlier handlers."""
    handler = journal_handler() if _under_journal() else None
    if handler is None:
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


def journal_handler(send: Callable[..., None] | None = None) -> logging.Handler | None:
    """A handler that writes structured records with ``send`` (systemd's own); None without systemd-python."""
    try:
        journal: Any = importlib.import_module("systemd.journal")
    except ImportError:
        return None
    sender = send or journal.send

    def send_fields(message: str, /, **fields: Any) -> None:
        sender(message, **journal_fields(fields))

    handler: logging.Handler = journal.JournalHandler(sender_function=send_fields, SYSLOG_IDENTIFIER=IDENTIFIER)
    return handler


def journal_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Journal fields from what JournalHandler sends: its own upper-case ones, and every extra as ``EDGED_<KEY>``.

    JournalHandler hands on the whole record; the rest of it is in its upper-case fields already.
    """
    own = {name: value for name, value in fields.items() if name.isupper() and name != "CODE_ARGS"}
    return own | {_field_name(name): str(value) for name, value in extras(fields).items() if not name.isupper()}


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
