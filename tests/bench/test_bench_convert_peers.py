"""Our conversion beside SpikingJelly's and sinabs', of one ANN, in one run. Prints a table, decides nothing.

    scripts/test --bench tests/bench/test_bench_convert_peers.py

The first run makes ``.venv-peers`` and installs both from PyPI (with torch 2.13.0, gigabytes); ``EDGED_PEERS`` names
another environment that has them. ``EDGED_PEER_IMAGES`` says how many test images judge (1,000). MNIST must be in the
folder that ``EDGED_DATA`` names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloud_sync.convert.ann import Ann
from cloud_sync.convert.evaluate import accuracy, run_spiking
from cloud_sync.convert.firing import Firing
from cloud_sync.convert.fold import fold
from cloud_sync.convert.load import load
from cloud_sync.convert.pipeline import Options, convert
from cloud_sync.convert.timing import measure
from models.mnist import data, make
from tests.support.parts import optional
from tests.support.tree import ROOT

SWEEP = (4, 8, 16, 32)
TIMED = 8  # T of the timing
IMAGES = int(os.environ.get("EDGED_PEER_IMAGES", "1000"))
WAYS = {
    "ours": Options(),
    "ours, --exact": Options(exact=True),
    "ours, --weights int8": Options(weights="int8"),
    "ours, --bias-correction": Options(correct_biases=True),
    "ours, --signed": Options(firing=Firing.SIGNED),
    "ours, --signed --bias-correction": Options(firing=Firing.SIGNED, correct_biases=True),
    "ours, --accumulate (more steps)": Options(firing=Firing.ACCUMULATE),
}


def peers() -> Path:
    """The Python of the peers' environment, made first where there is none."""
    folder = Path(os.environ.get("EDGED_PEERS", ROOT / ".venv-peers"))
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, "spikingjelly", "sinabs", "onnx"], check=True)
        subprocess.run([*install, "torch==2.13.0"], check=True)  # last: the peers ask for whatever is newest
    return python


def theirs() -> list[dict[str, Any]]:
    command = [str(peers()), "-m", "tests.bench.convert_peers", str(IMAGES)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def ours() -> list[dict[str, Any]]:
    network = load(make.ANN)
    calibration, _ = make.encoded(data.calibration())
    images, labels = make.encoded(data.test(IMAGES))
    found = [{"way": "the ANN in ONNX Runtime", "spikes": "", "accuracy": {}, "us": 0.0}]
    scores = Ann(fold(network)).logits(images)
    found[0]["accuracy"] = {str(steps): accuracy(scores, labels) for steps in SWEEP}
    for name, options in WAYS.items():
        right = {}
        for steps in SWEEP:
            made = convert(network, calibration, steps, options, proof=False)
            right[str(steps)] = accuracy(run_spiking(made.spiking, images, made.spiking.steps).scores, labels)
            if steps == TIMED:
                times = measure(made, images[:1])
        found[0]["us"] = times.ann_us
        spikes = ", ".join(map(str, options.firing.alphabet))
        found.append({"way": name, "spikes": spikes, "accuracy": right, "us": times.spiking_us})
    return found


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_our_conversion_beside_its_peers(capsys: pytest.CaptureFixture[str]) -> None:
    if not (data.folder() / "mnist_test.npz").exists():
        optional("MNIST", "EDGED_DATA names its folder")
    versions, *far = theirs()
    rows = [*ours(), *far]
    with capsys.disabled():
        print(
            f"\n{make.ANN.name} of mnist, {IMAGES:,} test images, {len(data.calibration()[1]):,} for calibration;",
            end=" ",
        )
        print(", ".join(f"{name} {version}" for name, version in versions.items()))
        print(f"{'right, %':46}{'one spike is':14}" + "".join(f"{f'T = {t}':>8}" for t in SWEEP), end="")
        print(f"{f'µs, T = {TIMED}':>14}")
        for row in rows:
            right = "".join(f"{100 * row['accuracy'][str(steps)]:8.2f}" for steps in SWEEP)
            print(f"{row['way']:46}{row['spikes']:14}{right}{row['us']:14,.0f}")
