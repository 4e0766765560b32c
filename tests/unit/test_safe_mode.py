"""When the daemon is started, when safe mode runs in its place, and what is remembered in between: decisions only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edged.safe_mode import place
from edged.safe_mode.__main__ import record
from edged.safe_mode.history import History, begun, ended, rest
from edged.safe_mode.place import Place, read_history, write_history

CRASH = ("core-dump", "dumped", "SEGV")
STOP = ("success", "exited", "0")
WRONG = ("exit-code", "exited", "78")


def after(history: History, *ends: tuple[str, str, str], lasting_s: float = 1.0) -> History:
    for end in ends:
        history = ended(begun(history, 100.0, resting=False), *end, 100.0 + lasting_s)
    return history


def test_a_first_start_is_the_daemons() -> None:
    assert rest(History(), "", "") is None


def test_four_quick_crashes_are_no_row_and_five_are() -> None:
    assert rest(after(History(), *[CRASH] * 4), "", "") is None
    needed = rest(after(History(), *[CRASH] * 5), "", "KeyError: 'x'")
    assert needed is not None
    assert needed.longest_s == 15
    assert "ended 5 times" in needed.reason
    assert "SIGSEGV" in needed.reason
    assert "KeyError" in needed.reason


def test_a_start_that_held_ends_the_row() -> None:
    history = after(after(History(), *[CRASH] * 4), CRASH, lasting_s=61)
    assert rest(history, "", "") is None
    assert history.row == ("was killed by SIGSEGV",)


def test_whoever_stops_the_service_begins_anew() -> None:
    assert after(History(), *[CRASH] * 5, STOP) == History()


def test_rests_double_up_to_ten_minutes_while_the_daemon_keeps_crashing() -> None:
    history, rests = after(History(), *[CRASH] * 5), []
    for _ in range(9):
        needed = rest(history, "", "")
        assert needed is not None
        rests.append(needed.longest_s)
        history = ended(begun(history, 200.0, resting=True), *STOP, 215.0)
        history = after(history, CRASH)  # one try, that fails again
    assert rests == [15, 30, 60, 120, 240, 480, 600, 600, 600]


def test_after_a_rest_the_daemon_has_its_try() -> None:
    """Or it would never heal: the row still stands when safe mode ends."""
    rested = ended(begun(after(History(), *[CRASH] * 5), 200.0, resting=True), *STOP, 215.0)
    assert rested.resting is False
    assert rest(rested, "", "") is None


def test_a_wrong_configuration_is_waited_for_as_long_as_it_is_wrong() -> None:
    history = after(History(), WRONG)
    assert history.wrong
    needed = rest(history, "device.id is missing", "")
    assert needed is not None
    assert needed.longest_s is None
    assert needed.reason == "the configuration is wrong: device.id is missing"
    healed = ended(begun(history, 200.0, resting=True), *STOP, 215.0)
    assert rest(healed, "", "") is None


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (("watchdog", "dumped", "ABRT"), "watchdog"),
        (("oom-kill", "killed", "KILL"), "want of memory"),
        (("exit-code", "exited", "1"), "exited with code 1"),
        (("signal", "killed", "KILL"), "killed by SIGKILL"),
        (("timeout", "killed", "TERM"), "in time"),
    ],
)
def test_the_reason_says_how_it_ended(end: tuple[str, str, str], how: str) -> None:
    assert how in after(History(), end).row[-1]


def test_what_is_remembered_is_read_again(tmp_path: Path) -> None:
    history = replace(after(History(), *[CRASH] * 3), rests=2)
    write_history(tmp_path, history)
    assert read_history(tmp_path) == history


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"row": 3}', '{"row": [], "other": 1}'])
def test_a_damaged_memory_starts_the_daemon(tmp_path: Path, damaged: str) -> None:
    (tmp_path / place.HISTORY).write_text(damaged)
    assert read_history(tmp_path) == History()


def test_a_runtime_directory_that_is_gone_costs_the_backoff_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert record(Place(tmp_path / "gone"), {"SERVICE_RESULT": "success"}) == 0
    assert "cannot be written" in capsys.readouterr().err


def test_last_words_are_those_of_the_innermost_error(tmp_path: Path) -> None:
    place.leave_words(ExceptionGroup("services", [ExceptionGroup("lanes", [OSError("no\nspace")])]), tmp_path)
    assert place.take_words(tmp_path) == "OSError: no space"


def test_the_problem_of_a_configuration_is_the_daemons_own_word(tmp_path: Path) -> None:
    config = tmp_path / "edged.toml"
    config.write_text("[device]\nid = 3\n")
    problem = place.problem_of(config)
    assert "device.id = 3" in problem
    assert "pipeline" in problem
    assert "Traceback" not in problem
