"""A network as Lava's processes: LIF for populations; Dense, Sparse, DelaySparse and Conv for links.

All are Lava's own. Where Lava computes convolutions with its Conv, populations of images lie there as (x, y, channel),
and its weights are those of a true convolution: flipped. Everywhere else a population is flat, in the graph's order.
Constant currents reach a population as synapses from *gates*, which are 1 exactly while its window lasts: Lava's own
bias would act during the steps in which a population still waits for its first input. Where Lava runs in one thread,
what these synapses would send is handed to the population directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from lava.proc.dense.process import Dense  # type: ignore[import-not-found]  # lives in the worker's environment only
from lava.proc.lif.process import LIF  # type: ignore[import-not-found]  # as above
from lava.proc.sparse.process import DelaySparse, Sparse  # type: ignore[import-not-found]  # as above
from scipy import sparse  # type: ignore[import-untyped]  # ships no types

from edged.engines.worker.lava.affine import Kernel
from edged.engines.worker.lava.network import Gate, Link, Network, Population

DENSE = 0.5  # share of synapses that are there from which a full matrix is faster
GRADED = 8  # bits of a message with a number; without them Lava takes inputs as on or off


class Style(NamedTuple):
    """How links are built. ``convolve``: Lava's Conv where it fits, else one sparse matrix, which is faster on a CPU.

    ``graded``: messages carry numbers everywhere. On a CPU a product with the matrix is faster than picking columns.
    ``gated``: the synapses of the gates are Lava's too.
    """

    convolve: bool
    graded: bool
    gated: bool


IN_THREAD = Style(convolve=False, graded=True, gated=False)
IN_RUNTIME = Style(convolve=True, graded=False, gated=True)


@dataclass(frozen=True)
class Placed:
    """A population in Lava. ``order[k]`` is the place in the graph's order of Lava's flat neuron k."""

    population: Population
    process: Any
    order: Any


@dataclass(frozen=True)
class Synapse:
    """A link in Lava; ``gate`` marks that of a population's constant currents, which has no source but the gates."""

    source: str
    target: str
    process: Any
    extra: int
    gate: bool
    order: Any  # of what it takes in
    buffer: str  # the variable that holds what it sends next

    def fed(self, inputs: Mapping[str, Any], gates: Any) -> Any:
        """What is put into a synapse without a population before it, at each of Lava's steps of a window."""
        if self.gate:
            return gates
        given = inputs[self.source][:, self.order]
        fed = np.zeros((len(gates), given.shape[1]), given.dtype)
        kept = min(len(given), len(gates) - self.extra)
        fed[self.extra : self.extra + kept] = given[:kept]
        return fed.reshape(len(gates), *self.process.s_in.shape)


@dataclass(frozen=True)
class Wired:
    """All of it. ``gates`` says of each gate how deep the populations lie that it reaches."""

    placed: dict[str, Placed]
    synapses: list[Synapse]
    gates: list[tuple[int, Gate]]
    constants: dict[str, Any]  # population → weights (neurons, gates) of its constant currents, in Lava's order
    network: Network

    def gate_values(self, steps: int, length: int) -> Any:
        """(length, gates): what the gates are at each of Lava's steps in a window of ``steps``."""
        at = np.arange(length)[:, None] + 1 - np.array([depth for depth, _ in self.gates])
        open_ = (at >= [gate.first for _, gate in self.gates]) & (at < steps)
        return open_ * np.array([gate.value for _, gate in self.gates])

    def gate_currents(self, name: str, gates: Any) -> Any:
        """What a population receives from the gates at each of Lava's steps (length, size): as its synapses would."""
        sent = gates[:-1] @ self.constants[name].T
        exponent = self.network.gate_exponents.get(name, 0)
        if self.network.gate_exponents:
            sent = sent << exponent if exponent > 0 else sent >> -exponent
        return np.concatenate([np.zeros_like(sent, shape=(1, sent.shape[1])), sent])


