"""``edged engines``: what is here, why not, and what it can run, asked of real workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker import Broker
from tests.support.device import BUNDLE, Device
from tests.support.lava import lava_python

CONFIG = """
[device]
id = "edge-1"
state_dir = "state"
runtime_dir = "run"
[engines.lava]
python = "{python}"
[[pipeline]]
name = "digits"
model = "{model}"
engines = ["lava", "onnxruntime"]
[[pipeline.source]]
type = "http"
name = "http"
"""


def edged(folder: Path, *arguments: str, python: str, model: Path = BUNDLE) -> subprocess.CompletedProcess[str]:
    config = folder / "edged.toml"
    config.write_text(CONFIG.format(python=python, model=model))
    command = [sys.executable, "-m", "edged", *arguments, "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def engines(folder: Path, *arguments: str, **settings: Any) -> dict[str, dict[str, Any]]:
    done = edged(folder, "engines", "--json", *arguments, **settings)
    assert done.returncode == 0, done.stderr
    return {one["engine"]: one for one in map(json.loads, done.stdout.splitlines())}


def test_it_says_what_is_here_what_is_not_and_why(tmp_path: Path) -> None:
    found = engines(tmp_path, python="/nowhere/python")
    here, away = found["onnxruntime"], found["lava"]
    assert here["present"]
    assert here["version"]
    assert [(one["model"], one["runs"]) for one in here["models"]] == [("digits@1.0.0", True)]
    assert not away["present"]
    assert "cannot start /nowhere/python" in away["reason"]
    assert "engines.lava.python" in away["reason"]


def test_an_interpreter_without_the_package_is_told_from_none(tmp_path: Path) -> None:
    assert "install the package of lava" in engines(tmp_path, python=sys.executable)["lava"]["reason"]


def test_lava_is_here_and_proves_digits(tmp_path: Path) -> None:
    done = edged(tmp_path, "check", python=lava_python())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on lava" in done.stdout


@pytest.mark.slow
def test_a_model_that_an_engine_cannot_run_is_refused_by_node(tmp_path: Path) -> None:
    model = BUNDLE.parents[1] / "spikeformer_digits" / "bundle"
    found = engines(tmp_path, python=lava_python(), model=model)
    [lava], [stock] = found["lava"]["models"], found["onnxruntime"]["models"]
    assert stock["runs"]
    assert not lava["runs"]
    assert "node" in lava["reason"]


@pytest.mark.parametrize("names", ['["onnxruntime", "onnxruntime"]', "[]", '["tensorflow"]'])
def test_engines_that_make_no_sense_are_refused(tmp_path: Path, names: str) -> None:
    config = tmp_path / "edged.toml"
    text = CONFIG.format(python="", model=BUNDLE).replace('["lava", "onnxruntime"]', names)
    config.write_text(text)
    command = [sys.executable, "-m", "edged", "engines", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert "engines" in done.stderr


@pytest.mark.slow
def test_the_daemon_takes_a_refusal_for_an_answer_and_uses_the_next_engine(tmp_path: Path, broker: Broker) -> None:
    model = BUNDLE.parents[1] / "spikeformer_digits" / "bundle"
    tables = f'[engines.lava]\npython = "{lava_python()}"\n'
    pipeline = 'engines = ["lava", "onnxruntime"]'
    with Device(tmp_path, broker.port, bundle=model, pipeline=pipeline, tables=tables) as device:
        device.start("daemon")
        device.wait_ready(60)
        lava, stock = device.status()["engines"]
        assert (lava["placement"], stock["placement"]) == ("unfit", "serving")
        assert "node" in lava["reason"]
