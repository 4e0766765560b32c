"""The page: the facts of a Status as one HTML document that needs no script, no network and no other file.

Rules: rendered here in full; the script only fetches the same rendering again and swaps what changed. Style and script
stand in the document, allowed by their hashes; nothing else may load or run. Every text is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files

from edged.console.facts import Row, Table, summary, tables
from edged.console.figures import Cell, Tone, tone
from edged.status import Status

_STYLE = files("edged.console").joinpath("page.css").read_text(encoding="utf-8")
_SCRIPT = files("edged.console").joinpath("page.js").read_text(encoding="utf-8")
# An empty icon, so that browsers do not ask for /favicon.ico.
_ICON = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        f"style-src {_hash(_STYLE)}",
        f"script-src {_hash(_SCRIPT)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


def render(status: Status) -> str:
    """The whole document."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_title(status)}</title>
<link rel="icon" href="{_ICON}">
<style>{_STYLE}</style>
</head>
<body>
<p id="silence" class="bad" role="alert"></p>
{_facts(status)}
<footer><p>The same facts: <a href="/status">as JSON</a>, <a href="/metrics">for Prometheus</a>,
or <code>edged status</code>.</p></footer>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def fragment(status: Status) -> str:
    """The facts alone, as the script fetches them."""
    return f"<!doctype html>\n<title>{_title(status)}</title>\n{_facts(status)}\n"


def _title(status: Status) -> str:
    return escape(f"{status.device}: {status.state} – edged")  # noqa: RUF001 -- an en dash separates titles


def _facts(status: Status) -> str:
    body = "\n".join(_table(table) for table in tables(status))
    return f'<div id="facts">\n{_head(status)}\n<main>\n{body}\n</main>\n</div>'


def _head(status: Status) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in status.reasons)
    listed = f'<ul class="reasons" aria-label="reasons">{reasons}</ul>' if reasons else ""
    pairs = "".join(
        f"<div><dt>{escape(heading)}</dt><dd>{escape(text)}</dd></div>" for heading, text in summary(status)
    )
    state = f'<span class="state {tone(status.state).value}" role="status">{escape(status.state)}</span>'
    name = f'<div class="name"><h1>{escape(status.device)}</h1>{state}</div>'
    return f"<header>\n{name}\n{listed}\n<dl>{pairs}</dl>\n</header>"


def _table(table: Table) -> str:
    identity = table.title.lower().replace(" ", "-")
    title = f'<h2 id="{identity}">{escape(table.title)}</h2>'
    if not table.rows:
        return f'<section aria-labelledby="{identity}">{title}<p class="empty">{escape(table.empty)}</p></section>'
    figures = [any(cell.value is not None for cell in column) for column in zip(*_cells(table), strict=True)]
    headings = "".join(
        f'<th scope="col"{_class(figure)}>{escape(name)}</th>'
        for name, figure in zip(table.headings, figures, strict=True)
    )
    rows = "\n".join(_row(row, table.headings, figures) for row in table.rows)
    return (
        f'<section aria-labelledby="{identity}">{title}<div class="scroll" tabindex="0" role="region" '
        f'aria-labelledby="{identity}"><table>\n<thead><tr>{headings}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div></section>"
    )


def _cells(table: Table) -> list[tuple[Cell, ...]]:
    return [row.cells for row in table.rows]


def _row(row: Row, headings: tuple[str, ...], figures: list[bool]) -> str:
    first, *others = row.cells
    cells = "".join(
        f'<td data-name="{escape(name)}"{_class(figure)}>{_content(cell)}</td>'
        for cell, name, figure in zip(others, headings[1:], figures[1:], strict=True)
    )
    note = f'\n<tr class="note"><td colspan="{len(headings)}">because: {escape(row.note)}</td></tr>' if row.note else ""
    return f'<tr><th scope="row">{_content(first)}</th>{cells}</tr>{note}'


def _class(figure: bool) -> str:
    return ' class="figure"' if figure else ""


def _content(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.value is not None:
        text = f'<data value="{cell.value}">{text}</data>'
    return text if cell.tone is Tone.PLAIN else f'<b class="{cell.tone.value}">{text}</b>'
