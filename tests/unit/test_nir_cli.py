"""``edged-convert MODEL.nir`` from end to end: what it writes, what it asks for, and how it fails."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_sync.convert.arguments import Exit
from cloud_sync.convert.cli import main
from cloud_sync.convert.nir.semantics import PRESETS
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.manifest import EventFrames, Scale, Sequence
from edged.bundle.selftest import prove
from edged.domain import Events
from tests.support.nir_files import Fields, Net, Rules
from tests.support.random_nir import cell
from tests.support.stock_engine import StockEngine


def classifier(shape: tuple[int, ...], seed: int = 0) -> Net:
    """shape → flat → 8 LIF with feedback → 3 IF."""
    rng = np.random.default_rng(seed)
    size, rules = int(np.prod(shape)), Rules(dt=1.0, reset="subtract")
    nodes: dict[str, Fields] = {
        "in": {"type": "Input", "shape": np.array(shape)},
        "flat": {"type": "Flatten", "start_dim": 0, "end_dim": -1, "input_type": np.array(shape)},
        "w1": {"type": "Linear", "weight": rng.normal(0.2, 1.5, (8, size))},
        "lif": cell(rng, "LIF", (8,), rules),
        "back": {"type": "Linear", "weight": rng.normal(0, 0.3, (8, 8))},
        "w2": {"type": "Affine", "weight": rng.normal(0.2, 1, (3, 8)), "bias": np.zeros(3)},
        "if": cell(rng, "IF", (3,), rules),
        "out": {"type": "Output", "shape": np.array([3])},
    }
    path = ["in", "flat", "w1", "lif", "w2", "if", "out"]
    return Net(nodes, [*itertools.pairwise(path), ("lif", "back"), ("back", "lif")], {"back"})


class Bench:
    """A folder with a NIR file; ``convert`` runs the command on it."""

    def __init__(self, folder: Path, shape: tuple[int, ...] = (4,)) -> None:
        self.folder = folder
        self.shape = shape
        classifier(shape).write(folder / "net.nir")

    def convert(self, *more: str, out: str = "bundle", model: str = "net.nir") -> int:
        given = ["--name", "from-nir", "--timesteps", "6", "--out", str(self.folder / out)]
        return main([str(self.folder / model), *given, *more])

    def bundle(self, out: str = "bundle") -> Bundle:
        return open_bundle(self.folder / out)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


SAID = ("--dt", "1", "--reset", "subtract", "--comparison", ">")


def test_a_file_becomes_a_bundle_that_proves_itself(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.convert(*SAID, "--labels", "a,b,c", "--license", "MIT", "--readout", "sum", "--window", "1:5") == 0
    bundle = bench.bundle()
    out, err = capsys.readouterr()
    assert out == f"from-nir 1.0.0 {bundle.digest}\n"
    assert "2 layers of neurons" in err
    manifest = bundle.manifest
    assert (manifest.labels, manifest.timesteps, manifest.readout.kind) == (("a", "b", "c"), 6, "sum")
    assert (manifest.readout.window.start, manifest.readout.window.stop) == (1, 5)
    assert isinstance(manifest.inputs[0].encoding, Sequence)
    assert (manifest.semantics.reset, manifest.semantics.comparison) == ("subtract", ">")
    assert "dt 1.0" in manifest.semantics.source
    model = check_step_graph(bundle.read("model.onnx"), bundle.spec)
    assert asyncio.run(prove(StockEngine(model, bundle.spec), bundle)).passed
    assert b"imported from a NIR file" in bundle.read("README.md")


def test_a_name_that_is_not_said_is_the_files(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench.folder)
    assert main(["net.nir", "--timesteps", "6", *SAID]) == Exit.WRITTEN
    assert open_bundle(bench.folder / "net-bundle").name == "net"


def test_the_same_file_gives_the_same_digest_and_another_reading_another(bench: Bench) -> None:
    for out, more in (("one", SAID), ("two", SAID), ("three", (*SAID[:-1], ">="))):
        assert bench.convert(*more, out=out) == Exit.WRITTEN
    digests = [bench.bundle(out).digest for out in ("one", "two", "three")]
    assert digests[0] == digests[1] != digests[2]


def test_labelled_payloads_are_judged_as_the_device_will_judge_them(bench: Bench) -> None:
    images = (np.random.default_rng(1).random((20, 6, 4)) < 0.5).astype(np.uint8)
    np.savez(bench.folder / "held-out.npz", images=images, labels=np.zeros(20, np.int64))
    assert bench.convert(*SAID, "--evaluate", str(bench.folder / "held-out.npz"), "--scale", "1/2") == Exit.WRITTEN
    bundle = bench.bundle()
    assert bundle.manifest.inputs[0].preprocess == (Scale(factor=0.5),)
    report: dict[str, Any] = json.loads(bundle.read("report.json"))
    engine = StockEngine(check_step_graph(bundle.read("model.onnx"), bundle.spec), bundle.spec)
    encoded = np.stack([bundle.encode(image)["input"] for image in images], axis=1)
    readout = asyncio.run(engine.infer({"input": encoded})).readout
    right = np.mean([prediction.index == 0 for prediction in bundle.decode(readout)])
    assert report["accuracy"] == pytest.approx(right)
    assert report["spiking"]["synaptic_operations"]["effective_macs"] > 0
    assert report["spiking"]["membrane_updates"] == 6 * 11


def test_recordings_of_an_event_camera_fit_a_file_with_polarities(tmp_path: Path) -> None:
    bench = Bench(tmp_path, (2, 3, 5))
    assert bench.convert("--preset", "sinabs", "--input", "events", "--step-us", "500", "--t0", "recording") == 0
    bundle = bench.bundle()
    entry = bundle.manifest.inputs[0]
    assert isinstance(entry.encoding, EventFrames)
    assert (entry.encoding.width, entry.encoding.height, entry.encoding.polarities) == (5, 3, 2)
    assert bundle.manifest.semantics.dt_us == 500
    where, when = np.array([4], np.uint16), np.array([700], np.int64)
    frames = bundle.encode(Events(where, np.array([2], np.uint16), np.array([1], np.uint8), when))["input"]
    assert np.argwhere(frames).tolist() == [[1, 1, 2, 4]]


def test_one_array_may_be_shown_at_every_step(bench: Bench) -> None:
    assert bench.convert(*SAID, "--input", "constant", "--mean", "0.5", "--std", "2") == Exit.WRITTEN
    assert bench.bundle().manifest.inputs[0].time == "constant"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_reads_a_file_and_the_manifest_names_it(preset: str, bench: Bench) -> None:
    more = ("--dt", "1", "--reset", "subtract")  # a reset to a value below is refused where none is in the file
    assert bench.convert("--preset", preset, *more) == Exit.WRITTEN
    assert f"preset {preset};" in bench.bundle().manifest.semantics.source


WRONG: dict[str, tuple[tuple[str, ...], Exit, str]] = {
    "nothing said": ((), Exit.FAILED, "--reset and --comparison must be given"),
    "no dt": (("--reset", "zero", "--comparison", ">"), Exit.REFUSED, "how long a step is was not said"),
    "no step": ((*SAID, "--input", "events"), Exit.FAILED, "events do not fit an input of shape [4]"),
    "labels": ((*SAID, "--labels", "a,b"), Exit.FAILED, "2 labels for 3 classes"),
    "a window": ((*SAID, "--window", "4:9"), Exit.FAILED, "must be steps start < stop <= 6"),
    "a layout": ((*SAID, "--layout", "HW"), Exit.FAILED, "must be scale"),
    "too many steps": ((*SAID, "--timesteps", "5000"), Exit.FAILED, "must be 1 to 1024"),
    "no data": ((*SAID, "--evaluate", "nowhere.npz"), Exit.FAILED, "nowhere.npz cannot be read"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_missing_or_wrong_is_said_and_nothing_is_written(
    what: str, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    more, code, reason = WRONG[what]
    assert bench.convert(*more) == code
    out, err = capsys.readouterr()
    assert reason in err
    assert out == ""
    assert sorted(path.name for path in bench.folder.iterdir()) == ["net.nir"]


def test_nothing_is_overwritten(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    (bench.folder / "bundle").mkdir()
    assert bench.convert(*SAID) == Exit.FAILED
    assert "exists" in capsys.readouterr().err
    assert not list((bench.folder / "bundle").iterdir())


def test_a_network_that_never_answers_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    net = classifier((4,))
    net.nodes["w2"]["weight"] = np.zeros((3, 8))
    net.write(bench.folder / "dead.nir")
    assert bench.convert(*SAID, model="dead.nir") == Exit.FAILED
    assert "is the network alive?" in capsys.readouterr().err
