"""The page's style and policy, checked without a browser."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

import pytest

from edged.console import page
from tests.support.status import FULL

STYLE = files("edged.console").joinpath("page.css").read_text(encoding="utf-8")
LIGHT, DARK = re.findall(r":root \{([^}]*)\}", STYLE)
PAIRS = [
    ("ink", "ground"),
    ("ink", "card"),
    ("ink", "line"),
    ("faint", "ground"),
    ("faint", "card"),
    ("warn", "card"),
    ("good", "good-ground"),
    ("warn", "warn-ground"),
    ("bad", "bad-ground"),
]


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [pytest.param(LIGHT, id="light"), pytest.param(DARK, id="dark")])
@pytest.mark.parametrize(("text", "ground"), PAIRS)
def test_text_can_be_read(theme: str, text: str, ground: str) -> None:
    """WCAG 2.2, success criterion 1.4.3: at least 4.5 to 1."""
    palette = colours(theme)
    assert contrast(palette[text], palette[ground]) >= 4.5


def test_both_themes_have_every_colour() -> None:
    assert colours(LIGHT).keys() == colours(DARK).keys()
    assert set(re.findall(r"var\(--([a-z-]+)\)", STYLE)) == colours(LIGHT).keys()


def test_the_document_stands_alone_and_its_policy_allows_just_that() -> None:
    document = page.render(FULL)
    assert not re.search(r"(?:src|href|action)=[\"']?(?:https?:)?//", document)
    assert set(re.findall(r'href="([^"]*)"', document)) == {"/status", "/metrics", page._ICON}
    assert "style=" not in document and " on" not in re.sub(r">[^<]*<", "><", document.split("<body>")[1])
    for tag in ("style", "script"):
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", document, flags=re.DOTALL)
        assert len(found) == 1
        digest = base64.b64encode(hashlib.sha256(found[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page.CONTENT_SECURITY_POLICY


def test_tables_and_landmarks_are_named_for_those_who_listen() -> None:
    document = page.render(FULL)
    for landmark in ("<header>", "<main>", "<footer>", '<html lang="en">', "<h1>", 'role="alert"', 'role="status"'):
        assert document.count(landmark) == 1
    identities = re.findall(r'<h2 id="([^"]+)"', document)
    assert len(identities) == len(set(identities)) == 13
    assert re.findall(r'<section aria-labelledby="([^"]+)"', document) == identities
    for table in re.findall(r"<table>.*?</table>", document, flags=re.DOTALL):
        headings = len(re.findall(r'<th scope="col"', table))
        for row in re.findall(r"<tr>(.*?)</tr>", table.split("<tbody>")[1], flags=re.DOTALL):
            assert row.startswith('<th scope="row">')
            assert len(re.findall(r"<t[hd][ >]", row)) == headings
