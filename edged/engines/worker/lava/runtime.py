"""Runs Lava's processes in Lava's own runtime: one process of the system each, as on the way to a chip.

For conformance, and for Loihi: 0.15 ms for each process in each step, and half a second to start. Vectors go in through
Injectors and come out through Extractors, a limited number of steps at a time, because their buffers are limited.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from multiprocessing import active_children
from typing import Any

import numpy as np
from lava.magma.core.run_conditions import RunSteps  # type: ignore[import-not-found]  # in the worker's environment
from lava.proc.io.extractor import Extractor  # type: ignore[import-not-found]  # as above
from lava.proc.io.injector import Injector  # type: ignore[import-not-found]  # as above

from edged.engines.wire import Exit
from edged.engines.worker.lava.containment import enclose, watch
from edged.engines.worker.lava.wiring import Synapse, Wired

CHUNK = 32  # steps between a send and a receive; Lava's buffers hold 50


class Runtime:
    """A wired network in a running runtime. One a process: Lava leaks memory and threads with each."""

    def __init__(self, wired: Wired, config: Any) -> None:
        enclose()
        self._wired = wired
        self._config = config
        self._injectors = [(synapse, self._inject(synapse)) for synapse in wired.synapses if not self._fed(synapse)]
        self._gates = Injector(shape=(len(wired.gates),))  # one for all: it joins every part of the network
        for synapse in wired.synapses:
            if synapse.gate:
                self._gates.out_port.connect(synapse.process.s_in)
        self._extractors = {name: self._extract(place.process) for name, place in wired.placed.items()}
        self._gates.create_runtime(run_cfg=config)
        self._stop_watch = watch({child.name: child.pid or 0 for child in active_children()}, _end)
        self._open = True
        self._used = False
        atexit.register(self.close)

    def reset(self) -> None:
        """Every state zero, nothing under way."""
        if not self._used:
            return
        for place in self._wired.placed.values():
            for variable in (place.process.u, place.process.v):
                variable.set(np.zeros(variable.shape))
        for synapse in self._wired.synapses:
            buffer = getattr(synapse.process, synapse.buffer)
            buffer.set(np.zeros(buffer.shape))

    def run(self, inputs: Mapping[str, Any], gates: Any, start: int, stop: int) -> dict[str, Any]:
        """Run Lava's steps from ``start`` to ``stop`` of a window, as the Runner says."""
        self._used = True
        feeds = [(injector, synapse.fed(inputs, gates)) for synapse, injector in self._injectors]
        feeds.append((self._gates, gates))
        found: dict[str, list[Any]] = {name: [] for name in self._extractors}
        for begin in range(start, stop, CHUNK):
            end = min(begin + CHUNK, stop)
            for injector, values in feeds:
                for t in range(begin, end):
                    injector.send(values[t])
            self._gates.run(condition=RunSteps(num_steps=end - begin), run_cfg=self._config)
            for name, extractor in self._extractors.items():
                found[name] += [extractor.receive().reshape(-1) for _ in range(begin, end)]
        return {name: self._unordered(name, np.array(rows, np.float64)) for name, rows in found.items()}

    def peek(self, name: str, variable: str) -> Any:
        """A variable of a population, flat and in the graph's order."""
        value = getattr(self._wired.placed[name].process, variable).get()
        return self._unordered(name, np.array(value, np.float64).reshape(1, -1))[0]

    def poke(self, name: str, variable: str, value: Any) -> None:
        """Set a variable of a population."""
        place = self._wired.placed[name]
        own = getattr(place.process, variable)
        own.set(value[place.order].reshape(own.shape))

    def preload(self, name: str, current: Any) -> None:
        """Let a current reach a population in the next step."""
        buffer = next(s.process.a_buff for s in self._wired.synapses if s.gate and s.target == name)
        buffer.set(buffer.get() + current[self._wired.placed[name].order])

    def close(self) -> None:
        """Stop the runtime, its processes and segments."""
        if self._open:
            self._open = False
            self._stop_watch()
            self._gates.stop()

    def _fed(self, synapse: Synapse) -> bool:
        return synapse.gate or synapse.source in self._wired.placed

    def _inject(self, synapse: Synapse) -> Any:
        injector = Injector(shape=synapse.process.s_in.shape)
        injector.out_port.connect(synapse.process.s_in)
        return injector

    def _extract(self, process: Any) -> Any:
        extractor = Extractor(shape=process.s_out.shape)
        process.s_out.connect(extractor.in_port)
        return extractor

    def _unordered(self, name: str, values: Any) -> Any:
        found = np.empty_like(values)
        found[:, self._wired.placed[name].order] = values
        return found


def _end(child: str) -> None:
    """A child of the runtime is gone: whatever waits for it waits for ever, so all of it ends now."""
    print(f"a process of Lava's runtime has died: {child}", flush=True)
    os._exit(Exit.FAILED)
