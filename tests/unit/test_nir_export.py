"""Bundles become NIR files that, read again, send the same spikes; what NIR has no place for is refused or said."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cloud_sync.convert.arguments import Exit
from cloud_sync.convert.cli import main
from cloud_sync.convert.errors import RefusedNodesError
from cloud_sync.convert.nir import hdf5
from cloud_sync.convert.nir.exporter import Exported, export
from cloud_sync.convert.nir.file import graph
from cloud_sync.convert.nir.importer import lower
from cloud_sync.convert.nir.semantics import Semantics
from cloud_sync.convert.step import SpikingNetwork
from edged.bundle.graph.builder import StepBuilder, StepGraph
from edged.bundle.loaded import open_bundle
from tests.support.bundles import make_bundle
from tests.support.device import ROOT
from tests.support.nir_files import Net, Rules, Simulator
from tests.support.nir_runs import imported, single, spikes, stepped
from tests.support.random_nir import ANALOGUE, SPIKING, cell, dense_net, spatial_net


def exported(made: StepGraph, comparison: Any = ">=", dt: float = 0.5) -> Exported:
    return export(made.model, made.spec(4), comparison, dt, "the test")


def again(file: Exported, path: Path, semantics: Semantics | None = None) -> SpikingNetwork:
    """The network of the file, through HDF5."""
    hdf5.write(path / "again.nir", file.tree)
    tree: Any = hdf5.read((path / "again.nir").read_bytes())
    return lower(graph(tree["node"]), semantics or file.semantics)


@settings(
    max_examples=40, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    seed=st.integers(0, 10**6),
    spatial=st.booleans(),
    dt=st.sampled_from([1e-3, 0.5, 1.0]),
    rules=st.builds(
        Rules,
        reset=st.sampled_from(["subtract", "zero", "value"]),
        comparison=st.sampled_from([">", ">="]),
        exponential=st.booleans(),
    ),
)
def test_random_networks_survive_import_export_and_import(
    tmp_path_factory: pytest.TempPathFactory, seed: int, spatial: bool, dt: float, rules: Rules
) -> None:
    """The second time with another step, and by Euler's method whatever the first was: the file's τ make up for it."""
    rng, path = np.random.default_rng(seed), tmp_path_factory.mktemp("net")
    net: Net = (spatial_net if spatial else dense_net)(rng, rules)
    inputs = spikes(rng, tuple(net.nodes["in"]["shape"]))
    simulator = Simulator(net, rules)
    simulator.run(inputs)
    assume(simulator.margin > 1e-4)
    first = imported(net, rules, path)
    second = again(exported(first.graph, rules.comparison, dt), path)
    np.testing.assert_allclose(stepped(second, inputs), stepped(first, inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [*SPIKING, *ANALOGUE])
@pytest.mark.parametrize("dt", [1.0, 1e-3, 0.3])
def test_what_is_read_again_has_the_same_parameters_to_the_last_bit(kind: str, dt: float, tmp_path: Path) -> None:
    for seed in range(5):
        rules = Rules(dt=0.7, reset="subtract", exponential=True)
        first = imported(single(cell(np.random.default_rng(seed), kind, (40,), rules), 40), rules, tmp_path).graph
        second = again(exported(first, ">", dt), tmp_path).graph
        ours, theirs = (sorted(tensor.raw_data for tensor in made.model.graph.initializer) for made in (first, second))
        assert ours == theirs
        assert max(map(len, ours)) == 160  # a number for each neuron


@pytest.mark.parametrize("kind", ["dense", "sequence"])
def test_a_bundle_goes_out_and_comes_back_by_the_options_that_it_names(
    kind: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "one", kind=kind)
    file, back = tmp_path / "net.nir", tmp_path / "two"
    assert main([str(bundle.path), "--to", "nir", "--out", str(file), "--dt", "0.001"]) == Exit.WRITTEN
    out, err = capsys.readouterr()
    assert "not in the file: the number of steps, the readout and the labels" in err
    options = shlex.split(out.splitlines()[-1])
    entry = "constant" if kind == "dense" else "sequence"
    given = ["--name", "two", "--timesteps", "4", "--input", entry, "--out", str(back)]
    assert main([str(file), *given, *options]) == Exit.WRITTEN


def test_the_bundled_digits_come_back_with_the_same_scores(tmp_path: Path) -> None:
    bundle = open_bundle(ROOT / "models" / "digits" / "bundle")
    model = onnx.load_from_string(bundle.read("model.onnx"))
    second = again(export(model, bundle.spec, ">=", 1.0, "digits"), tmp_path)
    assert second.graph.states
    inputs = np.repeat(np.random.default_rng(0).random((1, 1, 8, 8)).astype(np.float32), bundle.timesteps, axis=0)
    first = StepGraph(model, bundle.spec.inputs, bundle.spec.states, bundle.output, bundle.classes)
    one = stepped(SpikingNetwork(first, (), ()), inputs)
    np.testing.assert_allclose(stepped(second, inputs), one, atol=1e-5)
    assert len(np.unique(one)) > 20
    wrong = again(export(model, bundle.spec, ">=", 1.0, "digits"), tmp_path, Semantics(1.0, "subtract", ">="))
    assert np.abs(stepped(wrong, inputs) - one).max() > 0.1  # the control: without --start half it is another network


def refused(builder: StepBuilder, y: str, size: int) -> list[str]:
    with pytest.raises(RefusedNodesError) as error:
        exported(builder.build(y, size))
    return [str(refusal) for refusal in error.value.refusals]


def test_what_nir_has_no_node_for_is_named_all_at_once() -> None:
    b = StepBuilder()
    x = b.input("x", (4,), sequence=True)
    signed = b.neuron("SignedIF", x, (4,), name="signed", v_th=1.0, v_sub=1.0)
    grown = b.neuron("Difference", signed, (4,), name="grown")
    shifted = b.node("Add", grown, b.constant(np.ones((1, 4))), name="shifted")
    told = refused(b, b.node("Softmax", shifted, name="soft", axis=1), 4)
    assert [line.split(":")[0] for line in told] == ["SignedIF 'signed'", "Difference 'grown'", "Softmax 'soft'"]


def test_an_added_constant_a_product_and_a_maximum_are_refused() -> None:
    for op, reason in (("Add", "belongs into a bias"), ("Max", "no such node"), ("Mul", "no such node")):
        b = StepBuilder()
        x = b.input("x", (4,))
        y = b.neuron("IF", x, (4,), v_th=1.0, v_sub=1.0)
        other = b.constant(np.ones((1, 4))) if op == "Add" else y
        assert reason in refused(b, b.node(op, y, other, name="odd"), 4)[0]


def test_neurons_that_need_different_readers_are_refused() -> None:
    b = StepBuilder()
    soft = b.neuron("IF", b.input("x", (4,)), (4,), name="soft", v_th=1.0, v_sub=1.0)
    hard = b.neuron("IFZ", soft, (4,), name="hard", v_th=1.0, v_reset=0.0)
    assert "readers of NIR take one for all" in refused(b, hard, 4)[0]
    b = StepBuilder()
    odd = b.neuron("IF", b.input("x", (4,)), (4,), name="odd", v_th=1.0, v_sub=0.7)
    assert "NIR knows one number for both" in refused(b, odd, 4)[0]


def test_a_value_that_is_added_to_itself_counts_twice(tmp_path: Path) -> None:
    b = StepBuilder()
    x = b.input("x", (3,), sequence=True)
    y = b.neuron("LI", b.node("Add", x, x), (3,), decay=0.5, bias=0.25)
    made = b.build(b.node("Add", y, y), 3)
    inputs = np.random.default_rng(0).random((6, 3)).astype(np.float32)
    found = stepped(again(exported(made), tmp_path), inputs)
    np.testing.assert_allclose(found, stepped(SpikingNetwork(made, (), ()), inputs), rtol=1e-6)


def test_nothing_is_overwritten_and_a_file_that_cannot_be_written_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "one")
    (tmp_path / "net.nir").write_text("mine")
    for out, reason in (("net.nir", "exists"), ("nowhere/net.nir", "cannot be written")):
        assert main([str(bundle.path), "--to", "nir", "--out", str(tmp_path / out)]) == Exit.FAILED
        assert reason in capsys.readouterr().err
    assert main([str(bundle.path), "--to", "nir", "--out", str(tmp_path / "b.nir"), "--dt", "0"]) == Exit.FAILED
    assert (tmp_path / "net.nir").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.nir", "one"]
