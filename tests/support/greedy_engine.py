"""An engine as it is, but a white frame makes it take memory: GREED_MIB. For a worker in a unit of its own.

GREED_OF names the module of the engine; without it, ONNX Runtime.
"""

from __future__ import annotations

import importlib
import mmap
import os
from collections.abc import Callable
from typing import Any

from edged.engines.layout import Role
from edged.engines.wire import Load
from edged.engines.worker.arrays import Arrays

WHITE = 0.99  # all pixels of a frame are at least this bright: no golden input is
ONNX_RUNTIME = "edged.engines.worker.onnxruntime"


class Model:
    """A loaded model that looks at its input first."""

    def __init__(self, model: Any, arrays: Any) -> None:
        self._model = model
        self._arrays = arrays
        self.plan = model.plan
        self.timings = model.timings

    def infer(self, slot: int, batch: int) -> None:
        """Take memory for a white frame, then infer."""
        frames = self._arrays.of(slot, Role.INPUT, batch)
        if any(float(frame.min()) >= WHITE for frame in frames.values()):
            size = int(os.environ["GREED_MIB"]) << 20
            held = bytearray(size)
            held[::4096] = b"\x01" * len(range(0, size, 4096))  # each page is really there
        self._model.infer(slot, batch)

    def step(self, slot: int, batch: int) -> None:
        """One step, as it is."""
        self._model.step(slot, batch)


class Engine:
    """That engine with that model."""

    def __init__(self) -> None:
        self._engine = importlib.import_module(os.environ.get("GREED_OF", ONNX_RUNTIME)).Engine()
        self.version: str = self._engine.version

    def load(self, load: Load, memory: mmap.mmap, progress: Callable[[str], None]) -> Any:
        """Load as ever."""
        return Model(self._engine.load(load, memory, progress), Arrays(memory, load.layout))
