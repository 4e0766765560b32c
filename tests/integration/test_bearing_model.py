"""The committed bundle ``bearing``: what its report promises, and windows through the real daemon's spool."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.plans import window_plan
from edged.bundle.graph.spec import READOUT
from edged.bundle.graph.stock import Stock
from edged.bundle.loaded import Bundle, open_bundle
from edged.domain import Array
from models.bearing import across, data, make
from tests.support.device import ROOT, Device, wait_until
from tests.support.recordings import data as recorded

MOST_BYTES = 1 << 20  # what a demonstration may weigh in a repository


@cache
def committed() -> Bundle:
    return open_bundle(make.BUNDLE)


@cache
def judged() -> tuple[data.Signal, data.Labels]:
    recorded("cwru_bearing")
    return data.samples("test")


def scores(windows: Array) -> Array:
    """(N, classes) from nothing but the bundle and stock ONNX Runtime."""
    model = check_step_graph(committed().read("model.onnx"), committed().spec)
    plan = Stock(window_plan(model, committed().spec, "unrolled"))
    samples = np.stack([committed().encode(window)["vibration"] for window in windows])
    return plan.run({"vibration": samples})[READOUT]


def test_the_bundle_is_small_and_its_card_tells_the_harder_question() -> None:
    assert sum(path.stat().st_size for path in make.BUNDLE.iterdir()) <= MOST_BYTES
    card = committed().read("README.md").decode()
    for one in across.read():
        assert f"| {one.size} | {one.right} of {one.windows} |" in card


def test_no_sample_of_the_test_part_lies_near_one_that_trained() -> None:
    recorded("cwru_bearing")
    for name in data.names():
        whole = np.arange(len(data.signal(name)), dtype=np.float32)
        train, test = data.part(whole, "train"), data.part(whole, "test")
        assert test[0] - train[-1] > data.RATE_HZ * 0.5
        assert train[-1] > 0.59 * len(whole)
        assert test[-1] == len(whole) - 1


def test_the_sound_bearing_has_its_lines_where_the_others_have_them() -> None:
    """The control: at the rate that its file seems to have, the strongest line lies at a quarter."""
    stored = np.load(recorded("cwru_bearing") / "Normal.npy")
    assert 161 < strongest(data.signal("Normal")) < 162.5
    assert strongest(stored) < 100


def strongest(signal: Array) -> float:
    """Frequency of the strongest line below 200 Hz, read at 12 kHz."""
    power = np.abs(np.fft.rfft((signal - signal.mean()) * np.hanning(len(signal)))) ** 2
    at = np.fft.rfftfreq(len(signal), 1 / data.RATE_HZ)
    return float(at[: np.searchsorted(at, 200)][np.argmax(power[: np.searchsorted(at, 200)])])


def test_accuracy_over_time_is_as_reported() -> None:
    windows, labels = judged()
    right = float((scores(windows).argmax(axis=1) == labels).mean())
    report = json.loads(committed().read("report.json"))
    assert report["samples"] == len(labels)
    assert right == pytest.approx(report["spiking"]["accuracy"], abs=0.01)
    assert right >= 0.98


@pytest.mark.timeout(180)
def test_windows_through_the_spool_get_the_labels_they_get_alone(tmp_path: Path) -> None:
    windows, labels = judged()
    chosen = np.arange(0, len(windows), 8)
    expected = scores(windows[chosen])
    with Device(tmp_path / "device", 1883, bundle=make.BUNDLE) as device:
        device.start("daemon")
        device.wait_ready()
        for number in chosen:
            device.put(f"{number:04}.npy", windows[number])
        device.put("short.npy", windows[0][:, :-1])
        wait_until(lambda: not device.spooled(), 60, device.log("daemon"))
        command = [
            sys.executable,
            "-m",
            "edged",
            "results",
            "--json",
            "--limit",
            "1000",
            "--config",
            str(device.config),
        ]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    rows = {row["key"].partition(".")[0]: row for row in map(json.loads, told.stdout.splitlines())}
    assert len(rows) == len(chosen) + 1
    assert rows.pop("short")["kind"] == "rejected"
    for row, score in zip((rows[f"{number:04}"] for number in chosen), expected, strict=True):
        np.testing.assert_allclose(row["body"]["scores"], score, atol=1e-4)
        assert row["body"]["label"] == data.LABELS[int(np.argmax(score))]
    named = [rows[f"{number:04}"]["body"]["label"] == data.LABELS[labels[number]] for number in chosen]
    print(f"\n{sum(named)} of {len(named)} windows named rightly through the daemon's spool")
    assert np.mean(named) >= 0.98
