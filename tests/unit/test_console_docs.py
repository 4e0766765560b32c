"""docs/http.md and the console agree on paths and exit codes."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.routing import Route

from edged.console import cli
from edged.console.app import Console
from edged.status import Status

TEXT = (Path(__file__).parents[2] / "docs" / "http.md").read_text(encoding="utf-8")


def test_every_path_is_described_and_no_other() -> None:
    console = Console(status=lambda: Status(device="d", version="0", state="ready"), models={}, inlets={})
    served = set()
    for route in console.routes:
        assert isinstance(route, Route)
        served |= {f"{method} {route.path}" for method in route.methods or () if method != "HEAD"}
    assert set(re.findall(r"`((?:GET|POST) /[^`]*)`", TEXT)) == served


def test_every_exit_code_is_described() -> None:
    table = TEXT.split("| exit code | meaning |")[1]
    assert {int(code) for code in re.findall(r"^\| (\d) \|", table, re.MULTILINE)} == {
        cli.READY,
        cli.NOT_READY,
        cli.NOT_RUNNING,
    }
