"""What the core asks of the outside, as Protocols: sources, models, engines, the result store.

Adapters implement these and never import each other; ``app`` joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edged.domain import Array, Entry, Frame, FrameId, Kind, Payload, Prediction, Receipt, Totals


@dataclass(frozen=True, slots=True)
class Ended:
    """How an offered frame ended: its durable receipt, or None when it was dropped or the daemon stops."""

    frame: FrameId
    kind: Kind | None
    receipt: Receipt | None


OnEnded = Callable[[Ended], None]


class Intake(Protocol):
    """Where a source hands over its frames: the bounded queue in front of one pipeline."""

    async def offer(self, frame: Frame, on_ended: OnEnded) -> None:
        """Queue a frame; wait while the queue is full if its policy is to block.

        ``on_ended`` is called once in the event loop, after the frame's end is committed (a dropped frame: when it
        is dropped). A frame that was stored before ends with its first receipt, without a second inference.
        """

    async def reject(self, frame: FrameId, received_ns: int, reason: str, on_ended: OnEnded) -> None:
        """Account for something that arrived but is not a frame (unreadable): a REJECTED entry is committed."""

    def overtaken(self, source: str) -> None:
        """Account for a frame of a live source that had a later one before it could offer this: it is dropped."""


class Inlet(Protocol):
    """A source that is asked: whoever hands it a frame waits for the frame's end."""

    async def infer(self, key: str, payload: Payload) -> Ended:
        """Offer one frame and return how it ended. The same key returns the first result again."""


class Source(Protocol):
    """Something that brings frames. ``run`` lasts until cancelled; it raises only when the source is unusable."""

    @property
    def name(self) -> str: ...

    async def run(self, intake: Intake) -> None:
        """Bring frames until cancelled."""


@dataclass(frozen=True, slots=True)
class EventWindow:
    """How a model bins the recordings of an event camera: T steps of ``dt_us`` each.

    Time counts from the first event or from the beginning of the recording (``t0``: first_event, recording). What comes
    after the last step is dropped, or clipped into it (``tail``: drop, clip).
    """

    width: int
    height: int
    dt_us: int
    t0: str
    tail: str


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or state of a model. ``shape`` is that of one sample: no batch axis, no time axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sequence: bool = False  # True: one value a time step, (T, *shape) a sample
    events: EventWindow | None = None  # None: it takes no recordings


class Model(Protocol):
    """A verified bundle, as the pipeline sees it."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def timesteps(self) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def states(self) -> tuple[TensorSpec, ...]: ...
    @property
    def output(self) -> str: ...  # name of the step graph's one output, float32 (B, classes)

    def encode(self, payload: Payload) -> dict[str, Array]:
        """Turn a payload into one sample by input name: (*shape) or (T, *shape). Raises FrameRejected."""

    def decode(self, readout: NDArray[np.float32]) -> list[Prediction]:
        """Turn readouts (B, classes) into predictions, ties broken as the manifest says."""


@dataclass(frozen=True, slots=True)
class Inference:
    """One batch through an engine. ``readout`` is (B, classes); ``engine_ns`` is the engine's own run time.

    ``engine``: the name of the one that ran it, where one of several may have; else empty.
    """

    readout: NDArray[np.float32]
    engine_ns: int
    engine: str = ""


class Engine(Protocol):
    """A model loaded on one engine, behind a worker. Every call has a deadline.

    Raises EngineLost when the worker crashed, hung or spoke nonsense (it is restarted behind the scenes; the next call
    waits for it), EngineError when the engine answered with an error of its own.
    """

    @property
    def name(self) -> str: ...
    @property
    def max_batch(self) -> int: ...

    async def infer(self, inputs: Mapping[str, Array]) -> Inference:
        """Run whole windows from zero state. Constant inputs (B, *shape), sequences (T, B, *shape), T-major."""

    async def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run ONE time step from the given states: inputs and states (B, *shape). Returns outputs and new states,
        the states under their *input* names, ready for the next step."""


class ResultStore(Protocol):
    """The durable buffer of results."""

    @property
    def epoch(self) -> str:
        """UUID under which sequence numbers are counted now."""

    def find(self, frames: Sequence[FrameId]) -> list[Receipt | None]:
        """The receipts of frames that were stored before, in order; None where the frame is new. Fast: no fsync."""

    async def commit(self, entries: Sequence[Entry]) -> list[Receipt]:
        """Store entries and return once they are on the medium. Calls that queue during an fsync share the next one.
        An entry whose frame is stored already yields the first receipt, marked as duplicate. Raises StoreError."""

    def totals(self) -> dict[str, Totals]:
        """The durable account of each source."""
