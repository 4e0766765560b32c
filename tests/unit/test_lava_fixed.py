"""Numbers in Loihi's integers: what is representable is kept, what does not fit is refused by node."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edged.bundle.graph.builder import StepBuilder
from edged.engines.worker.lava.affine import Unsupported
from edged.engines.worker.lava.fixed import COARSE, MEMBRANE, WEIGHT_MAX, Fixed, quantise
from edged.engines.worker.lava.network import Gate, Network, read

SIZE = 6
SCALE = 4096.0  # units of the current for 1: weights of 1 need the exponent 5


def network(op: str, weights: Any, constant: Any = 0.0, **parameters: Any) -> Network:
    b = StepBuilder("test")
    offset = b.constant(np.broadcast_to(np.asarray(constant, np.float32), (SIZE,)))
    current = b.node("Gemm", b.input("x", (len(weights),)), b.constant(weights), offset)
    graph = b.build(b.neuron(op, current, (SIZE,), name="cell", **parameters), SIZE)
    return read(graph.model, graph.spec(4))


def integers(op: str, weights: Any, *, scale: float = SCALE, **parameters: Any) -> Fixed:
    made = network(op, np.asarray(weights, np.float32), **parameters)
    return quantise(made, {"cell": scale}, {"x": 255.0})


def incoming(fixed: Fixed) -> Any:
    (link,) = [link for link in fixed.network.links if link.source == "x"]
    return (
        link.weights.toarray() * 2.0**link.exponent * fixed.inputs["x"] / (fixed.potentials["cell"][:, None] / MEMBRANE)
    )


def test_weights_come_back_within_half_a_step_and_fit_8_bits() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 1, (9, SIZE)).astype(np.float32)
    fixed = integers("IF", weights, v_th=1.0, v_sub=1.0)
    for link in fixed.network.links:
        whole = link.weights.toarray()
        assert whole.dtype == np.int32
        assert np.abs(whole).max() <= WEIGHT_MAX
    steps = np.abs(weights).max() / (WEIGHT_MAX / 2)  # the exponent may leave half of the range unused
    assert np.abs(incoming(fixed).T - weights).max() <= steps
    (link,) = [link for link in fixed.network.links if link.source == "x"]
    assert not (link.weights.toarray() % 2).any()  # both signs: the last bit is lost


def test_weights_of_one_sign_keep_their_last_bit() -> None:
    weights = np.random.default_rng(1).uniform(0, 1, (9, SIZE)).astype(np.float32)
    (link,) = [link for link in integers("IF", weights, v_th=1.0, v_sub=1.0).network.links if link.source == "x"]
    assert (link.weights.toarray() % 2).any()


def test_a_constant_current_is_kept_to_15_bits() -> None:
    bias = np.array([1.0, -0.7, 0.3, 0.01, -0.001, 0.0], np.float32)
    fixed = integers("IF", np.eye(SIZE), constant=bias, v_th=1.0, v_sub=1.0)
    gates, exponent = fixed.network.gates["cell"], fixed.network.gate_exponents["cell"]
    assert set(gates) == {Gate(0, 1), Gate(0, COARSE)}
    assert all(np.abs(weights).max() <= WEIGHT_MAX for weights in gates.values())
    total = sum(weights * gate.value for gate, weights in gates.items()) * 2.0**exponent
    np.testing.assert_allclose(total * MEMBRANE / fixed.potentials["cell"], bias, atol=2.0**-13)


def test_a_soft_reset_compares_with_a_bias_for_each_neuron() -> None:
    v_th = np.array([0.5, 1.0, 1.5, 2.0, 0.75, 1.25], np.float32)
    fixed = integers("IF", np.eye(SIZE), v_th=v_th, v_sub=1.0)
    cell = fixed.lifs["cell"]
    assert (cell["vth"], cell["dv"], cell["du"]) == (0, 4095, 0)
    bias = -cell["bias_mant"] * 2.0 ** cell["bias_exp"]
    assert cell["bias_mant"].min() >= -4095
    np.testing.assert_allclose(bias / fixed.potentials["cell"], v_th, rtol=1e-3)


def test_a_hard_reset_scales_its_neurons_to_one_threshold() -> None:
    v_th = np.array([0.5, 1.0, 1.5, 2.0, 0.75, 1.25], np.float32)
    fixed = integers("LIFZ", np.eye(SIZE), v_th=v_th, v_reset=0.0, decay=0.75, bias=0.0)
    cell = fixed.lifs["cell"]
    assert (cell["du"], cell["dv"]) == (4095, 1024)
    np.testing.assert_allclose(cell["vth"] * MEMBRANE / fixed.potentials["cell"], v_th, rtol=1e-6)
    np.testing.assert_allclose(incoming(fixed), np.eye(SIZE), atol=2 / WEIGHT_MAX)


def test_what_a_population_can_have_once_only_is_refused_by_node() -> None:
    decay = np.linspace(0.5, 0.9, SIZE).astype(np.float32)
    with pytest.raises(Unsupported, match=r"node 'cell' \(edged.snn.LIF\): .* different values of decay"):
        integers("LIF", np.eye(SIZE), v_th=1.0, v_sub=1.0, decay=decay, bias=0.0)


def test_thresholds_far_below_the_currents_are_refused_by_node() -> None:
    with pytest.raises(Unsupported, match=r"node 'cell' \(edged.snn.IFZ\): its thresholds lie too far below"):
        integers("IFZ", np.eye(SIZE), scale=0.5, v_th=1.0, v_reset=0.0)
