"""Logging: a line on stderr, or structured fields in the journal."""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edged.host import journal
from tests.support.service import need_systemd_python


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    quiet = {name: logging.getLogger(name).level for name in journal.QUIET}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, earlier in quiet.items():
        logging.getLogger(name).setLevel(earlier)


def logged(**extra: Any) -> str:
    stream = io.StringIO()
    journal.set_up(stream=stream)
    logging.getLogger("edged.test").warning("frame %s failed", 7, extra=extra)
    return stream.getvalue()


def test_a_line_has_level_name_message_and_fields() -> None:
    assert logged(pipeline="digits", frames=3) == ("WARNING edged.test: frame 7 failed pipeline=digits frames=3\n")


def test_values_with_spaces_and_quotes_are_quoted() -> None:
    assert logged(reason='it said "no"', empty="").endswith('reason="it said \\"no\\"" empty=""\n')


def test_a_message_cannot_forge_a_record() -> None:
    stream = io.StringIO()
    journal.set_up(stream=stream)
    logging.getLogger("edged.test").warning("bad name: x\nERROR edged: forged", extra={"key": "a\nERROR edged: forged"})
    assert all(not line.startswith("ERROR") for line in stream.getvalue().splitlines())


def test_a_traceback_follows_its_line() -> None:
    stream = io.StringIO()
    journal.set_up(stream=stream)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("edged.test").exception("it failed", extra={"pipeline": "digits"})
    first, *others = stream.getvalue().splitlines()
    assert first == "ERROR edged.test: it failed pipeline=digits"
    assert others[-1] == "ValueError: broken"


def test_setting_up_twice_does_not_double_lines() -> None:
    logged()
    assert logged().count("\n") == 1


def test_libraries_speak_only_when_something_is_wrong() -> None:
    stream = io.StringIO()
    journal.set_up(stream=stream)
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert stream.getvalue() == "WARNING uvicorn.error: Invalid HTTP request received.\n"


def test_journal_records_carry_fields_of_our_own() -> None:
    need_systemd_python()
    sent: list[tuple[str, dict[str, Any]]] = []
    handler = journal.journal_handler(lambda message, **fields: sent.append((message, fields)))
    assert handler is not None
    logger = logging.Logger("edged.test")
    logger.addHandler(handler)
    logger.error("frame %s failed", 7, extra={"pipeline": "digits", "queue-limit": 64})
    message, fields = sent[0]
    assert message == "frame 7 failed"
    assert fields["EDGED_PIPELINE"] == "digits"
    assert fields["EDGED_QUEUE_LIMIT"] == "64"
    assert fields["PRIORITY"] == "3"
    assert fields["LOGGER"] == "edged.test"
    assert fields["SYSLOG_IDENTIFIER"] == "edged"
    assert fields["CODE_FUNC"] == "test_journal_records_carry_fields_of_our_own"
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*", name) for name in fields)


def test_a_library_that_logs_json_keys_cannot_break_a_field_name() -> None:
    fields = journal.journal_fields({"MESSAGE_ID": "x", "name": "n", "ünï code": 1, "_hidden": 2})
    assert fields == {"MESSAGE_ID": "x", "EDGED__N__CODE": "1", "EDGED__HIDDEN": "2"}


PROGRAM = """
import logging
from edged.host import journal
from tests.support.service import need_systemd_python
journal.set_up()
logging.getLogger("edged.test").warning("hello", extra={"pipeline": "digits"})
"""


def test_stderr_is_used_where_it_is_not_the_journal(tmp_path: Path) -> None:
    """JOURNAL_STREAM may be inherited by a program whose stderr goes elsewhere (systemd.exec(5))."""
    environment = os.environ | {"JOURNAL_STREAM": "1:2", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == "WARNING edged.test: hello pipeline=digits\n"


def test_the_journal_is_used_where_stderr_is_its_stream() -> None:
    need_systemd_python()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stat = os.fstat(theirs.fileno())
        environment = os.environ | {
            "JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        subprocess.run([sys.executable, "-c", PROGRAM], env=environment, stderr=theirs.fileno(), check=True)
        theirs.shutdown(socket.SHUT_WR)
        assert ours.recv(4096) == b""  # nothing as a line: the record went to the journal's own socket
