"""A Status as text for ``edged status``: the same facts as the page, aligned, in colour only where asked for.

Control characters in names never reach the terminal: they are shown as escapes.
"""

from __future__ import annotations

from edged.console.facts import Row, Table, summary, tables
from edged.console.figures import Cell, Tone, tone
from edged.status import Status

_COLOURS = {Tone.GOOD: "32", Tone.WARN: "33", Tone.BAD: "31"}
_BOLD, _DIM = "1", "2"


def render(status: Status, *, colour: bool) -> str:
    """All facts as lines of text, the last one ended."""
    paint = _Paint(colour)
    blocks = [_head(status, paint)] + [_table(table, paint) for table in tables(status)]
    return "\n".join(blocks)


class _Paint:
    """Wraps text in ANSI colours, or leaves it."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def __call__(self, text: str, code: str | None) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and code else text


def _head(status: Status, paint: _Paint) -> str:
    state = paint(_plain(status.state), _COLOURS.get(tone(status.state)))
    lines = [f"{paint(_plain(status.device), _BOLD)}  {state}"]
    lines += [f"  because: {_plain(reason)}" for reason in status.reasons]
    lines.append("  ".join(f"{paint(heading, _DIM)} {_plain(text)}" for heading, text in summary(status)))
    return "\n".join(lines) + "\n"


def _table(table: Table, paint: _Paint) -> str:
    title = paint(table.title, _BOLD)
    if not table.rows:
        return f"{title}\n  {table.empty}\n"
    texts = [table.headings, *(tuple(_plain(cell.text) for cell in cells) for cells in _cells(table))]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    right = [any(cell.value is not None for cell in column) for column in zip(*_cells(table), strict=True)]
    columns = zip(table.headings, widths, right, strict=True)
    heading = "  ".join(_pad(text, width, side) for text, width, side in columns)
    lines = [title, f"  {paint(heading.rstrip(), _DIM)}"]
    for row in table.rows:
        lines.append("  " + _line(row, widths, right, paint).rstrip())
        if row.note:
            lines.append(f"    because: {_plain(row.note)}")
    return "\n".join(lines) + "\n"


def _cells(table: Table) -> list[tuple[Cell, ...]]:
    return [row.cells for row in table.rows]


def _line(row: Row, widths: list[int], right: list[bool], paint: _Paint) -> str:
    cells = zip(row.cells, widths, right, strict=True)
    return "  ".join(
        paint(_pad(_plain(cell.text), width, side), _COLOURS.get(cell.tone)) for cell, width, side in cells
    )


def _pad(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
