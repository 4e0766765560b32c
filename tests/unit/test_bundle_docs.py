"""``docs/bundle.md`` names every field, op and command that there is."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import get_args

import msgspec

from edged.bundle.cli import add_commands
from edged.bundle.graph.batch_rules import RULES
from edged.bundle.graph.neurons import NEURONS
from edged.bundle.graph.spec import ReadoutKind
from edged.bundle.manifest import Encoding, EventFrames, Manifest, Preprocess
from tests.unit.test_bundle_cli import open_engine

DOCUMENT = (Path(__file__).parents[2] / "docs" / "bundle.md").read_text()
WORDS = set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", DOCUMENT, flags=re.DOTALL)))


def test_every_field_of_the_manifest_is_described() -> None:
    fields = {field.encode_name for field in msgspec.structs.fields(Manifest)}
    fields |= {field.encode_name for field in msgspec.structs.fields(EventFrames)}
    assert not fields - WORDS


def test_every_encoding_preprocessing_step_and_readout_is_described() -> None:
    tags = {choice.__struct_config__.tag for choice in (*get_args(Encoding), *get_args(Preprocess))}
    assert not (tags | set(get_args(ReadoutKind))) - WORDS


def test_every_op_of_canonical_graphs_is_described_and_no_other() -> None:
    table = DOCUMENT.split("Standard ops, each with the rule")[1].split("Refused:")[0]
    listed = {word for line in table.splitlines() if line.startswith("| `") for word in
              re.findall(r"`([A-Z]\w+)`", line.split("|")[1])}  # fmt: skip
    assert listed == set(RULES)
    assert not set(NEURONS) - WORDS, "a new neuron gets a row in the table of the document"


def test_every_command_is_described() -> None:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    add_commands(subparsers, open_engine)
    commands = next(a for a in subparsers.choices["bundle"]._actions if a.dest == "bundle_command").choices
    assert commands is not None
    assert all(f"edged bundle {name}" in DOCUMENT for name in commands)
