"""``edged-convert --levels`` from end to end on a random vision transformer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cloud_sync.convert.arguments import Exit
from cloud_sync.convert.cli import main
from edged.bundle.loaded import open_bundle
from tests.support.transformers import CLASSES, images, vit


def convert(folder: Path, *more: str) -> int:
    (folder / "ann.onnx").write_bytes(vit("packed").SerializeToString())
    pixels = (images(40) * 255).astype(np.uint8)
    np.savez(folder / "images.npz", images=pixels, labels=np.arange(40) % CLASSES)
    data = str(folder / "images.npz")
    given = ["--calibrate", data, "--name", "random-vit", "--out", str(folder / "bundle"), "--scale", "1/255"]
    return main([str(folder / "ann.onnx"), *given, "--timesteps", "4", *more])


def test_a_transformer_becomes_a_bundle_that_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(tmp_path, "--levels", "4", "--evaluate", str(tmp_path / "images.npz")) == Exit.WRITTEN
    bundle = open_bundle(tmp_path / "bundle")
    out, err = capsys.readouterr()
    assert out == f"random-vit 1.0.0 {bundle.digest}\n"
    assert "floating point at every step, not spikes: 1 Erf, 1 Mul, 3 Norm, 2 Product, 1 Softmax" in err
    assert "µs" in err
    assert [f"judged T = {steps}" in err for steps in (1, 2, 4, 8, 16)] == [True] * 5
    assert "spikes are of 9 values, -1, -0.5, -0.25, -0.125, 0, 0.125, 0.25, 0.5, 1 of a neuron's largest" in err
    report = json.loads(bundle.read("report.json"))
    assert (report["levels"], report["timesteps"], len(report["alphabet"])) == (4, 4, 9)
    assert report["agreement"] > 0.8
    assert b"What stays floating point" in bundle.read("README.md")


def test_options_of_the_other_converter_do_not_go_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(tmp_path, "--levels", "4", "--exact") == Exit.FAILED
    assert "--levels is for transformers" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_without_levels_the_nodes_of_attention_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(tmp_path) == Exit.REFUSED
    err = capsys.readouterr().err
    assert "Softmax" in err
    assert "--levels 4 converts the whole network" in err
    assert not (tmp_path / "bundle").exists()
