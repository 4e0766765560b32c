"""Small in-memory stand-ins for the core's ports, for tests of the core alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edged.domain import Array, Entry, Frame, FrameId, Kind, Payload, Prediction, Receipt, Totals
from edged.errors import EngineError, EngineLost, FrameRejected
from edged.ports import Ended, Inference, TensorSpec


class SumModel:
    """Two classes: the sum of three numbers, and its negative."""

    name = "sum"
    version = "1.0.0"
    digest = "00" * 32
    path = Path()
    timesteps = 1
    classes = 2
    inputs = (TensorSpec("x", "float32", (3,)),)
    states: tuple[TensorSpec, ...] = ()
    output = "y"

    def encode(self, payload: Payload) -> dict[str, Array]:
        if not isinstance(payload, np.ndarray) or payload.shape != (3,):
            raise FrameRejected("wants three numbers")
        return {"x": payload.astype(np.float32)}

    def decode(self, readout: NDArray[np.float32]) -> list[Prediction]:
        best = readout.argmax(axis=1).tolist()
        return [Prediction(i, "np"[i], tuple(row)) for i, row in zip(best, readout.tolist(), strict=True)]


class SumEngine:
    """Runs SumModel; ``fault`` is called with each batch (B, 3) and may raise: then every call in flight fails."""

    name = "fake"

    def __init__(self, fault: Callable[[Array], None] = lambda _: None, max_batch: int = 4) -> None:
        self.max_batch = max_batch
        self.batches: list[int] = []
        self.in_flight = self.most_in_flight = self._lives = 0
        self.open = asyncio.Event()
        self.open.set()
        self._fault = fault

    async def infer(self, inputs: Mapping[str, Array]) -> Inference:
        self.in_flight += 1
        life = self._lives
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.open.wait()
            await asyncio.sleep(0)
            self.batches.append(len(inputs["x"]))
            if life != self._lives:
                raise EngineLost("the worker died of another call")
            try:
                self._fault(inputs["x"])
            except EngineError:
                self._lives += 1
                raise
            total = inputs["x"].sum(axis=1)
            return Inference(np.stack([total, -total], axis=1), 1000 * len(inputs["x"]))
        finally:
            self.in_flight -= 1

    async def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        raise AssertionError("no test of the core steps")


class MemoryStore:
    """A ResultStore in memory; ``refusals`` are raised by the next commits, in turn."""

    epoch = "11111111-1111-1111-1111-111111111111"

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.refusals: list[Exception] = []
        self._receipts: dict[FrameId, Receipt] = {}

    def find(self, frames: Sequence[FrameId]) -> list[Receipt | None]:
        return [self._receipts.get(frame) for frame in frames]

    async def commit(self, entries: Sequence[Entry]) -> list[Receipt]:
        await asyncio.sleep(0)
        if self.refusals:
            raise self.refusals.pop(0)
        return [self._store(entry) for entry in entries]

    def totals(self) -> dict[str, Totals]:
        return {}

    def kinds(self) -> dict[str, Kind]:
        return {entry.frame.key: entry.kind for entry in self.entries if entry.frame is not None}

    def _store(self, entry: Entry) -> Receipt:
        if entry.frame in self._receipts:
            first = self._receipts[entry.frame]
            return Receipt(first.epoch, first.stream, first.seq, first.kind, first.body, duplicate=True)
        self.entries.append(entry)
        receipt = Receipt(self.epoch, entry.stream, len(self.entries), entry.kind, entry.body)
        if entry.frame is not None:
            self._receipts[entry.frame] = receipt
        return receipt


class Collector:
    """An ``on_ended`` that remembers, and an Intake that answers every frame at once."""

    def __init__(self, kind: Kind = Kind.RESULT) -> None:
        self.ended: list[Ended] = []
        self.frames: list[tuple[str, Payload]] = []
        self.rejected: list[tuple[str, str]] = []
        self.dropped = 0
        self.kind = kind

    def __call__(self, end: Ended) -> None:
        self.ended.append(end)

    async def offer(self, frame: Frame, on_ended: Callable[[Ended], None]) -> None:
        await asyncio.sleep(0)
        self.frames.append((frame.id.key, frame.payload))
        on_ended(Ended(frame.id, self.kind, self._receipt(self.kind, b"{}")))

    async def reject(self, frame: FrameId, received_ns: int, reason: str, on_ended: Callable[[Ended], None]) -> None:
        self.rejected.append((frame.key, reason))
        on_ended(Ended(frame, Kind.REJECTED, self._receipt(Kind.REJECTED, b'{"error":{"code":"rejected"}}')))

    def overtaken(self, source: str) -> None:
        self.dropped += 1

    def _receipt(self, kind: Kind, body: bytes) -> Receipt:
        return Receipt(MemoryStore.epoch, "s", len(self.frames) + len(self.rejected), kind, body)
