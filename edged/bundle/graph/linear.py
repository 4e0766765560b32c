"""What lies between the neurons of a step graph, as weights: found by asking the graph itself, in float64.

A chip has neurons and synapses, nothing between them. Every source (an input, or what a spiking cell emits) is shown to
the graph one number at a time, and what reaches the cells is noted, step by step as long as delays and plain states
hand it on. Afterwards the weights are held to the graph with random numbers: what is not linear shows, and is refused.

Evaluates with ONNX's own reference in float64, so that weights that several nodes make together are rounded nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edged.bundle.graph.builder import assemble
from edged.bundle.graph.cells import Cell
from edged.bundle.graph.neurons import DOMAIN
from edged.bundle.graph.spec import BATCH, GraphSpec
from edged.errors import BundleError

Floats = NDArray[Any]

SHOWN = 64  # numbers of a source at a time: a convolution's patches of so many fit in a cache
MAX_LAG = 62  # steps that a chip's synapse holds a spike back, beside its own
MAX_PROBES = 1 << 16  # numbers of all sources: about a minute
MAX_SYNAPSES = 1 << 24  # 256 MiB as a list; more than a chip has
CLOSE = 1e-9  # relative: float64 leaves six more digits


class NotLinear(BundleError):
    """What lies between the neurons is no set of synapses."""


@dataclass(frozen=True)
class Synapses:
    """Weights from one source to one cell's current, ``lag`` steps later: of place ``columns`` to place ``rows``."""

    source: str
    lag: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    weights: Floats

    def reach(self, value: Floats, size: int) -> Floats:
        """What arrives, (size,), when the source holds ``value``, flat."""
        return np.bincount(self.rows, self.weights * value[self.columns], minlength=size)


@dataclass(frozen=True)
class Current:
    """All that reaches a cell: synapses, and a constant (steps, size) for each of the first steps."""

    synapses: tuple[Synapses, ...]
    constant: Floats


class Cut:
    """A step graph without its spiking cells: what they emit is given, what would reach them is asked for.

    Other neurons (delays, integrators) and plain states are part of it: ``states`` maps the states' inputs to outputs.
    """

    def __init__(self, model: onnx.ModelProto, spec: GraphSpec, spiking: Sequence[Cell]) -> None:
        own = {state.input for cell in spiking for state in cell.states.values()}
        emissions = {cell.emission for cell in spiking}
        self.nodes = [n for n in model.graph.node if not (n.domain == DOMAIN and n.output[0] in emissions)]
        self.constants = {t.name: _wide(numpy_helper.to_array(t)) for t in model.graph.initializer}
        self.sources = {entry.name: entry.shape for entry in spec.inputs}
        self.sources |= {cell.emission: cell.shape for cell in spiking}
        self.targets = {cell.current: cell.shape for cell in spiking}
        plain = [state for state in spec.states if state.input not in own]
        self.states = {state.input: state.output for state in plain}
        self.shapes = self.sources | {state.input: state.shape for state in plain}
        self.output = spec.output

    def part(self, sources: Iterable[str], wanted: Iterable[str]) -> Part:
        """The part of it by which some sources reach some of the wanted tensors, now or later."""
        live = set(sources)
        while True:
            before = len(live)
            for node in self.nodes:
                if live.intersection(node.input):
                    live.update(node.output)
            live.update(state for state, output in self.states.items() if output in live)
            if len(live) == before:
                break
        states = {state: output for state, output in self.states.items() if state in live and output in live}
        return Part(self, [name for name in wanted if name in live], states)

    def all(self) -> Part:
        """From everything to the output, with all states."""
        return Part(self, [self.output, *self.targets], self.states)


class Part:
    """Some outputs of a cut graph, in float64."""

    def __init__(self, cut: Cut, wanted: Sequence[str], states: Mapping[str, str]) -> None:
        self.wanted = list(dict.fromkeys(wanted))
        self.states = dict(states)
        asked = list(dict.fromkeys([*self.wanted, *self.states.values()]))
        nodes, needed = [], set(asked)
        for node in reversed(cut.nodes):
            if needed.intersection(node.output):
                nodes.append(node)
                needed.update(node.input)
        self.given = {name: shape for name, shape in cut.shapes.items() if name in needed}
        outputs = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in asked]
        inputs = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, [BATCH, *s]) for n, s in self.given.items()]
        kept = [numpy_helper.from_array(value, name) for name, value in cut.constants.items() if name in needed]
        graph = helper.make_graph(nodes[::-1], "part", inputs, outputs, kept)
        self._asked = asked
        self._evaluator = ReferenceEvaluator(assemble(graph))

    def zero(self, rows: int) -> dict[str, Floats]:
        """Its states at the start of a window."""
        return {name: np.zeros((rows, *self.given[name])) for name in self.states if name in self.given}

    def run(self, given: Mapping[str, Floats], states: Mapping[str, Floats]) -> tuple[dict[str, Floats], Any]:
        """The wanted tensors of one step and the states after it. Sources that are not given are zero."""
        rows = len(next(iter([*given.values(), *states.values()])))
        feeds = {name: np.zeros((rows, *shape)) for name, shape in self.given.items()}
        feeds |= {name: _wide(value) for name, value in {**given, **states}.items() if name in feeds}
        found = dict(zip(self._asked, self._evaluator.run(self._asked, feeds), strict=True))
        after = {name: found[output] for name, output in self.states.items()}
        return {name: found[name] for name in self.wanted}, after


