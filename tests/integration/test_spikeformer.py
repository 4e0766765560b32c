"""The committed bundle ``spikeformer-digits``: what it promises, with stock ONNX Runtime and through a whole device."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.plans import Form, window_plan
from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.selftest import SelftestReport, prove
from edged.domain import Array
from edged.ports import Engine, Inference
from models.digits import data
from models.spikeformer_digits import make
from tests.support.broker import Broker, free_port
from tests.support.device import Device, Ledger, wait_until
from tests.support.mutants import mutants
from tests.support.parts import require
from tests.support.reference import Reference
from tests.support.stock_engine import StockEngine

Floats = NDArray[np.float32]
MOST_BYTES = 1 << 20  # what a demonstration may weigh in a repository
FORMS: tuple[Form, ...] = ("unrolled", "scan")
FREE_OF_TIES = "> for >="  # a current that engines round differently never meets a threshold exactly


@cache
def committed() -> Bundle:
    return open_bundle(make.BUNDLE)


@cache
def graph() -> onnx.ModelProto:
    return check_step_graph(committed().read("model.onnx"), committed().spec)


@cache
def held_out() -> tuple[Floats, data.Labels]:
    images, labels = data.held_out()
    return np.stack([committed().encode(image)["image"] for image in images]), labels


def run(model: bytes, samples: Floats) -> Floats:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": samples})
    return np.asarray(scores)


@cache
def planned(form: Form) -> Floats:
    return run(window_plan(graph(), committed().spec, form).SerializeToString(), held_out()[0])


def right(scores: Floats) -> float:
    return float((scores.argmax(axis=1) == held_out()[1]).mean())


def proved(engine: Engine) -> SelftestReport:
    return asyncio.run(prove(engine, committed()))


class NumpyEngine:
    """A correct engine with another order of sums, and other forms of LayerNorm and Softmax."""

    def __init__(self) -> None:
        self.name = "numpy"
        self.max_batch = 3
        self.reference = Reference(graph(), committed().spec, wide=True)

    async def infer(self, inputs: Mapping[str, Array]) -> Inference:
        return Inference(self.reference.window(inputs)[0], 1)

    async def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        output, new = self.reference.step(inputs, states)
        return {committed().spec.output: output}, new


@pytest.mark.parametrize("form", FORMS)
def test_four_steps_are_within_a_point_of_the_ann_on_images_that_nothing_has_seen(form: Form) -> None:
    samples, labels = held_out()
    images = [image[np.newaxis] for image in samples]
    ann = right(np.concatenate([run_one(image) for image in images]))
    report = json.loads(committed().read("report.json"))
    assert committed().timesteps == 4
    assert ann >= 0.985
    assert right(planned(form)) >= ann - 0.01
    assert right(planned(form)) == pytest.approx(report["spiking"]["accuracy"], abs=1.5 / len(labels))
    assert report["ann"]["accuracy"] == pytest.approx(ann, abs=1e-6)
    assert report["samples"] == len(labels) >= 0.2 * 1797


@cache
def ann_session() -> Any:
    return onnxruntime.InferenceSession(make.ANN, providers=["CPUExecutionProvider"])


def run_one(image: Floats) -> Floats:
    """The exported ANN takes one image at a time."""
    (scores,) = ann_session().run(None, {"image": image})
    return np.asarray(scores)


def test_more_steps_come_nearer_to_the_ann() -> None:
    report = json.loads(committed().read("report.json"))
    agreement = {point["timesteps"]: point["agreement"] for point in report["by_timesteps"]}
    assert sorted(agreement) == [1, 2, 4, 8, 16]
    assert agreement[1] < agreement[2] < agreement[16]
    assert agreement[16] >= 0.99


def test_the_report_says_alphabet_and_what_no_neuron_does() -> None:
    report = json.loads(committed().read("report.json"))
    assert report["alphabet"] == [-1.0, -0.5, -0.25, -0.125, 0.0, 0.125, 0.25, 0.5, 1.0]
    host = {entry["operation"]: entry for entry in report["host"]}
    ops = [node.op_type for node in onnx.load(make.ANN).graph.node]
    assert host["Norm"]["nodes"] == ops.count("LayerNormalization") == 5
    assert host["Softmax"]["nodes"] == ops.count("Softmax") == 2
    assert host["Product"]["macs"] > 0
    card = committed().read("README.md").decode()
    assert "Loihi" in card
    assert "Softmax" in card


@pytest.mark.parametrize("form", FORMS)
def test_stock_onnx_runtime_proves_it_in_steps_and_in_either_window_form(form: Form) -> None:
    report = proved(StockEngine(graph(), committed().spec, form))
    assert report.passed, report.reason


def test_an_engine_that_sums_otherwise_proves_it_too() -> None:
    report = proved(NumpyEngine())
    assert report.passed, report.reason
    assert "largest error 0 " not in report.checks[0].detail  # the control: it did round otherwise


@pytest.mark.slow
def test_every_planted_defect_but_ties_fails_the_self_test() -> None:
    survived = [name for name, mutant in mutants(graph()) if proved(StockEngine(mutant, committed().spec)).passed]
    assert [name for name in survived if FREE_OF_TIES not in name] == []
    assert len(survived) < 0.3 * sum(1 for _ in mutants(graph()))


@pytest.mark.slow
def test_the_same_graph_comes_out_of_ann_onnx_again(tmp_path: Path) -> None:
    """Up to what another processor rounds: a level by one of its eight bits, a sample whose scores nearly tie."""
    again = make.make(tmp_path / "bundle")
    ours, theirs = (onnx.load_model_from_string(bundle.read("model.onnx")).graph for bundle in (again, committed()))
    assert ours.node == theirs.node
    assert (ours.input, ours.output) == (theirs.input, theirs.output)
    for one, other in zip(ours.initializer, theirs.initializer, strict=True):
        assert one.name == other.name
        np.testing.assert_allclose(
            numpy_helper.to_array(one), numpy_helper.to_array(other), rtol=2**-7, err_msg=one.name
        )
    one, other = (bundle.manifest for bundle in (again, committed()))
    unlike = {"files", "variants"}  # digests
    fields = [name for name in one.__struct_fields__ if name not in unlike]
    assert {name: getattr(one, name) for name in fields} == {name: getattr(other, name) for name in fields}
    accuracies = [json.loads(bundle.read("report.json"))["spiking"]["accuracy"] for bundle in (again, committed())]
    assert abs(accuracies[0] - accuracies[1]) <= 2.5 / len(held_out()[1])


def test_the_bundle_is_small() -> None:
    assert sum(path.stat().st_size for path in make.BUNDLE.iterdir()) <= MOST_BYTES


def test_through_a_device_every_held_out_image_gets_the_answer_of_the_window_plan(tmp_path: Path) -> None:
    require("mosquitto")
    images, labels = data.held_out()
    port = free_port()
    with Device(tmp_path / "device", port, bundle=make.BUNDLE) as device, Broker(tmp_path / "broker", port=port):
        device.start("daemon")
        device.start("sync")
        device.wait_ready()
        with Ledger(port) as ledger:
            for number, image in enumerate(images):
                device.put(f"{number:04d}.npy", image)
            wait_until(lambda: len(ledger.rows) == len(images), 90, device.log("sync"))
        assert ledger.doubled() == []
        answers = {
            int(key.removesuffix(".npy")): json.loads(bytes(rows[0].result)) for key, rows in ledger.rows.items()
        }
    told = np.array([int(answers[number]["label"]) for number in range(len(images))])
    accuracy = float((told == labels).mean())
    print(f"\n{len(images)} held-out digits through the daemon: accuracy {accuracy:.4f}")
    assert accuracy == pytest.approx(right(planned("unrolled")), abs=1e-9)
    np.testing.assert_array_equal(told, planned("unrolled").argmax(axis=1))
