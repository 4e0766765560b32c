"""The documents name only what exists."""

from __future__ import annotations

import re

from tests.support.tree import ROOT, relative, tracked


def test_the_documents_name_files_that_exist() -> None:
    tops = {path.relative_to(ROOT).parts[0] for path in tracked()}
    dangling = []
    for document in tracked("*.md"):
        text = document.read_text()
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
        named = [name for name in re.findall(r"`([\w./-]+/[\w.-]+\.\w+)`", text) if name.split("/")[0] in tops]
        files = [document.parent / link for link in links] + [ROOT / name for name in named]
        dangling += [f"{relative(document)}: {file.name}" for file in files if not file.exists()]
    assert not dangling, "\n".join(dangling)
