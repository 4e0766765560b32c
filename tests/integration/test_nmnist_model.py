"""The bundled model ``nmnist``: what it promises, and recordings of an event camera through a whole device.

The recordings are third-party data and no part of the repository: what needs them looks in the folder that
``EDGED_DATA`` names and says so where it is missing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from cloud_sync.convert.errors import ConversionError
from edged.bundle.arrays import decode_npz, encode_npz
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.plans import Form
from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.plans import ensure_plans
from edged.bundle.selftest import prove
from edged.domain import Array, Events
from edged.engines.engine import WorkerEngine, open_engine
from edged.engines.life import Job, WorkerSpec
from edged.sources.events import decode_saccade
from models.nmnist import crossvalidate, data, make
from models.nmnist.network import INPUT, network
from tests.support.broker import Broker, free_port
from tests.support.device import Device, Ledger, wait_until
from tests.support.mutants import mutants
from tests.support.parts import require
from tests.support.recordings import data as third_party
from tests.support.reference import Reference
from tests.support.stock_engine import StockEngine

Floats = NDArray[np.float32]
MOST_BYTES = 1 << 20  # what a demonstration may weigh in a repository
FORMS: tuple[Form, ...] = ("unrolled", "scan")


@cache
def committed() -> Bundle:
    return open_bundle(make.BUNDLE)


@cache
def graph() -> onnx.ModelProto:
    return check_step_graph(committed().read("model.onnx"), committed().spec)


@cache
def recorded() -> tuple[list[Events], data.Labels]:
    """The 50 test recordings and their labels."""
    third_party("nmnist/test/labels.txt")
    return data.recordings("test")


def encoded(recordings: Sequence[Events]) -> Floats:
    """(T, N, 2, 34, 34), as an engine takes a batch."""
    return np.stack([committed().encode(one)["events"] for one in recordings], axis=1)


@cache
def stock(form: Form) -> StockEngine:
    return StockEngine(graph(), committed().spec, form)


def alone(recording: Events) -> Floats:
    """Scores of one recording in a batch of its own."""
    readout = asyncio.run(stock("unrolled").infer({"events": encoded([recording])})).readout
    return np.asarray(readout[0], np.float32)


def cut(recording: Events, start_us: int, stop_us: int) -> Events:
    """The part of a recording between two times since its first event."""
    t_us = recording.t_us - recording.t_us[0]
    inside = (t_us >= start_us) & (t_us < stop_us)
    return Events(recording.x[inside], recording.y[inside], recording.polarity[inside], recording.t_us[inside])


def unlike(recordings: list[Events]) -> list[Events]:
    """Recordings of very different length: whole, long over, cut short, one saccade, one event, none."""
    whole = recordings[0]
    twice = Events(
        x=np.tile(whole.x, 2),
        y=np.tile(whole.y, 2),
        polarity=np.tile(whole.polarity, 2),
        t_us=np.concatenate([whole.t_us, whole.t_us + whole.t_us[-1]]),
    )
    return [
        whole,
        twice,
        cut(recordings[1], 0, 150_000),
        cut(recordings[2], 0, 100_000),
        cut(recordings[3], 0, 20_000),
        replace(whole, **{name: getattr(whole, name)[:1] for name in ("x", "y", "polarity", "t_us")}),
        cut(recordings[4], 0, 0),
        recordings[5],
    ]


def as_file(recording: Events) -> bytes:
    """A recording in the five bytes an event of ``.bin`` and ``.bs2``."""
    t_us = recording.t_us.astype(np.int64)
    columns = [recording.x, recording.y, recording.polarity.astype(np.int64) << 7 | t_us >> 16, t_us >> 8 & 255, t_us]
    return np.stack([np.asarray(column) & 255 for column in columns], axis=1).astype(np.uint8).tobytes()


def test_the_report_promises_95_percent_on_the_test_part_and_97_by_cross_validation() -> None:
    report = json.loads(committed().read("report.json"))
    found = report["cross_validation"]
    assert report["samples"] == 50
    assert report["spiking"]["accuracy"] >= 0.95
    assert found["recordings"] == 1000
    assert found["accuracy"] >= 0.97
    assert found["accuracy"] == pytest.approx(crossvalidate.read().accuracy, abs=1e-6)
    low, high = found["confidence_95"]
    assert low < found["accuracy"] < high
    assert report["spiking"]["synaptic_operations"]["effective_macs"] == 0  # the first layer sees events only


def test_every_class_is_dealt_out_evenly_to_the_folds() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 1000)
    dealt = data.folds(labels)
    table = np.array(
        [[((labels == label) & (dealt == fold)).sum() for fold in range(data.FOLDS)] for label in range(10)]
    )
    assert np.ptp(table, axis=1).max() <= 1
    np.testing.assert_array_equal(data.folds(labels), dealt)


def test_the_confidence_interval_is_wilsons() -> None:
    found = crossvalidate.CrossValidation(folds=(crossvalidate.Fold(recordings=60, right=57),) * 2)
    assert found.accuracy == 0.95
    assert found.interval() == pytest.approx((0.8952, 0.9769), abs=1e-4)


@pytest.mark.parametrize(("factor", "reason"), [(1.01, "not on the grid"), (16.0, "beyond the exact")])
def test_weights_that_engines_would_round_are_refused(tmp_path: Path, factor: float, reason: str) -> None:
    stored = decode_npz(make.WEIGHTS.read_bytes())
    stored["weight0"] = (stored["weight0"] * factor).astype(np.float32)
    (tmp_path / "weights.npz").write_bytes(encode_npz(stored))
    with pytest.raises(ConversionError, match=reason):
        network(tmp_path / "weights.npz")


def test_the_manifest_tells_a_device_all_about_events() -> None:
    entry = committed().manifest.inputs[0]
    assert entry == INPUT
    assert entry.time == "sequence"
    assert committed().manifest.semantics.dt_us == data.STEP_US
    assert committed().timesteps * data.STEP_US == 312_000  # a recording lasts some 306 ms


def test_the_same_graph_comes_out_of_the_weights_again() -> None:
    made = network(make.WEIGHTS)
    again = check_step_graph(made.graph.model, made.graph.spec(data.TIMESTEPS, "sum"))
    assert again.SerializeToString(deterministic=True) == committed().read("model.onnx")


def test_graph_report_and_card_are_made_again_with_the_same_bytes(tmp_path: Path) -> None:
    recorded()
    again = make.make(tmp_path / "bundle")
    for name in ("model.onnx", "report.json", "README.md"):
        assert again.read(name) == committed().read(name), name


@pytest.mark.parametrize("form", FORMS)
def test_stock_onnx_runtime_proves_it_in_steps_and_in_either_window_form(form: Form) -> None:
    report = asyncio.run(prove(stock(form), committed()))
    assert report.passed, report.reason


@pytest.mark.slow
def test_every_planted_defect_fails_the_self_test() -> None:
    planted = list(mutants(graph()))
    engines = ((name, StockEngine(mutant, committed().spec)) for name, mutant in planted)
    survived = [name for name, engine in engines if asyncio.run(prove(engine, committed())).passed]
    assert len(planted) >= 20
    assert survived == []


def test_the_bundle_is_small() -> None:
    assert sum(path.stat().st_size for path in make.BUNDLE.iterdir()) <= MOST_BYTES


@pytest.mark.parametrize("form", FORMS)
def test_recordings_of_any_length_get_in_a_batch_what_they_get_alone(form: Form) -> None:
    given = unlike(recorded()[0])
    together = asyncio.run(stock(form).infer({"events": encoded(given)})).readout
    np.testing.assert_array_equal(together, np.stack([alone(one) for one in given]))
    assert len({tuple(row) for row in together.tolist()}) >= 6  # the control: they are different recordings


def test_the_independent_simulator_gives_the_same_scores_to_the_last_bit() -> None:
    for recording in unlike(recorded()[0])[:4]:
        scores, _ = Reference(graph(), committed().spec).window({"events": encoded([recording])})
        np.testing.assert_array_equal(scores[0], alone(recording))


def test_sources_of_different_age_share_the_steps_of_a_worker(tmp_path: Path) -> None:
    """Streams begin one after the other; each step is one batch of whoever is there, with a state for each."""
    given = unlike(recorded()[0])
    shown, starts = encoded(given), [0, 3, 3, 5, 9, 10, 14, 17]
    expected = np.stack([alone(one) for one in given])

    async def main(*, states_follow: bool) -> Floats:
        plans = await ensure_plans(committed(), tmp_path / "plans")
        job = Job(committed(), 8, plans, tmp_path / "cache")
        async with open_engine(WorkerSpec("onnxruntime", deadline_s=20.0), job) as engine:
            return await stepped(engine, shown, starts, states_follow=states_follow)

    np.testing.assert_array_equal(asyncio.run(main(states_follow=True)), expected)
    # the control: with its neighbour's state a stream comes out otherwise
    assert (asyncio.run(main(states_follow=False)) != expected).any()


async def stepped(engine: WorkerEngine, shown: Floats, starts: list[int], *, states_follow: bool) -> Floats:
    """Summed outputs of each stream (T, N, …), where stream n begins at tick ``starts[n]``."""
    bundle = committed()
    kept = {s.input: np.zeros((len(starts), *s.shape), np.float32) for s in bundle.spec.states}
    total = np.zeros((len(starts), bundle.classes), np.float32)
    for tick in range(max(starts) + bundle.timesteps):
        there = [n for n, start in enumerate(starts) if start <= tick < start + bundle.timesteps]
        if not there:
            continue
        frames: dict[str, Array] = {"events": np.stack([shown[tick - starts[n], n] for n in there])}
        taken = there if states_follow else [there[-1], *there[:-1]]
        outputs, states = await engine.step(frames, {name: kept[name][taken] for name in kept})
        for name in kept:
            kept[name][there] = states[name]
        total[there] += outputs[bundle.output]
    return total


def test_recordings_through_the_spool_of_a_device_get_the_answers_they_get_alone(tmp_path: Path) -> None:
    """All 50 test recordings at once as ``.bs2`` and ``.bin``, so that the device batches them, and odd ones too."""
    require("mosquitto")
    recordings, labels = recorded()
    odd = [one for one in unlike(recordings) if len(one.t_us)]  # a file without events is refused
    stored = sorted((data.folder() / "test").glob("*.bs2"), key=lambda path: int(path.stem))
    files = {f"{path.stem}{('.bs2', '.bin')[n % 2]}": path.read_bytes() for n, path in enumerate(stored)}
    files |= {f"odd{n}.bs2": as_file(one) for n, one in enumerate(odd)}
    files["sample.bin"] = (data.folder().parent / "event_samples" / "sample_nmnist.bin").read_bytes()
    given = dict(zip(files, [*recordings, *odd, decode_saccade(files["sample.bin"])], strict=True))
    port = free_port()
    with Device(tmp_path / "device", port, bundle=make.BUNDLE) as device, Broker(tmp_path / "broker", port=port):
        for name, data_bytes in files.items():  # before the start: the daemon finds all of them at once
            (device.spool / name).write_bytes(data_bytes)
        device.start("daemon")
        device.start("sync")
        device.wait_ready()
        with Ledger(port) as ledger:
            wait_until(lambda: len(ledger.rows) == len(files), 90, device.log("sync"))
        assert ledger.doubled() == []
        answers = {key: json.loads(bytes(rows[0].result)) for key, rows in ledger.rows.items()}
    for name, recording in given.items():
        np.testing.assert_array_equal(np.array(answers[name]["scores"], np.float32), alone(recording), err_msg=name)
    right = sum(int(answers[name]["label"]) == label for name, label in zip(list(files)[:50], labels, strict=True))
    print(f"\n{right} of {len(labels)} recordings of nmnist/test named rightly through the daemon's spool")
    assert right >= 48
