"""A model on Lava: windows and single steps of a network, one row of a batch after the other.

A window takes depth + T of Lava's steps and begins from zero. A single step takes depth + 1: right before the own step
of a population its states are set, and right after it they are read. Where and how Lava runs: that is the ``Runner``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from edged.bundle.graph.readout import scores
from edged.bundle.graph.spec import GraphSpec
from edged.engines.worker.lava import neurons
from edged.engines.worker.lava.fixed import INPUT_MAX, MEMBRANE, Fixed
from edged.engines.worker.lava.network import Network, in_scale
from edged.engines.worker.lava.tail import step_outputs, window_outputs
from edged.engines.worker.lava.wiring import Wired


class Runner(Protocol):
    """Lava with a wired network in it. Vectors are flat and in the graph's order."""

    def reset(self) -> None:
        """Every state zero, nothing under way."""

    def run(self, inputs: Mapping[str, Any], gates: Any, start: int, stop: int) -> dict[str, Any]:
        """Lava's steps ``start`` ≤ t < ``stop`` of a window; the spikes (stop - start, size) of every population.

        ``inputs`` (steps of the model, size) and ``gates`` (Lava's steps, gates) are those of the whole window.
        """

    def peek(self, name: str, variable: str) -> Any:
        """A variable of a population."""

    def poke(self, name: str, variable: str, value: Any) -> None:
        """Set a variable of a population."""

    def preload(self, name: str, current: Any) -> None:
        """Let a current reach a population in the next step."""

    def close(self) -> None:
        """End it with all that it started."""


class LavaModel:
    """A network on a runner. ``spikes`` counts those of the last window by population."""

    def __init__(
        self, network: Network, spec: GraphSpec, wired: Wired, runner: Runner, fixed: Fixed | None = None
    ) -> None:
        """``network`` is in floating point; ``fixed`` says how the runner's integers come from it."""
        self._network = network
        self._spec = spec
        self._wired = wired
        self._runner = runner
        self._fixed = fixed
        self.spikes: dict[str, Any] = {}

    def window(self, inputs: Mapping[str, Any]) -> Any:
        """The scores (classes,) of one window from zero state; constants (size…), sequences (T, size…)."""
        steps, depth = self._spec.timesteps, self._network.depth
        values = {}
        for entry in self._spec.inputs:
            value = np.asarray(inputs[entry.name], np.float64)
            once = value.reshape(steps if entry.sequence else 1, -1)
            values[entry.name] = np.broadcast_to(once, (steps, once.shape[1]))
        self._runner.reset()
        fired = self._runner.run(
            self._messages(values), self._wired.gate_values(steps, steps + depth), 0, steps + depth
        )
        for name, spikes in fired.items():
            start = self._network.depths[name]
            values[name] = spikes[start : start + steps]
            self.spikes[name] = values[name].sum(axis=0)
        return scores(window_outputs(self._network, values, steps), self._spec.readout)

    def close(self) -> None:
        """End Lava with all that it started."""
        self._runner.close()

    def step(self, inputs: Mapping[str, Any], states: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs and new states of one step by tensor name; everything flat."""
        depth, depths = self._network.depth, self._network.depths
        gates = self._wired.gate_values(1, depth + 1)
        shown = {name: np.asarray(value, np.float64).reshape(1, -1) for name, value in inputs.items()}
        values = {name: value[0] for name, value in shown.items()}
        given = {name: np.asarray(value, np.float64).reshape(-1) for name, value in states.items()}
        found: dict[str, Any] = {}
        self._runner.reset()
        for t in range(depth + 1):
            here = [p for p in self._network.populations if depths[p.name] == t]
            for population in here:
                for variable, value in neurons.before(population, given).items():
                    self._runner.poke(population.name, variable, self._scaled(population.name, value))
                self._preload(population.name, given)
            fired = self._runner.run(self._messages(shown), gates, t, t + 1)
            for population in here:
                name = population.name
                spikes = fired[name][0].astype(bool)
                u, v = (self._runner.peek(name, variable) / self._scale(name) for variable in ("u", "v"))
                found.update(neurons.after(population, u, v, spikes))
                values[name] = spikes.astype(np.float64)
        found.update(step_outputs(self._network, values, given))
        return found

    def _preload(self, name: str, states: Mapping[str, Any]) -> None:
        population = next(p for p in self._network.populations if p.name == name)
        total = np.zeros(population.size)
        for key, matrix in population.current.terms.items():
            if key.name in states:
                total += in_scale(population, matrix) @ states[key.name]
        if total.any():
            self._runner.preload(name, self._scaled(name, total, MEMBRANE))

    def _messages(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs as they are sent."""
        if self._fixed is None:
            return dict(values)
        scales = self._fixed.inputs
        return {
            name: np.clip(np.round(value * scales[name]), -INPUT_MAX, INPUT_MAX).astype(np.int64)
            for name, value in values.items()
        }

    def _scale(self, name: str) -> Any:
        return 1.0 if self._fixed is None else self._fixed.potentials[name]

    def _scaled(self, name: str, value: Any, part: int = 1) -> Any:
        """A potential, or with ``part`` a current, as the runner counts it."""
        if self._fixed is None:
            return value
        return np.round(value * self._fixed.potentials[name] / part).astype(np.int64)