def currents(cut: Cut, steps: int) -> dict[str, Current]:
    """What reaches each cell, by the name of its current, in a window of ``steps``. Raises NotLinear."""
    numbers = sum(int(np.prod(shape)) for shape in cut.sources.values())
    if numbers > MAX_PROBES:
        raise NotLinear(f"it has {numbers} inputs and neurons; at most {MAX_PROBES} are looked at one by one")
    whole = cut.all()
    _superpose(whole, cut, steps)
    found: dict[str, list[Synapses]] = {name: [] for name in cut.targets}
    for source in cut.sources:
        for target, synapses in _from(cut, source, steps):
            found[target].append(synapses)
    if sum(len(one.rows) for many in found.values() for one in many) > MAX_SYNAPSES:
        raise NotLinear(f"it has more than {MAX_SYNAPSES} synapses")
    constants = _constants(whole, cut, steps)
    made = {name: Current(tuple(found[name]), constants[name]) for name in cut.targets}
    _hold(whole, cut, made, steps)
    return made


def _superpose(whole: Part, cut: Cut, steps: int) -> None:
    """Two random frames together and each alone: refuses in a second what a look at every number would in minutes.

    Raises NotLinear.
    """
    random = np.random.default_rng(1)
    states = whole.zero(4)
    for _ in range(min(steps, 2)):
        shown = {}
        for name, shape in cut.sources.items():
            one, other = random.integers(-3, 4, (2, *shape)).astype(np.float64)
            shown[name] = np.stack([one + other, np.zeros(shape), one, other])
        seen, states = whole.run(shown, states)
        for name in cut.targets:
            both, none, one, other = seen[name]
            bound = sum(np.abs(value) for value in (both, none, one, other)) + 1.0
            if not (np.abs(both + none - one - other) <= CLOSE * bound).all():
                raise NotLinear(f"what reaches {name!r} is no weighted sum of spikes and inputs")


def _from(cut: Cut, source: str, steps: int) -> Iterator[tuple[str, Synapses]]:
    """The synapses of one source, by what they lead to."""
    part = cut.part([source], cut.targets)
    if not part.wanted:
        return
    size = int(np.prod(cut.sources[source]))
    parts: dict[tuple[str, int], list[tuple[Floats, Floats, Floats]]] = {}
    for start in range(0, size, SHOWN):
        shown = min(SHOWN, size - start)
        value = np.zeros((shown + 1, size))  # the first row is silent: what it shows is no weight
        value[np.arange(1, shown + 1), np.arange(start, start + shown)] = 1.0
        given, states = {source: value.reshape(-1, *cut.sources[source])}, part.zero(shown + 1)
        for lag in range(steps):
            seen, states = part.run(given, states)
            for target, values in seen.items():
                weights = (values[1:] - values[:1]).reshape(shown, -1)
                column, row = np.nonzero(weights)
                if len(row):
                    parts.setdefault((target, lag), []).append((row, column + start, weights[column, row]))
            if not any((state != state[:1]).any() for state in states.values()):
                break
            if lag == MAX_LAG:
                raise NotLinear(f"what {source!r} sends is remembered for more than {MAX_LAG} steps")
            given = {}
    for (target, lag), many in parts.items():
        row, column, weight = (np.concatenate([one[k] for one in many]) for k in range(3))
        order = np.lexsort((column, row))
        yield target, Synapses(source, lag, row[order], column[order], weight[order])


def _constants(whole: Part, cut: Cut, steps: int) -> dict[str, Floats]:
    """What reaches each cell at each step when all sources are silent."""
    states, rows = whole.zero(1), []
    silent = {name: np.zeros((1, *shape)) for name, shape in cut.sources.items()}
    for _ in range(steps):
        seen, states = whole.run(silent, states)
        rows.append(seen)
    return {name: np.stack([row[name].reshape(-1) for row in rows]) for name in cut.targets}


def _hold(whole: Part, cut: Cut, made: Mapping[str, Current], steps: int) -> None:
    """Compare with the graph: random numbers for a few steps. Raises NotLinear."""
    random = np.random.default_rng(0)
    history: list[dict[str, Floats]] = []
    states = whole.zero(1)
    for t in range(min(steps, 4)):
        shown = {name: random.integers(-3, 4, (1, *shape)).astype(np.float64) for name, shape in cut.sources.items()}
        seen, states = whole.run(shown, states)
        history.append({name: value.reshape(-1) for name, value in shown.items()})
        for name, current in made.items():
            wanted = seen[name].reshape(-1)
            total, size = current.constant[t].copy(), current.constant.shape[1]
            bound = np.abs(total) + 1.0
            for one in current.synapses:
                if one.lag <= t:
                    value = history[t - one.lag][one.source]
                    total += one.reach(value, size)
                    bound += np.bincount(one.rows, np.abs(one.weights * value[one.columns]), minlength=size)
            if not (np.abs(total - wanted) <= CLOSE * bound).all():
                raise NotLinear(f"what reaches {name!r} is no weighted sum of spikes and inputs")


def _wide(value: Floats) -> Floats:
    return value.astype(np.float64) if value.dtype.kind == "f" or value.dtype == np.uint8 else value
