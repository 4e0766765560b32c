"""The committed bundle ``digits``: what it promises, shown with stock ONNX Runtime and made again from ``ann.onnx``."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest
from PIL import Image

from cloud_sync.convert.ann import Ann
from cloud_sync.convert.fold import fold
from cloud_sync.convert.load import load
from cloud_sync.convert.network import Floats
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.plans import window_plan
from edged.bundle.loaded import Bundle, open_bundle
from edged.sources.decode import decode
from models.digits import data, make

MOST_BYTES = 1 << 20  # what a demonstration may weigh in a repository


@cache
def committed() -> Bundle:
    return open_bundle(make.BUNDLE)


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle, made once more from ``ann.onnx``."""
    return make.make(tmp_path_factory.mktemp("digits") / "bundle")


def stepped(bundle: Bundle, samples: Floats) -> Floats:
    """Mean output over the window, step by step, from nothing but the file and stock ONNX Runtime."""
    session = onnxruntime.InferenceSession(bundle.read("model.onnx"), providers=["CPUExecutionProvider"])
    states = {s.input: np.zeros((len(samples), *s.shape), np.float32) for s in bundle.spec.states}
    outputs = [bundle.spec.output, *(s.output for s in bundle.spec.states)]
    total = np.zeros((len(samples), bundle.classes), np.float32)
    for _ in range(bundle.timesteps):
        y, *after = session.run(outputs, {bundle.spec.inputs[0].name: samples, **states})
        states = dict(zip(states, after, strict=True))
        total += y
    return total / np.float32(bundle.timesteps)


@cache
def held_out() -> tuple[Floats, data.Labels]:
    images, labels = data.held_out()
    return np.stack([committed().encode(image)["image"] for image in images]), labels


def test_held_out_accuracy_is_above_98_percent_and_as_reported() -> None:
    samples, labels = held_out()
    right = float((stepped(committed(), samples).argmax(axis=1) == labels).mean())
    report = json.loads(committed().read("report.json"))
    assert right >= 0.98
    assert right == pytest.approx(report["spiking"]["accuracy"], abs=1e-6)
    assert report["samples"] == len(labels) >= 0.2 * 1797
    assert report["ann"]["accuracy"] >= 0.985
    assert [point["timesteps"] for point in report["by_timesteps"]] == [4, 8, 16, 32]


@pytest.mark.parametrize("form", ["unrolled", "scan"])
def test_a_window_plan_gives_the_same_scores_to_the_last_bit(form: str) -> None:
    samples, _ = held_out()
    model = check_step_graph(committed().read("model.onnx"), committed().spec)
    plan = window_plan(model, committed().spec, "unrolled" if form == "unrolled" else "scan")
    session = onnxruntime.InferenceSession(plan.SerializeToString(), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": samples})
    np.testing.assert_array_equal(scores, stepped(committed(), samples))


def test_a_sample_does_not_see_the_others_of_its_batch() -> None:
    samples, _ = held_out()
    together = stepped(committed(), samples[:20])
    alone = np.concatenate([stepped(committed(), samples[k : k + 1]) for k in range(20)])
    np.testing.assert_array_equal(together, alone)


def test_an_array_and_a_png_of_the_same_image_are_the_same_sample() -> None:
    images, _ = data.held_out()
    for image in images[:5]:
        as_npy, as_png = io.BytesIO(), io.BytesIO()
        np.save(as_npy, image)
        Image.fromarray(image).save(as_png, "PNG")
        arrays = [decode("a.npy", as_npy.getvalue()), decode("a.png", as_png.getvalue()), image.astype(np.float64)]
        one, *others = [committed().encode(payload)["image"] for payload in arrays]
        assert one.shape == (1, 8, 8)
        assert 0 < one.max() < 1
        for other in others:
            np.testing.assert_array_equal(one, other)


def same_but_for_golden_data(one: Bundle, other: Bundle) -> None:
    for name in ("model.onnx", "report.json", "README.md"):
        assert one.read(name) == other.read(name), name
    ours, theirs = (
        {name: getattr(bundle.manifest, name) for name in bundle.manifest.__struct_fields__ if name != "files"}
        for bundle in (one, other)
    )
    assert ours == theirs


def test_graph_report_and_card_come_out_of_ann_onnx_with_the_same_bytes(again: Bundle) -> None:
    """Golden data are left out: they record how sums round, and may differ on another machine."""
    same_but_for_golden_data(again, committed())


def test_another_order_of_summation_in_the_ann_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unoptimised kernels add in another order, as another CPU would: activations differ in their last bits."""
    samples, _ = held_out()
    folded = fold(load(make.ANN))
    value = list(folded.relus())[-1].inputs[0]
    before = Ann(folded).values(samples, [value])[0]
    options = onnxruntime.SessionOptions

    def unoptimised() -> Any:
        made = options()
        made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return made

    monkeypatch.setattr(onnxruntime, "SessionOptions", unoptimised)
    assert (Ann(folded).values(samples, [value])[0] != before).any()  # the control: it does add otherwise
    same_but_for_golden_data(make.make(tmp_path / "bundle"), committed())


def test_made_twice_on_one_machine_the_digest_is_the_same(again: Bundle, tmp_path: Path) -> None:
    assert make.make(tmp_path / "bundle").digest == again.digest


def test_the_golden_data_of_this_machine_and_the_committed_ones_have_the_same_form(again: Bundle) -> None:
    with np.load(io.BytesIO(again.read("golden.npz"))) as ours, np.load(make.BUNDLE / "golden.npz") as theirs:
        assert set(ours) == set(theirs)
        assert {name: ours[name].shape for name in ours} == {name: theirs[name].shape for name in theirs}


def test_the_bundle_is_small() -> None:
    assert sum(path.stat().st_size for path in make.BUNDLE.iterdir()) <= MOST_BYTES
