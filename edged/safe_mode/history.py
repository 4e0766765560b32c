"""How the last starts of the service ended, and what that means for the next one: pure functions of ``History``."""

from __future__ import annotations

from dataclasses import dataclass, replace

QUICK_S = 60.0  # a start that held so long ends the row: whatever it fell over, it did work before
ROW = 5  # quick ends in a row: systemd's own usual limit
REST_S, LONGEST_REST_S = 15.0, 600.0
WRONG_CONFIGURATION = 78  # EX_CONFIG, the daemon's exit code


@dataclass(frozen=True, slots=True)
class History:
    """How the last starts ended. ``row``: those that ended quickly, since one held; times are of CLOCK_BOOTTIME."""

    started_s: float = 0.0
    row: tuple[str, ...] = ()
    wrong: bool = False  # the daemon said last that its configuration is wrong
    rests: int = 0  # of the present row
    resting: bool = False  # it is safe mode that runs, not the daemon


@dataclass(frozen=True, slots=True)
class Rest:
    """Why the daemon is not started now. ``longest_s``: None until the configuration is right."""

    reason: str
    longest_s: float | None = None


def begun(history: History, now_s: float, *, resting: bool) -> History:
    """A start, of the daemon or of safe mode."""
    return replace(history, started_s=now_s, resting=resting, rests=history.rests + resting)


def ended(history: History, result: str, code: str, status: str, now_s: float) -> History:
    """An end as systemd tells it: $SERVICE_RESULT, $EXIT_CODE, $EXIT_STATUS (systemd.exec(5))."""
    if history.resting:  # one try is due; when it fails too, the row is full again
        return replace(history, resting=False, wrong=False, row=history.row[1 - ROW :])
    if result == "success":  # it was stopped: whoever starts it again begins anew
        return History()
    held = now_s - history.started_s >= QUICK_S
    before = () if held else history.row[1 - ROW :]
    rests = 0 if held else history.rests
    wrong = status == str(WRONG_CONFIGURATION) and code == "exited"
    return History(history.started_s, (*before, _how(result, code, status)), wrong, rests)


def rest(history: History, problem: str, last_words: str) -> Rest | None:
    """Whether to stay in safe mode, and why. ``problem``: what is wrong with the configuration, if it was asked."""
    if problem:
        return Rest(f"the configuration is wrong: {problem}")
    if len(history.row) < ROW:
        return None
    longest_s = min(REST_S * 2**history.rests, LONGEST_REST_S)
    reason = f"the daemon ended {len(history.row)} times within a minute of its start; at last it {history.row[-1]}"
    words = f", after it had said: {last_words}" if last_words else ""
    return Rest(f"{reason}{words}. It is tried again every {longest_s:.0f} s", longest_s)


def _how(result: str, code: str, status: str) -> str:
    match result:
        case "watchdog":
            return "made no progress (the watchdog ended it)"
        case "timeout":
            return "did not get ready, or did not stop, in time"
        case "oom-kill":
            return "was killed for want of memory"
        case "resources":
            return "could not be started for want of resources"
    if code == "exited":
        return f"exited with code {status}"
    return f"was killed by SIG{status.removeprefix('SIG')}" if code in ("killed", "dumped") else f"failed: {result}"
