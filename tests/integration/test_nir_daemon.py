"""A published NIR file, imported and run by the real daemon on real recordings of an event camera."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cloud_sync.convert.arguments import Exit
from cloud_sync.convert.cli import main
from tests.support.device import ROOT, Device, wait_until
from tests.support.recordings import data, labels

NEEDED = 48  # of 50; the authors publish 98.5 % of all test recordings of N-MNIST
STEPS = "340"  # of 1 ms: no recording is longer, and the authors cut none short


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_published_cnn_tells_nmnist_digits_apart_through_the_spool(tmp_path: Path) -> None:
    model, folder = data("nir/cnn_sinabs.nir"), data("nmnist/test")
    bundle = tmp_path / "bundle"
    given = ["--preset", "sinabs", "--timesteps", STEPS, "--input", "events", "--step-us", "1000", "--name", "cnn"]
    assert main([str(model), *given, "--out", str(bundle)]) == Exit.WRITTEN
    truth = labels(folder)
    with Device(tmp_path / "device", 1883, bundle=bundle) as device:
        device.start("daemon")
        device.wait_ready(180)
        for number in truth:
            part = device.spool / f".{number}"
            part.write_bytes((folder / f"{number}.bs2").read_bytes())
            part.rename(device.spool / f"{number}.bs2")
        wait_until(lambda: not device.spooled(), 120, device.log("daemon"))
        command = [sys.executable, "-m", "edged", "results", "--json", "--limit", "100", "--config", str(device.config)]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    rows = [json.loads(line) for line in told.stdout.splitlines()]
    right = sum(row["body"]["label"] == truth[row["key"].partition(".")[0]] for row in rows)
    print(f"\n{right} of {len(rows)} recordings right")
    assert len(rows) == len(truth) == 50
    assert right >= NEEDED
