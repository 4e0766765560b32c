"""How a figure or a word is shown to a person: rounded, with its unit, and in the tone that it deserves."""

from __future__ import annotations

import enum
from dataclasses import dataclass

NOTHING = "–"  # noqa: RUF001 -- an en dash is what a person expects in an empty cell


class Tone(enum.Enum):
    """How good a fact is."""

    PLAIN = "plain"
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


_TONES = {
    Tone.GOOD: "ready ok running passed result connected flowing active serving in-use normal",
    Tone.WARN: "starting handshaking loading degraded stopping backoff pending waiting connecting probing held "
    "rejected dropped trial trying faltering resting absent unfit seen returned lost tight off",
    Tone.BAD: "failed quarantined full error stopped UNSIGNED unusable critical",
}
TONE_OF = {word: tone for tone, words in _TONES.items() for word in words.split()}


@dataclass(frozen=True, slots=True)
class Cell:
    """One fact. ``value`` is the exact figure behind a rounded text."""

    text: str
    value: float | None = None
    tone: Tone = Tone.PLAIN


def tone(word: str) -> Tone:
    """The tone of a state."""
    return TONE_OF.get(word, Tone.PLAIN)


def count(number: int, when_positive: Tone = Tone.PLAIN) -> Cell:
    """A number of things, such as 1,797."""
    return Cell(f"{number:,}", number, when_positive if number else Tone.PLAIN)


def micros(us: float | None) -> Cell:
    """A short time in three figures: 310 µs, 4.21 ms, 1.80 s."""
    if us is None:
        return Cell(NOTHING)
    for limit, divisor, unit in ((999.5, 1, "µs"), (999_500, 1e3, "ms")):
        if us < limit:
            return Cell(f"{_three_figures(us / divisor)} {unit}", us)
    return Cell(f"{_three_figures(us / 1e6)} s", us)


def _three_figures(number: float) -> str:
    return f"{number:.2f}" if number < 9.995 else f"{number:.1f}" if number < 99.95 else f"{number:.0f}"


def figure(number: float) -> Cell:
    """A measured figure, such as 84.5."""
    return Cell(f"{number:.6g}", number)


def percent(number: float, how: Tone = Tone.PLAIN) -> Cell:
    """A share, such as 50 %."""
    return Cell(f"{number:.6g} %", number, how)


def size(number: int) -> Cell:
    """Bytes in decimal units, as disks are sold: 12.3 MB."""
    amount = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return Cell(f"{number} B" if unit == "B" else f"{amount:.3g} {unit}", number)
        amount /= 1000
    return Cell(f"{amount:,.0f} TB" if amount >= 100 else f"{amount:.3g} TB", number)


def duration(seconds: float) -> str:
    """A long time in its two largest units: 12 d 3 h, 4 min 5 s."""
    whole = max(0, int(seconds))
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for place, (unit, length) in enumerate(units[:-1]):
        if whole >= length:
            smaller, smaller_length = units[place + 1]
            return f"{whole // length} {unit} {whole % length // smaller_length} {smaller}"
    return f"{whole} s"


def clock(rfc3339: str, today: str = "") -> str:
    """A moment in UTC: 2026-11-23 08:50:08 UTC; only 08:50:08 when it is ``today`` (YYYY-MM-DD)."""
    day, _, rest = rfc3339.partition("T")
    if not rest:
        return rfc3339 or NOTHING
    time = rest.partition("+")[0].rstrip("Zz").partition(".")[0]
    return time if day == today else f"{day} {time} UTC"
