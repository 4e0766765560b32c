"""The CNN of ``models/mnist``: how near the converter comes to it on MNIST's test images, which nothing has seen.

The images are third-party data and no part of the repository: what needs them looks in the folder that ``EDGED_DATA``
names and says so where it is missing.
"""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest

from cloud_sync.convert.network import Floats
from cloud_sync.convert.report import Report
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.plans import Form
from edged.bundle.loaded import Bundle
from edged.bundle.selftest import prove
from models.mnist import data, make
from tests.support.recordings import data as third_party
from tests.support.stock_engine import StockEngine

FORMS: tuple[Form, ...] = ("unrolled", "scan")
SHOWN = 1000  # images in a quick test, of which one is a tenth of a point
NEARLY_TIED = 3e-4  # three of 10,000 images may fall to the other side where sums round otherwise


@cache
def report() -> Report:
    """What ``make`` found on all 10,000 test images."""
    return msgspec.json.decode(make.REPORT.read_bytes(), type=Report)


def accuracies(found: Report) -> dict[int, float]:
    return {point.timesteps: point.accuracy or 0.0 for point in found.by_timesteps}


@cache
def shown() -> tuple[Floats, data.Labels]:
    """The first test images of the fixed shuffle."""
    third_party("mnist/mnist_test.npz")
    return make.encoded(data.test(SHOWN))


def right(scores: Floats) -> float:
    return float((scores.argmax(axis=1) == shown()[1]).mean())


def test_the_report_promises_half_a_point_at_8_steps_and_a_fifth_at_32() -> None:
    points, ann = accuracies(report()), report().ann.accuracy
    assert report().samples == 10_000
    assert ann is not None
    assert ann >= 0.99
    assert sorted(points) == [4, 8, 16, 32]
    assert points[8] >= ann - 0.005
    assert points[32] >= ann - 0.002
    assert (report().alphabet, report().firing, report().bias_correction) == ((0, 1), None, False)  # the default


def test_the_ann_is_what_people_bring() -> None:
    """BatchNorm and max pooling are in the file as PyTorch exported it: nothing was prepared for the converter."""
    ops = {node.op_type for node in onnx.load(make.ANN).graph.node}
    assert {"BatchNormalization", "MaxPool"} <= ops


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle, judged on a few images only."""
    shown()
    return make.make(tmp_path_factory.mktemp("mnist") / "bundle", 100, (make.TIMESTEPS,))


def engine(bundle: Bundle, form: Form) -> StockEngine:
    return StockEngine(check_step_graph(bundle.read("model.onnx"), bundle.spec), bundle.spec, form)


def test_8_steps_keep_to_the_ann_on_images_that_neither_has_seen(small: Bundle) -> None:
    samples, _ = shown()
    session = onnxruntime.InferenceSession(make.ANN, providers=["CPUExecutionProvider"])
    ann = right(np.concatenate([session.run(None, {"image": image[np.newaxis]})[0] for image in samples]))
    scan = engine(small, "scan")
    parts = [asyncio.run(scan.infer({"image": samples[k : k + 100]})).readout for k in range(0, SHOWN, 100)]
    spiking = right(np.concatenate(parts))
    print(f"\n{SHOWN} test images of MNIST: ANN {ann:.4f}, spiking at T = {small.timesteps} {spiking:.4f}")
    assert small.timesteps == 8
    assert ann == pytest.approx(report().ann.accuracy, abs=0.01)
    assert spiking >= ann - 0.005


@pytest.mark.parametrize("form", FORMS)
def test_stock_onnx_runtime_proves_the_bundle_in_either_window_form(small: Bundle, form: Form) -> None:
    found = asyncio.run(prove(engine(small, form), small))
    assert found.passed, found.reason


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 10,000 images at each of four T
def test_the_same_report_comes_out_of_ann_onnx_again(tmp_path: Path) -> None:
    shown()
    again = msgspec.json.decode(make.make(tmp_path / "bundle").read("report.json"), type=Report)
    assert again.ann.accuracy == pytest.approx(report().ann.accuracy, abs=NEARLY_TIED)
    assert accuracies(again) == pytest.approx(accuracies(report()), abs=NEARLY_TIED)
