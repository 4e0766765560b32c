"""What an engine's file offers to the worker's core.

An engine file holds one class with these members; it is made without arguments, imports its SDK in its own module, and
knows nothing of sockets. Everything runs in the process's main thread, one call at a time.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from edged.engines.wire import Gpu, Load


class FrameFailed(Exception):
    """This input failed, and the engine still stands. Any other exception of a call means that it does not."""


class ModelRefused(Exception):
    """This engine cannot run this model, now or later: says which node, and why. Raised while it loads."""


class LoadedModel(Protocol):
    """A model that stands. A slot's inputs are written before a call, its outputs before the call returns."""

    plan: str  # the chosen form, for people
    timings: dict[str, float]  # what loading measured: names end in _s or _us

    def infer(self, slot: int, batch: int) -> None:
        """Run whole windows from zero state: INPUT regions to READOUT. Raises FrameFailed."""

    def step(self, slot: int, batch: int) -> None:
        """Run one time step: STEP_INPUT and STATE regions to STEP_OUTPUT and NEXT_STATE. Raises FrameFailed."""


@runtime_checkable
class OnGpu(Protocol):
    """What a model has besides that runs on a GPU."""

    def gpu(self) -> Gpu:
        """The GPU and what is known of it now. Asked between calls: returns at once, and raises nothing."""


class Engine(Protocol):
    """One engine on one device, without a model yet."""

    version: str

    def load(self, load: Load, memory: mmap.mmap, progress: Callable[[str], None]) -> LoadedModel:
        """Build or read the plan and stand ready. ``load.layout`` says what is where in the shared ``memory``."""
