"""docs/feeders.md says what is: its example runs, its settings and exit codes are those of the command."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from edged.feeder_config import MqttTopic
from edged.feeders.cli import KINDS
from edged.feeders.kit import ExitCode
from edged.settings import Problem, parse
from models.digits import data
from tests.support.device import ROOT, Device
from tests.support.feeder import rows

TEXT = (ROOT / "docs" / "feeders.md").read_text(encoding="utf-8")
TABLES = [block for block in re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL) if "[[feeder]]" in block]


@pytest.mark.parametrize("block", TABLES, ids=[re.findall(r'type = "(\w+)"', block)[0] for block in TABLES])
def test_the_settings_that_are_shown_are_all_there_are_and_are_taken(block: str) -> None:
    [table] = tomllib.loads(block)["feeder"]
    problems: list[Problem] = []
    schema = KINDS[table["type"]]
    assert parse(schema, table, problems, base=Path("/base")) is not None, problems
    words = set(re.findall(r"\w+", block))
    schemas = [schema, MqttTopic] if table["type"] == "mqtt" else [schema]
    fields = {field.name for one in schemas for field in msgspec.structs.fields(one)}
    assert fields <= words, fields - words


def test_every_kind_of_feeder_and_every_exit_code_is_described() -> None:
    assert len(TABLES) == len(KINDS)
    table = TEXT.split("| exit code | meaning |")[1].split("\n\n")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == {int(code) for code in ExitCode}


def test_the_example_hands_frames_in_once_and_mistakes_are_named(tmp_path: Path) -> None:
    images, truth = (array[:5] for array in data.held_out())
    files = []
    for number, image in enumerate(images):
        file = tmp_path / f"digit-{number}.{'npy' if number % 2 else 'png'}"
        shown = np.asarray(image).reshape(8, 8).astype(np.uint8)
        np.save(file, shown) if number % 2 else Image.fromarray(shown).save(file)
        files.append(str(file))
    (tmp_path / "bad.png").write_bytes(b"no image")
    with Device(tmp_path / "device", 1883) as device:
        device.start("daemon")
        device.wait_ready()
        command = [sys.executable, str(ROOT / "docs" / "examples" / "feeder.py"), str(device.runtime / "http.sock")]
        command += ["digits", *files, str(tmp_path / "bad.png")]
        first, again = (subprocess.run(command, capture_output=True, text=True, timeout=60) for _ in range(2))
        flags = ["--socket", str(device.runtime / "http.sock"), "--model", "digits", "--path", str(tmp_path)]
        events = subprocess.run(
            [sys.executable, "-m", "edged.feeders", "events", *flags], cwd=ROOT, capture_output=True
        )
        stored = rows(device)
    assert events.returncode == ExitCode.CONFIG
    assert b"model digits takes no events" in events.stderr
    assert first.returncode == 0, first.stderr
    *labels, refused = first.stdout.splitlines()
    assert again.stdout.splitlines()[:-1] == labels
    assert "bad.png refused: " in refused and "not a readable PNG" in refused
    assert len(stored) == len(labels) == 5
    right = sum(line.split()[1] == str(label) for line, label in zip(labels, truth, strict=True))
    assert right >= 4
