"""``python -m tests.bench.bench_lava FOLDER``, on Lava's interpreter: time one step of the case below a folder.

Prints one line of JSON, microseconds a step, medians of rounds in which they take turns:

- ``numpy``: the arithmetic of the same network in NumPy, each of Lava's equations and synapses, in float64
- ``lean``: the model as somebody would write it by hand in NumPy: float32, one state a neuron, no delays
- ``cpu``: Lava in one thread; ``sim``: in its own runtime
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edged.bundle.graph.spec import GraphSpec
from edged.engines.worker.lava import cpu, sim
from edged.engines.worker.lava.model import LavaModel
from edged.engines.worker.lava.network import Network, Population, read
from edged.engines.worker.lava.neurons import lif
from edged.engines.worker.lava.spec import read_graph, read_spec

ROUNDS = 41  # of each, in turn: the machine may be busy
ROUNDS_S = 2.0  # after which no further round begins, once there were ROUNDS_MIN
ROUNDS_MIN = 5
STEPS = 20  # of NumPy in a round
DENSE = 0.5  # as the worker chooses between full and sparse matrices


def main(folder: Path) -> None:
    """Time a case."""
    (place,) = [path for path in folder.iterdir() if path.is_dir()]
    spec = read_spec(place)
    network = read(read_graph(place), spec)
    with np.load(place / "inputs.npz") as inputs:
        (samples,) = (inputs[name] for name in inputs.files)
    x = samples[0].reshape(spec.timesteps if spec.inputs[0].sequence else 1, -1)
    taken = spec.timesteps + network.depth
    by_hands = [by_hand(network, x[0], dense=dense) for dense in (True, False)]
    quicker = min(by_hands, key=lambda work: medians({"": work})[""])
    models = {engine: module.make(network, spec, place) for engine, module in (("cpu", cpu), ("sim", sim))}
    steps = {"numpy": STEPS, "lean": STEPS, "cpu": taken, "sim": taken}
    works = {"numpy": equations(network, x[0]), "lean": quicker}
    works |= {engine: stepping(model, spec, x) for engine, model in models.items()}
    us = {where: seconds / steps[where] * 1e6 for where, seconds in medians(works).items()}
    for model in models.values():
        model.close()
    print(json.dumps(us))


def medians(works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each work, the median of rounds in which all take turns, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    end = time.perf_counter() + ROUNDS_S
    for number in range(ROUNDS):
        if number >= ROUNDS_MIN and time.perf_counter() > end:
            break
        for name, work in works.items():
            began = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in times.items()}


def stepping(model: LavaModel, spec: GraphSpec, x: Any) -> Callable[[], object]:
    """The steps of one window, without its reset and its readout."""
    steps, taken = spec.timesteps, spec.timesteps + model._network.depth
    values = {spec.inputs[0].name: np.broadcast_to(x.astype(np.float64), (steps, x.shape[1]))}
    gates = model._wired.gate_values(steps, taken)
    return lambda: model._runner.run(values, gates, 0, taken)


def equations(network: Network, x: Any) -> Callable[[], object]:
    """Lava's own equations, synapse by synapse, as a loop over arrays."""
    into: dict[str, list[tuple[str, Any]]] = {p.name: [] for p in network.populations}
    for link in network.links:
        full = link.weights.nnz >= DENSE * link.weights.shape[0] * link.weights.shape[1]
        into[link.target].append((link.source, np.asarray(link.weights.todense()) if full else link.weights))
    gates = {name: sum(currents.values()) for name, currents in network.gates.items()}
    settings = {p.name: lif(p) for p in network.populations}
    (source,) = (name for name, depth in network.depths.items() if depth == 0)
    shown = x.astype(np.float64)

    def work() -> None:
        u = {p.name: np.zeros(p.size) for p in network.populations}
        v = {p.name: np.zeros(p.size) for p in network.populations}
        sent = {p.name: np.zeros(p.size) for p in network.populations}
        sent[source] = shown
        waiting = {name: [matrix @ sent[origin] for origin, matrix in links] for name, links in into.items()}
        for _ in range(STEPS):
            for population in network.populations:
                name = population.name
                du, dv, vth = settings[name]
                u[name] = u[name] * (1 - du)
                u[name] += sum(waiting[name], gates[name])
                v[name] = v[name] * (1 - dv) + u[name]
                fired = v[name] > vth
                v[name][fired] = 0
                sent[name] = fired.astype(np.float64)
            waiting = {name: [matrix @ sent[origin] for origin, matrix in links] for name, links in into.items()}

    return work


def by_hand(network: Network, x: Any, *, dense: bool) -> Callable[[], object]:
    """The model itself: what a neuron is given in a step it answers in the same step."""
    (source,) = (name for name, depth in network.depths.items() if depth == 0)
    currents = {p.name: network.currents[p.name] for p in network.populations}
    links = {
        name: [(key, np.asarray(m.todense(), np.float32) if dense else m.tocsr().astype(np.float32))
               for key, m in current.terms.items()]
        for name, current in currents.items()
    }  # fmt: skip
    shown = x.astype(np.float32)

    def work() -> None:
        v = {p.name: np.zeros(p.size, np.float32) for p in network.populations}
        before: dict[str, Any] = {p.name: np.zeros(p.size, np.float32) for p in network.populations}
        for _ in range(STEPS):
            now = {source: shown}
            for population in network.populations:
                name = population.name
                current = currents[name].constant
                for key, matrix in links[name]:
                    current = current + matrix @ (before if key.lag else now)[key.name]
                now[name], v[name] = fire(population, current, v[name])
            before = now

    return work


def fire(population: Population, current: Any, v: Any) -> tuple[Any, Any]:
    """Spikes and the new potential of IF, IFZ, LIF and LIFZ."""
    given = population.parameters
    u = v * given["decay"] + (current + given["bias"]) if "decay" in given else v + current
    fired = u >= given["v_th"]
    spikes = fired.astype(np.float32)
    return spikes, np.where(fired, given["v_reset"], u) if "v_reset" in given else u - spikes * given["v_sub"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
