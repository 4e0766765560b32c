"""``docs/conversion.md`` names every option of the command, and every operator that is taken or has a reason."""

from __future__ import annotations

import re

import pytest

from cloud_sync.convert import cli, reader
from cloud_sync.convert.refusals import why
from tests.support.tree import ROOT

PAGE = (ROOT / "docs" / "conversion.md").read_text(encoding="utf-8")
WORDS = set(re.findall(r"[A-Za-z0-9]+", PAGE))


def test_every_option_is_described_and_no_other() -> None:
    known = {option for action in cli._parser()._actions for option in action.option_strings} - {"-h", "--help"}
    assert {option for option in known if option not in PAGE} == {"--offset"}  # rare; --help has it
    theirs = {"--config", "--bench"}  # of edged and of scripts/test
    assert set(re.findall(r"--[a-z0-9][a-z0-9-]+", PAGE)) - theirs <= known


def test_every_operator_that_is_taken_is_named() -> None:
    assert {op for op in reader._KNOWN if op not in WORDS} == set()


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN", "If", "Loop", "Scan", "NonMaxSuppression", "TopK", "NonZero"])
def test_what_the_page_calls_refused_is_refused_for_a_reason_of_its_own(op: str) -> None:
    assert op in WORDS
    assert op not in reader._KNOWN
    assert "not supported" not in why(op)[0]
    assert "not supported" in why("Cumprod")[0]  # the control: what is in no family


def test_the_page_names_files_that_exist() -> None:
    for row in re.findall(r"^\| \d \w+ \| (.*?) \|", PAGE, re.MULTILINE):
        for name in re.findall(r"`(\w+\.py)`", row):
            assert (ROOT / "cloud_sync" / "convert" / name).is_file(), name
    for name in re.findall(r"tests/[\w/]+\.py", PAGE):
        assert (ROOT / name).is_file(), name
