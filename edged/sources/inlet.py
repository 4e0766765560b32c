"""Frames that somebody hands in and waits for: ``POST /v2/models/…/infer``, by loopback or by the local socket.

The caller's key is the frame's identity, so a request that is sent again returns the first result. A caller that is
gone does not take its frame back: once offered, a frame ends in the stream. Frames that end two workers are kept in
``rejected/``.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import time

import numpy as np

from edged.domain import Array, Frame, FrameId, Kind, Payload
from edged.errors import NotOpen
from edged.ports import Ended, Intake
from edged.sources.rejected import RejectedFolder


class InletSource:
    """Implements both the Source and the Inlet port for one pipeline."""

    def __init__(self, name: str, rejected: RejectedFolder) -> None:
        self.name = name
        self._rejected = rejected
        self._intake: Intake | None = None

    async def run(self, intake: Intake) -> None:
        """Open the inlet until cancelled."""
        self._intake = intake
        try:
            await asyncio.Event().wait()
        finally:
            self._intake = None

    async def infer(self, key: str, payload: Payload) -> Ended:
        """Offer one frame and wait for its end. Raises NotOpen while the pipeline is not open."""
        if self._intake is None:
            raise NotOpen("the pipeline is starting or stopping", "try again in a moment, with the same id")
        done: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()

        def ended(end: Ended) -> None:
            if end.kind is Kind.ERROR and isinstance(payload, np.ndarray):
                self._keep(key, payload, end)
            if not done.done():
                done.set_result(end)

        received_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        await self._intake.offer(Frame(FrameId(self.name, key), payload, received_ns), ended)
        return await done

    def _keep(self, key: str, payload: Array, end: Ended) -> None:
        if end.receipt is None or end.receipt.duplicate:
            return
        data = io.BytesIO()
        np.save(data, payload, allow_pickle=False)
        name = f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"  # a key may hold anything
        self._rejected.write(data.getvalue(), name, end.receipt)
