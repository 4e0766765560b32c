"""``edged-convert`` from end to end, on a random ANN: what it writes, what it says, and how it fails."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from PIL import Image

from cloud_sync.convert.arguments import Exit
from cloud_sync.convert.cli import main
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.loaded import open_bundle
from edged.bundle.manifest import Grayscale, Layout, Normalize, Resize, Scale
from edged.bundle.selftest import prove
from tests.support import anns
from tests.support.stock_engine import StockEngine


class Bench:
    """A folder with an ANN, calibration images and labelled ones; ``convert`` runs the command on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "bundle"
        (folder / "ann.onnx").write_bytes(anns.residual().SerializeToString())
        pixels = (anns.images(40) * 255).astype(np.uint8)
        np.savez(folder / "calibration.npz", images=pixels)
        np.savez(folder / "held-out.npz", images=pixels, labels=np.arange(40) % anns.CLASSES)

    def convert(self, *more: str, out: str = "bundle", calibrate: str = "calibration.npz") -> int:
        given = ["--calibrate", str(self.folder / calibrate), "--name", "random", "--out", str(self.folder / out)]
        return main([str(self.folder / "ann.onnx"), *given, "--timesteps", "4", "--scale", "1/255", *more])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_an_ann_becomes_a_bundle_that_opens(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = str(bench.folder / "held-out.npz")
    assert bench.convert("--evaluate", held_out, "--labels", "a,b,c,d,e", "--license", "MIT") == Exit.WRITTEN
    bundle = open_bundle(bench.out)
    out, err = capsys.readouterr()
    assert out == f"random 1.0.0 {bundle.digest}\n"
    assert "ANN" in err
    assert "µs" in err
    assert bundle.labels == ("a", "b", "c", "d", "e")
    assert bundle.timesteps == 4
    assert bundle.manifest.inputs[0].preprocess == (Scale(factor=1 / 255),)
    assert bundle.manifest.source_ann_sha256 is not None
    report = json.loads(bundle.read("report.json"))
    assert [point["timesteps"] for point in report["by_timesteps"]] == [4, 8, 16, 32]
    assert report["spiking"]["accuracy"] == report["by_timesteps"][0]["accuracy"]
    assert report["spiking"]["synaptic_operations"]["effective_acs"] > 0
    assert b"| the ANN |" in bundle.read("README.md")


def test_what_is_printed_holds_the_alphabet_each_t_and_both_networks_side_by_side(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = str(bench.folder / "held-out.npz")
    assert bench.convert("--evaluate", held_out, "--signed", "--bias-correction", "--weights", "int8") == Exit.WRITTEN
    err = capsys.readouterr().err
    assert "spikes are -1, 0 and 1; figures for other spikes at the same T are not comparable" in err
    report = json.loads(open_bundle(bench.out).read("report.json"))
    assert (report["firing"], report["alphabet"], report["bias_correction"]) == ("signed", [-1, 0, 1], True)
    for point in report["by_timesteps"]:
        agreed = f"{100 * point['agreement']:.2f} % as the ANN"
        assert any(f"T = {point['timesteps']:<3}" in line and line.endswith(agreed) for line in err.splitlines())
    table = {line[2:].split("  ")[0]: line.split()[-1] for line in err.splitlines() if line.startswith("  ")}
    for field in ("effective MACs", "effective ACs", "dense operations", "membrane updates"):
        assert field in table
    assert table["effective MACs"] == f"{report['ann']['synaptic_operations']['effective_macs']:,.0f}"
    assert float(table["µs, one thread of this machine"].replace(",", "")) > 0
    assert "bytes instead of" in err


@pytest.mark.slow
def test_only_the_network_and_the_images_must_be_named(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.folder)
    (bench.folder / "ann.onnx").rename(bench.folder / "my model.onnx")
    assert main(["my model.onnx", "--calibrate", "calibration.npz"]) == Exit.WRITTEN
    out, err = capsys.readouterr()
    assert out.startswith("my-model 1.0.0 ")
    bundle = open_bundle(bench.folder / "my-model-bundle")
    assert bundle.timesteps == 16
    with np.load(io.BytesIO(bundle.read("golden.npz"))) as golden:  # noise of 0 to 1 would leave it silent
        assert 20 < golden["free.input"].max() < 256
        assert np.ptp(golden["free.readout"], axis=0).max() > 0
    assert "note: the network's inputs reach from 0 to 25" in err
    assert "is --scale 1/255 missing?" in err
    assert bench.convert() == Exit.FAILED  # the network is gone
    (bench.folder / "my model.onnx").rename(bench.folder / "ann.onnx")
    assert bench.convert() == Exit.WRITTEN
    assert "--scale 1/255 missing" not in capsys.readouterr().err  # the control: it was given


@pytest.mark.slow
def test_a_folder_for_each_class_judges_as_the_archive_does(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["zebra", "ant", "cat", "dog", "emu"]
    with np.load(bench.folder / "held-out.npz") as archive:
        for index, (image, label) in enumerate(zip(archive["images"], archive["labels"], strict=True)):
            (bench.folder / "held-out" / names[label]).mkdir(parents=True, exist_ok=True)
            np.save(bench.folder / "held-out" / names[label] / f"{index:03}.npy", image)
    right = {}
    for source, labels in (("held-out.npz", names), ("held-out", names), ("held-out", sorted(names))):
        out = f"{source}-{labels[0]}"
        more = ["--evaluate", str(bench.folder / source), "--labels", ",".join(labels)]
        assert bench.convert(*more, out=out) == Exit.WRITTEN
        right[out] = json.loads(open_bundle(bench.folder / out).read("report.json"))["ann"]["accuracy"]
    assert right["held-out-zebra"] == right["held-out.npz-zebra"] != right["held-out-ant"]
    (bench.folder / "held-out" / "extra").mkdir()
    assert bench.convert("--evaluate", str(bench.folder / "held-out"), out="none") == Exit.FAILED
    assert "holds 6 folders (one for each of the 5 classes)" in capsys.readouterr().err


def test_an_ann_that_guesses_is_told(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    scores = bench.folder / "held-out.npz"
    assert bench.convert("--evaluate", str(scores)) == Exit.WRITTEN
    assert "check preprocessing and the order of labels" in capsys.readouterr().err  # labels were drawn, not learnt
    report = json.loads(open_bundle(bench.out).read("report.json"))
    assert report["ann"]["accuracy"] < 0.4


def test_photos_that_a_device_cannot_read_are_told(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    (bench.folder / "photos").mkdir()
    (bench.folder / "photos" / "one.jpg").write_bytes(b"any")
    assert bench.convert(calibrate="photos") == Exit.FAILED
    assert "it has .jpg: a device takes arrays and PNGs" in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_inputs_give_the_same_digest_and_another_t_gives_another(bench: Bench) -> None:
    for out, timesteps in (("one", "4"), ("two", "4"), ("three", "5")):
        assert bench.convert("--timesteps", timesteps, out=out) == Exit.WRITTEN
    digests = [open_bundle(bench.folder / out).digest for out in ("one", "two", "three")]
    assert digests[0] == digests[1] != digests[2]


def test_a_folder_of_images_calibrates_as_the_archive_does(bench: Bench) -> None:
    ann = anns.AnnWriter()
    pooled = ann.node("GlobalAveragePool", ann.node("Relu", ann.conv("x", (4, 1, 3, 3), bias=True)))
    model = ann.model(ann.node("Flatten", pooled), (1, 6, 6), 4)
    (bench.folder / "ann.onnx").write_bytes(model.SerializeToString())
    grey = np.random.default_rng(1).integers(0, 256, (20, 6, 6), np.uint8)
    np.savez(bench.folder / "grey.npz", images=grey)
    (bench.folder / "files").mkdir()
    for index, image in enumerate(grey):
        if index % 2:
            np.save(bench.folder / "files" / f"{index:02}.npy", image)
        else:
            Image.fromarray(image).save(bench.folder / "files" / f"{index:02}.png")
    (bench.folder / "files" / "notes.txt").write_text("not an image")
    assert bench.convert("--layout", "HW", out="files-bundle", calibrate="files") == Exit.WRITTEN
    assert bench.convert("--layout", "HW", out="archive-bundle", calibrate="grey.npz") == Exit.WRITTEN
    models = [open_bundle(bench.folder / out).read("model.onnx") for out in ("files-bundle", "archive-bundle")]
    assert models[0] == models[1]


def test_preprocessing_goes_into_the_manifest_in_the_documented_order(bench: Bench) -> None:
    ann = anns.AnnWriter()
    pooled = ann.node("GlobalAveragePool", ann.node("Relu", ann.conv("x", (4, 1, 3, 3))))
    model = ann.model(ann.node("Flatten", pooled), (1, 6, 6), 4)
    (bench.folder / "ann.onnx").write_bytes(model.SerializeToString())
    colour = np.random.default_rng(1).integers(0, 256, (20, 9, 12, 3), np.uint8)
    np.savez(bench.folder / "colour.npz", images=colour)
    options = ["--layout", "HWC", "--grayscale", "--resize", "6x6", "--mean", "1/2", "--std", "0.25"]
    assert bench.convert(*options, calibrate="colour.npz") == Exit.WRITTEN
    assert open_bundle(bench.out).manifest.inputs[0].preprocess == (
        Layout(axes="HWC"),
        Grayscale(),
        Resize(height=6, width=6),
        Scale(factor=1 / 255),
        Normalize(mean=(0.5,), std=(0.25,)),
    )


def _scaled(model: bytes) -> bytes:
    """The same with one scale of its last int8 weight 2 % larger."""
    changed = onnx.load_model_from_string(model)
    scale = [tensor for tensor in changed.graph.initializer if tensor.name.endswith(".scale")][-1]
    values = numpy_helper.to_array(scale).copy()
    values[0] *= 1.02
    scale.CopyFrom(numpy_helper.from_array(values, scale.name))
    return bytes(changed.SerializeToString())


def test_int8_weights_are_stored_as_int8_and_prove_themselves_by_golden_data_of_their_own(bench: Bench) -> None:
    held_out = str(bench.folder / "held-out.npz")
    for out, more in (("whole", []), ("small", ["--weights", "int8"])):
        assert bench.convert("--evaluate", held_out, *more, out=out) == Exit.WRITTEN
    whole, small = (open_bundle(bench.folder / out) for out in ("whole", "small"))
    assert [bundle.manifest.variant.name for bundle in (whole, small)] == ["f32", "int8"]
    assert whole.read("golden.npz") != small.read("golden.npz")
    kinds = {t.data_type for t in onnx.load_model_from_string(small.read("model.onnx")).graph.initializer}
    assert TensorProto.INT8 in kinds
    reports = [json.loads(bundle.read("report.json")) for bundle in (whole, small)]
    assert reports[1]["unrounded"]["accuracy"] == reports[0]["spiking"]["accuracy"]
    sizes = [report["spiking"]["footprint"]["parameters_bytes"] for report in reports]
    assert reports[1]["unrounded"]["parameters_bytes"] == sizes[0] > 2 * sizes[1]
    assert b"whole numbers of 8 bits" in small.read("README.md")

    def proved(model: bytes) -> bool:
        engine = StockEngine(check_step_graph(model, small.spec), small.spec)
        return asyncio.run(prove(engine, small)).passed

    assert proved(small.read("model.onnx"))
    assert not proved(_scaled(small.read("model.onnx")))  # the control
    assert not proved(whole.read("model.onnx"))  # nor is float32 what this golden data asks for


def test_refused_nodes_are_all_named_and_nothing_is_written(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(bench.folder / "ann.onnx")
    for node in [node for node in model.graph.node if node.op_type == "Relu"][:2]:
        node.op_type = "Sigmoid"
        node.name = f"bad-{node.output[0]}"
    onnx.save(model, bench.folder / "ann.onnx")
    assert bench.convert() == Exit.REFUSED
    err = capsys.readouterr().err
    assert "2 nodes cannot be converted" in err
    assert err.count("bad-") == 2
    assert "--levels" not in err  # transformers' converter takes no such network either
    assert sorted(path.name for path in bench.folder.iterdir()) == ["ann.onnx", "calibration.npz", "held-out.npz"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--labels", "a,b"], "2 labels for 5 classes"),
        (["--evaluate", "calibration.npz"], "no array 'labels'"),
        (["--evaluate", "missing.npz"], "cannot be read"),
        (["--calibrate", "ann.onnx"], "cannot be read"),
        (["--calibrate", "."], "holds no .npy or .png"),
        (["--timesteps", "0"], "0 timesteps"),
        (["--mean", "0.5"], "--mean and --std belong together"),
        (["--layout", "HW", "--calibrate", "flat.npz"], "image 0"),
        (["--name", "no spaces please"], "name"),
        (["--exact"], "cannot be converted"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(
    more: list[str], message: str, bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(bench.folder / "flat.npz", images=np.zeros((3, 7)))
    monkeypatch.chdir(bench.folder)
    assert bench.convert(*more) in (Exit.FAILED, Exit.REFUSED)
    assert message in capsys.readouterr().err
    assert not bench.out.exists()
    assert not [path for path in bench.folder.iterdir() if path.is_dir()]


def test_a_bundle_that_exists_is_left_alone(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.out.mkdir()
    (bench.out / "mine.txt").write_text("keep")
    assert bench.convert() == Exit.FAILED
    assert "exists" in capsys.readouterr().err
    assert [path.name for path in bench.out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("wrong", [["--scale", "big"], ["--scale", "1/0"], ["--resize", "6"], ["--layout", "CHW"]])
def test_a_wrong_command_line_is_a_usage_error(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["ann.onnx", "--calibrate", "x", "--out", "y", "--name", "z", *wrong])
    assert caught.value.code == Exit.USAGE
