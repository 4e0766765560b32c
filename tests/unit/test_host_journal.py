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


class Journal:
    """The journal's end of its socket."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(5)

    def entry(self) -> bytes:
        data, fds, _, _ = socket.recv_fds(self._socket, 1 << 20, 1)
        for fd in fds:
            with os.fdopen(fd, "rb") as file:
                file.seek(0)
                data += file.read()
        return data

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Journal]:
    journal_socket = Journal(tmp_path / "journal")
    yield journal_socket
    journal_socket.close()


@pytest.fixture
def logger(listening: Journal) -> Iterator[logging.Logger]:
    handler = journal.JournalHandler(listening.address)
    logger = logging.Logger("edged.test")
    logger.addHandler(handler)
    yield logger
    handler.close()


def test_journal_records_carry_fields_of_our_own(listening: Journal, logger: logging.Logger) -> None:
    logger.error("frame %s failed", 7, extra={"pipeline": "digits", "queue-limit": 64})
    fields = dict(line.split("=", 1) for line in listening.entry().decode().splitlines())
    assert fields["MESSAGE"] == "frame 7 failed"
    assert fields["EDGED_PIPELINE"] == "digits"
    assert fields["EDGED_QUEUE_LIMIT"] == "64"
    assert fields["PRIORITY"] == "3"
    assert fields["LOGGER"] == "edged.test"
    assert fields["SYSLOG_IDENTIFIER"] == "edged"
    assert fields["CODE_FUNC"] == "test_journal_records_carry_fields_of_our_own"
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*", name) for name in fields)


def test_a_value_of_several_lines_is_one_field_and_forges_none(listening: Journal, logger: logging.Logger) -> None:
    value = "first\nPRIORITY=0"
    logger.warning(value)
    length = len(value).to_bytes(8, "little")
    assert listening.entry().startswith(b"MESSAGE\n" + length + value.encode() + b"\nPRIORITY=4\n")


def test_a_traceback_is_a_field(listening: Journal, logger: logging.Logger) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("it failed")
    entry = listening.entry()
    assert b"EXCEPTION_TEXT\n" in entry
    assert b"ValueError: broken" in entry


def test_a_record_that_no_datagram_holds_arrives_whole(listening: Journal, logger: logging.Logger) -> None:
    logger.info("x" * 5_000_000)
    assert listening.entry().startswith(b"MESSAGE=" + b"x" * 5_000_000 + b"\n")


def test_a_journal_that_is_gone_does_not_stop_the_program(
    listening: Journal, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    listening.close()
    Path(listening.address).unlink()
    logger.info("hello")
    assert "FileNotFoundError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("level", "priority"), [(logging.DEBUG, "7"), (logging.INFO, "6"), (logging.WARNING, "4"), (logging.CRITICAL, "2")]
)
def test_levels_become_priorities(listening: Journal, logger: logging.Logger, level: int, priority: str) -> None:
    logger.log(level, "hello")
    assert f"\nPRIORITY={priority}\n".encode() in listening.entry()


def test_a_key_that_is_no_field_name_is_made_one(listening: Journal, logger: logging.Logger) -> None:
    logger.info("hello", extra={"ünï code": 1, "_hidden": 2})
    entry = listening.entry()
    assert b"\nEDGED__N__CODE=1\n" in entry
    assert b"\nEDGED__HIDDEN=2\n" in entry


PROGRAM = """
import logging
from edged.host import journal
journal.set_up()
logging.getLogger("edged.test").warning("hello", extra={"pipeline": "digits"})
"""


def test_stderr_is_used_where_it_is_not_the_journal(tmp_path: Path) -> None:
    """JOURNAL_STREAM may be inherited by a program whose stderr goes elsewhere (systemd.exec(5))."""
    environment = os.environ | {"JOURNAL_STREAM": "1:2", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == "WARNING edged.test: hello pipeline=digits\n"


def test_the_journal_is_used_where_stderr_is_its_stream(tmp_path: Path, listening: Journal) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stat = os.fstat(theirs.fileno())
        environment = os.environ | {
            "JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        program = PROGRAM.replace("journal.set_up", f"journal.JOURNAL = {listening.address!r}; journal.set_up")
        subprocess.run([sys.executable, "-c", program], env=environment, stderr=theirs.fileno(), check=True)
        theirs.shutdown(socket.SHUT_WR)
        assert ours.recv(4096) == b""  # nothing as a line: the record went to the journal's own socket
