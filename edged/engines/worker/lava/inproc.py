"""Runs Lava's processes in one thread: its compiler, its process models unchanged, and deques for its runtime.

Lava's runtime gives every process a process of the system and every channel a thread and a shared segment: 28 to 45
times the time of the arithmetic for a small network, and all of it to be cleaned up after a crash. Here each model runs
once a step, populations by depth. A synapse sends what it gathered in the step before, and only then receives; where
its source runs later in the step (a loop), what it is about to send is read from its buffer, and it runs at the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from lava.magma.compiler.builders.py_builder import (  # type: ignore[import-not-found]  # in the worker's environment
    PyProcessBuilder,
)
from lava.magma.core.process.ports.ports import create_port_id  # type: ignore[import-not-found]  # as above

from edged.engines.worker.lava.wiring import Synapse, Wired


class _Channel:
    """One channel of Lava's, both ends of it; ``muted`` drops what is sent."""

    __slots__ = ("muted", "name", "queue", "shape")

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name = name
        self.shape = tuple(shape)
        self.queue: deque[Any] = deque()
        self.muted = False

    def send(self, data: Any) -> None:
        if not self.muted:
            self.queue.append(data if data.base is None else data.copy())  # a model goes on with what it sent a view of

    def recv(self) -> Any:
        return self.queue.popleft()


class InProcess:
    """A wired network, ready to step. ``config`` is the run configuration that chooses the models."""

    def __init__(self, wired: Wired, config: Any) -> None:
        self._wired = wired
        self._channels: list[_Channel] = []
        self._into = {id(s.process): _Channel("s_in", s.process.s_in.shape) for s in wired.synapses if not self._fed(s)}
        self._currents = {name: _Channel("a_in", place.process.a_in.shape) for name, place in wired.placed.items()}
        self._preloaded: dict[str, Any] = {}
        self._taps = {name: _Channel("s_out", place.process.s_out.shape) for name, place in wired.placed.items()}
        self._sent: dict[int, list[_Channel]] = {}  # by process: the channels that it sends into
        self._models = self._build(config)
        late = [s for s in wired.synapses if self._fed(s) and self._depth(s.source) >= self._depth(s.target)]
        self._early = [(self._models[id(s.process)], *self._sent[id(s.process)]) for s in late]
        self._order = self._sequence({id(s.process) for s in late})

    def reset(self) -> None:
        """Every state zero, nothing under way."""
        for place in self._wired.placed.values():
            model = self._models[id(place.process)]
            model.u[...] = 0
            model.v[...] = 0
        for synapse in self._wired.synapses:
            getattr(self._models[id(synapse.process)], synapse.buffer)[...] = 0
        for channel in self._channels:
            channel.queue.clear()

    def run(self, inputs: Mapping[str, Any], gates: Any, start: int, stop: int) -> dict[str, Any]:
        """Run Lava's steps from ``start`` to ``stop`` of a window, as the Runner says."""
        feeds = [(self._into[id(s.process)], s.fed(inputs, gates)) for s in self._wired.synapses if not self._fed(s)]
        for name, channel in self._currents.items():
            current = self._wired.gate_currents(name, gates)
            current[start] += self._preloaded.pop(name, 0)
            feeds.append((channel, current))
        found: dict[str, list[Any]] = {name: [] for name in self._taps}
        for t in range(start, stop):
            for channel, values in feeds:
                channel.queue.append(values[t])
            self._step()
            for name, tap in self._taps.items():
                found[name].append(tap.queue.popleft().reshape(-1))
        return {name: self._unordered(name, np.array(rows, np.float64)) for name, rows in found.items()}

    def peek(self, name: str, variable: str) -> Any:
        """A variable of a population, flat and in the graph's order."""
        model = self._models[id(self._wired.placed[name].process)]
        return self._unordered(name, np.array(getattr(model, variable), np.float64).reshape(1, -1))[0]

    def poke(self, name: str, variable: str, value: Any) -> None:
        """Set a variable of a population."""
        place = self._wired.placed[name]
        own = getattr(self._models[id(place.process)], variable)
        own[...] = value[place.order].reshape(own.shape)

    def preload(self, name: str, current: Any) -> None:
        """Let a current reach a population in the next step."""
        self._preloaded[name] = current[self._wired.placed[name].order]

    def close(self) -> None:
        """Nothing was started."""

    # Building

    def _build(self, config: Any) -> dict[int, Any]:
        models: dict[int, Any] = {}
        processes = [*(s.process for s in self._wired.synapses), *(p.process for p in self._wired.placed.values())]
        for process in processes:
            if id(process) not in models:  # parts that only the readout joins are compiled one by one
                models.update(self._compile(process, config))
        return models

    def _compile(self, process: Any, config: Any) -> dict[int, Any]:
        executable = process.compile(config)
        builders = executable.proc_builders
        for channel in executable.channel_builders:
            end, start = channel.dst_port_initializer, channel.src_port_initializer
            made = _Channel(start.name, start.shape)
            into = _Alias(end.name, made)
            builders[channel.src_process].set_csp_ports([made])
            builders[channel.dst_process].set_csp_ports([into])
            port = create_port_id(channel.src_process.id, start.name)
            builders[channel.dst_process].add_csp_port_mapping(port, into)
            self._sent.setdefault(id(channel.src_process), []).append(made)
            self._channels.append(made)
        for owner, builder in builders.items():
            if id(owner) in self._into:
                builder.set_csp_ports([self._into[id(owner)]])
            if owner.name in self._taps and owner is self._wired.placed[owner.name].process:
                builder.set_csp_ports([self._taps[owner.name], self._currents[owner.name]])
        self._channels += [*self._into.values(), *self._taps.values(), *self._currents.values()]
        return {id(owner): b.build() for owner, b in builders.items() if isinstance(b, PyProcessBuilder)}

    def _fed(self, synapse: Synapse) -> bool:
        return synapse.source in self._wired.placed

    def _depth(self, name: str) -> int:
        return self._wired.network.depths[name]

    def _sequence(self, late: set[int]) -> list[Any]:
        """The models of one step in order: by depth, what leads into a population right before it."""
        order = []
        for name in sorted(self._wired.placed, key=self._depth):
            leading = [s for s in self._wired.synapses if s.target == name and id(s.process) not in late]
            order += [self._models[id(s.process)] for s in leading]
            order.append(self._models[id(self._wired.placed[name].process)])
        return order

    # Running

    def _step(self) -> None:
        for model, channel in self._early:
            buffer = model.a_buff
            channel.queue.append(buffer if buffer.ndim == 1 else buffer[:, 0].copy())
            channel.muted = True  # it will send the same once more when it runs
        for model in self._order:
            model.run_spk()
        for model, channel in self._early:
            model.run_spk()
            channel.muted = False

    def _unordered(self, name: str, values: Any) -> Any:
        found = np.empty_like(values)
        found[:, self._wired.placed[name].order] = values
        return found


class _Alias:
    """The receiving end of a channel under the name of the port that it leads to."""

    __slots__ = ("channel", "name", "recv", "shape")

    def __init__(self, name: str, channel: _Channel) -> None:
        self.name = name
        self.channel = channel
        self.shape = channel.shape
        self.recv = channel.recv
