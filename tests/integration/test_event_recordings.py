"""Real recordings in every event format, handed to the real daemon through its spool."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edged.bundle.golden import make_golden
from edged.bundle.graph.builder import StepBuilder
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.loaded import Bundle
from edged.bundle.manifest import EventFrames, graph_spec
from edged.bundle.writer import write_bundle
from edged.sources.decode import decode
from tests.support.bundles import CLASSES, draft_of
from tests.support.device import ROOT, Device, wait_until
from tests.support.event_files import aedat, dat, davis
from tests.support.recordings import data
from tests.support.stock_engine import StockEngine

WIDTH, HEIGHT, TIMESTEPS = 240, 180, 4
NAMES = ("sample_ncars.dat", "IMU_translBoxes.aedat", "sample_nmnist.bin")


def camera(path: Path) -> Bundle:
    """A model with random weights for a sensor of 240 x 180 pixels: counts by blocks of 30 x 30 → dense → IF."""
    random = np.random.default_rng(5)
    b = StepBuilder("camera")
    frames = b.input("events", (2, HEIGHT, WIDTH), sequence=True)
    blocks = b.node("AveragePool", frames, kernel_shape=[30, 30], strides=[30, 30])
    flat = b.node("Reshape", blocks, b.constant(np.array([0, -1])))
    current = b.node("MatMul", flat, b.constant(random.normal(0.1, 0.4, (2 * 6 * 8, CLASSES))))
    graph = b.build(b.neuron("IF", current, (CLASSES,), name="out", v_th=0.5, v_sub=0.05), CLASSES)
    encoding = EventFrames(
        width=WIDTH, height=HEIGHT, polarities=2, dt_us=25_000, t0="first_event", polarity_order="off,on",
        accumulate="count", tail="clip",
    )  # fmt: skip
    draft = draft_of(graph, "events", TIMESTEPS)
    draft = msgspec.structs.replace(draft, inputs=(msgspec.structs.replace(draft.inputs[0], encoding=encoding),))
    golden = make_golden(graph.model, graph_spec(draft), 0)
    return write_bundle(path, manifest=draft, model=graph.model, golden=golden, report={}, card="# camera\n")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_recordings_of_every_format_get_the_scores_of_their_frames(tmp_path: Path) -> None:
    files = {name: data(f"event_samples/{name}").read_bytes() for name in NAMES}
    bad = {"back.aedat": aedat([(davis(1, 1, 1), 9), (davis(1, 1, 1), 5)]), "beyond.dat": dat([(250, 1, 1, 0)])}
    bundle = camera(tmp_path / "bundle")
    with Device(tmp_path / "device", 1883, bundle=tmp_path / "bundle") as device:
        device.start("daemon")
        device.wait_ready()
        for name, content in {**files, **bad}.items():
            (device.spool / f".{name}").write_bytes(content)
            (device.spool / f".{name}").rename(device.spool / name)
        wait_until(lambda: not device.spooled(), 60, device.log("daemon"))
        command = [sys.executable, "-m", "edged", "results", "--json", "--config", str(device.config)]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    rows = {row["key"].partition("#")[0]: row for row in map(json.loads, told.stdout.splitlines())}
    assert set(rows) == {*files, *bad}
    assert {rows[name]["kind"] for name in bad} == {"rejected"}
    assert "backwards" in json.dumps(rows["back.aedat"]["body"])
    assert "240 x 180" in json.dumps(rows["beyond.dat"]["body"])
    expected = {name: scores(bundle, name, content) for name, content in files.items()}
    for name, score in expected.items():
        np.testing.assert_allclose(rows[name]["body"]["scores"], score, err_msg=name)
    assert len({tuple(score) for score in expected.values()}) == len(NAMES)  # no two alike, so none stands for another


def scores(bundle: Bundle, name: str, content: bytes) -> list[float]:
    """What stock ONNX Runtime makes of a recording, decoded and binned here."""
    sample = bundle.encode(decode(name, content))
    engine = StockEngine(check_step_graph(bundle.read("model.onnx"), bundle.spec), bundle.spec)
    readout = asyncio.run(engine.infer({key: value[:, np.newaxis] for key, value in sample.items()})).readout
    return [float(score) for score in readout[0]]