def wire(network: Network, lifs: dict[str, dict[str, Any]], style: Style) -> Wired:
    """Make the processes. ``lifs`` are the arguments of each population's LIF."""
    convolved = {link.target for link in network.links if _fits_conv(link, style)}
    convolved |= {link.source for link in network.links if _fits_conv(link, style)}
    placed = {p.name: _place(p, lifs[p.name], p.name in convolved) for p in network.populations}
    synapses = [_link(link, placed, style) for link in network.links]
    gates = sorted({(network.depths[name], gate) for name, currents in network.gates.items() for gate in currents})
    gates = gates or [(1, Gate(0))]
    constants = {}
    for name, place in placed.items():
        fixed = bool(network.gate_exponents)
        weights = np.zeros((place.population.size, len(gates)), np.int32 if fixed else np.float64)
        for gate, current in network.gates[name].items():
            weights[:, gates.index((network.depths[name], gate))] = current
        constants[name] = weights[place.order]
        if style.gated:
            made = _matrix(sparse.csr_matrix(constants[name]), 0, GRADED, network.gate_exponents.get(name, 0))
            _connect(made.a_out, place.process.a_in)
            synapses.append(Synapse("", name, made, 0, True, np.arange(len(gates)), "a_buff"))
    return Wired(placed, synapses, gates, constants, network)


def _fits_conv(link: Link, style: Style) -> bool:
    return style.convolve and link.kernel is not None and link.extra == 0


def _place(population: Population, arguments: dict[str, Any], image: bool) -> Placed:
    shape: tuple[int, ...] = (population.size,)
    order = np.arange(population.size)
    if image and len(population.shape) == 3:
        shape = population.shape[::-1]
        order = order.reshape(population.shape).transpose(2, 1, 0).reshape(-1)
    fitted = {name: _in_order(value, order, shape) for name, value in arguments.items()}
    return Placed(population, LIF(shape=shape, name=population.name, **fitted), order)


def _in_order(value: Any, order: Any, shape: tuple[int, ...]) -> Any:
    return value[order].reshape(shape) if isinstance(value, np.ndarray) else value


def _link(link: Link, placed: dict[str, Placed], style: Style) -> Synapse:
    target, origin = placed[link.target], placed.get(link.source)
    bits = GRADED if style.graded or origin is None else 0
    if link.kernel is not None and _fits_conv(link, style):
        made, order, buffer = _conv(link.kernel, bits), _image_order(link.kernel.input_shape), "a_buf"
    else:
        order = origin.order if origin else np.arange(link.weights.shape[1])
        weights = link.weights.tocsr()[target.order][:, order]
        made, buffer = _matrix(weights, link.extra if origin else 0, bits, link.exponent), "a_buff"
    if origin:
        _connect(origin.process.s_out, made.s_in)
    _connect(made.a_out, target.process.a_in)
    return Synapse(link.source, link.target, made, 0 if origin else link.extra, False, order, buffer)


def _conv(kernel: Kernel, bits: int) -> Any:
    from lava.proc.conv.process import Conv  # type: ignore[import-not-found]  # half a second, for Lava's runtime only

    weight = kernel.weight.astype(np.float64).transpose(0, 3, 2, 1)[:, ::-1, ::-1, :]
    return Conv(
        weight=np.ascontiguousarray(weight), input_shape=kernel.input_shape[::-1], padding=kernel.pads[::-1],
        stride=kernel.strides[::-1], dilation=kernel.dilations[::-1], groups=kernel.groups, num_message_bits=bits,
    )  # fmt: skip


def _image_order(shape: tuple[int, ...]) -> Any:
    return np.arange(int(np.prod(shape))).reshape(shape).transpose(2, 1, 0).reshape(-1)


def _matrix(weights: Any, extra: int, bits: int, exponent: int) -> Any:
    given = {"num_message_bits": bits, "weight_exp": exponent}
    if extra:
        delays = weights.copy().astype(np.int64)
        delays.data[:] = extra
        return DelaySparse(weights=weights, delays=delays, max_delay=extra, **given)
    if weights.nnz >= DENSE * weights.shape[0] * weights.shape[1]:
        return Dense(weights=np.asarray(weights.todense()), **given)
    return Sparse(weights=weights, **given)


def _connect(out: Any, into: Any) -> None:
    (out if out.shape == into.shape else out.reshape(into.shape)).connect(into)
