"""The installed models of a running daemon: tells lanes what to run, and the store how it went.

A model on trial runs in every pipeline that names it. Its trial ends well when each of them has seen ``results``
results over ``seconds`` with that model, and badly as soon as one sees a failure. The judge is pure; what it says is
written down before anybody acts on it. Does not run models (``edged.lane`` does).
"""

from __future__ import annotations

import asyncio
import logging
import platform
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edged.bundle.store.record import ModelRefused, Proof, Slot
from edged.bundle.store.states import State
from edged.bundle.store.store import ModelStore, ModelStoreError
from edged.engines.engine import WorkerEngine
from edged.errors import BundleError, EdgedError
from edged.pipeline import Flow
from edged.ready import ModelFailed
from edged.status import EngineFacts

log = logging.getLogger(__name__)

T = TypeVar("T")
CRASHES = 3  # workers lost in a trial: one may be the device's, three take the model back
RETRY_S = 60.0  # until a model that could not run, and has no other beside it, is tried again


class ModelDamaged(BundleError):
    """An installed model's files are not what was installed."""

    code = "damaged"


@dataclass(frozen=True, slots=True)
class Measure:
    """What a trial asks for."""

    results: int
    seconds: float


class Verdict:
    """How a trial stands: not over, over and well, or over with the reason why the model is taken back."""

    def __init__(self, *, well: bool = False, reason: str = "") -> None:
        self.well = well
        self.reason = reason


@dataclass(slots=True)
class Judge:
    """Watches one trial in one pipeline. Times in seconds of any steady clock."""

    measure: Measure
    began_s: float
    flow: Flow
    restarts: int = 0

    def verdict(self, flow: Flow, engine: EngineFacts, now_s: float) -> Verdict:
        """Decide from what has passed since the trial began."""
        lost = engine.restarts - self.restarts
        if lost >= CRASHES:
            return Verdict(reason=f"it lost {lost} workers on trial: {engine.reason}")
        good = flow.results - self.flow.results
        bad = flow.errors - self.flow.errors + flow.rejected - self.flow.rejected
        if bad > good and good + bad >= max(1, self.measure.results):
            return Verdict(reason=f"{bad} of {good + bad} frames ended without a result on trial")
        long_enough = now_s - self.began_s >= self.measure.seconds
        return Verdict(well=long_enough and good >= self.measure.results)


@dataclass(slots=True)
class Installed:
    """One for all lanes. ``users``: the pipelines that name each model."""

    store: ModelStore
    measure: Measure
    users: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _well: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # digest → pipelines content with it
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    def attach(self) -> None:
        """Hear of changes from now on, in this event loop."""
        self._loop = asyncio.get_running_loop()
        self.store.on_change = lambda: self._tell()

    def current(self, name: str) -> Slot | None:
        """What is to run."""
        return self.store.current(name)

    def path(self, name: str, slot: Slot) -> Path:
        """Where it lies."""
        return self.store.path(name, slot.digest)

    async def change(self, timeout_s: float | None = None) -> None:
        """Wait for the next change of the store, at most so long."""
        event = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return

    async def went_well(self, name: str, slot: Slot, pipeline: str) -> None:
        """A pipeline is content with a model on trial; the last one commits it."""
        self._well[slot.digest].add(pipeline)
        if self._well[slot.digest] >= self.users[name]:
            await self._write(name, slot, lambda: self.store.commit(name, slot.digest))
            log.info("model is active", extra={"model": f"{name}@{slot.version}", "digest": slot.digest})

    async def verify(self, name: str, slot: Slot) -> None:
        """Hash its files. Raises ModelDamaged."""
        try:
            await asyncio.to_thread(self.store.verify, name, slot.digest)
        except BundleError as error:
            raise ModelDamaged(error.message, error.hint) from None

    async def could_not_run(self, name: str, slot: Slot, error: EdgedError) -> None:
        """A model could not be made ready: what that means for it depends on whose fault it was."""
        extra = {"model": f"{name}@{slot.version}", "digest": slot.digest, "reason": str(error)}
        if isinstance(error, ModelDamaged):
            log.error("model is damaged", extra=extra)
            await self._write(name, slot, lambda: self.store.lose(name, slot.digest))
        elif isinstance(error, ModelFailed) and slot.state is State.TRIAL:
            log.error("model failed", extra=extra)
            await self._write(name, slot, lambda: self.store.fail(name, slot.digest, str(error)))
        else:
            await self.taken_back(name, slot, str(error))

    async def taken_back(self, name: str, slot: Slot, reason: str) -> None:
        """Something else went wrong while it was to run; where there is another, that one is to run."""
        log.error("model is taken back", extra={"model": f"{name}@{slot.version}", "reason": reason})
        await self._write(name, slot, lambda: self.store.roll_back(name, reason, slot.digest))

    async def _write(self, name: str, slot: Slot, act: Callable[[], T]) -> None:
        """Another pipeline may have been faster, and the disk may be full: what runs is decided by the store alone."""
        self._well.pop(slot.digest, None)
        try:
            await asyncio.to_thread(act)
        except (ModelRefused, ModelStoreError) as error:
            log.warning("model stays as it is", extra={"model": name, "reason": str(error)})

    def _tell(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()


def proof_of(slot: Slot, engine: WorkerEngine) -> Proof:
    """What a full self-test of this slot on this engine proves."""
    facts = engine.facts()
    return Proof(digest=slot.digest, engine=facts.name, engine_version=facts.version, device=this_machine())


def this_machine() -> str:
    """What a proof holds for: this board with this processor, not a copy of its card in another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        serial = Path("/etc/machine-id").read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        lines, serial = [], ""
    names = ("model name", "CPU part", "Serial")
    found = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    return " ".join([platform.machine(), *(found[name] for name in names if name in found), serial[:12]]).strip()
