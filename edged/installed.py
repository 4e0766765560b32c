"""The installed models of a running daemon: tells lanes what to run, and the store how it went.

A model on trial runs in every pipeline that names it. Its trial ends well when each of them has seen ``results``
results over ``seconds`` with that model, and badly as soon as one sees a failure. The judge is pure; what it says is
written down before anybody acts on it. Does not run models (``edged.lane`` does).
"""

from __future__ import annotations

import asyncio
import enum
import logging
import platform
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edged.bundle.loaded import open_bundle
from edged.bundle.store.record import ModelRefused, Proof, Slot
from edged.bundle.store.states import State
from edged.bundle.store.store import ModelStore, ModelStoreError
from edged.domain import Payload
from edged.engines.engine import WorkerEngine
from edged.errors import BundleError, EdgedError, EngineCrashed, FrameRejected
from edged.flow import Flow
from edged.ready import CRASHES, ModelFailed

log = logging.getLogger(__name__)

T = TypeVar("T")
LOST = 3  # workers lost in a trial for whatever reason: one may be killed by a person, three take the model back
RETRY_S = 60.0  # until a model that could not run, and has no other beside it, is tried again


class ModelDamaged(BundleError):
    """An installed model's files are not what was installed."""

    code = "damaged"


@dataclass(frozen=True, slots=True)
class Measure:
    """What a trial asks for."""

    results: int
    seconds: float


class Outcome(enum.Enum):
    """How a trial stands."""

    OPEN = "open"
    WELL = "well"
    FAILED = "failed"  # by its own fault: never again
    TAKEN_BACK = "taken back"  # for what may be another's fault


@dataclass(frozen=True, slots=True)
class Seen:
    """What one pipeline has seen: of its frames, and of the workers that it ran them on."""

    flow: Flow
    lost: int
    crashes: int  # those of them that were lost by their own doing
    reason: str = ""  # why the last worker was lost
    now_s: float = 0.0  # of any steady clock


@dataclass(frozen=True, slots=True)
class Judge:
    """Watches one trial in one pipeline, from what was seen when it began."""

    measure: Measure
    began: Seen

    def verdict(self, seen: Seen) -> tuple[Outcome, str]:
        """Decide, and say why a model goes."""
        crashes, lost = seen.crashes - self.began.crashes, seen.lost - self.began.lost
        if crashes >= CRASHES:
            return Outcome.FAILED, f"{crashes} of its workers crashed on trial: {seen.reason}"
        if lost >= LOST:
            return Outcome.TAKEN_BACK, f"it lost {lost} workers on trial: {seen.reason}"
        good, bad = self._frames(seen)
        if bad > good and good + bad >= max(1, self.measure.results):
            return Outcome.TAKEN_BACK, f"{bad} of {good + bad} frames ended without a result on trial"
        well = self._seconds(seen) >= self.measure.seconds and good >= self.measure.results
        return (Outcome.WELL if well else Outcome.OPEN), ""

    def progress(self, seen: Seen) -> str:
        """How far it has come, for a person."""
        results, seconds = self.measure.results, self.measure.seconds
        return f"{self._frames(seen)[0]} of {results} results, {self._seconds(seen):.0f} of {seconds:g} s"

    def _seconds(self, seen: Seen) -> float:
        return seen.now_s - self.began.now_s

    def _frames(self, seen: Seen) -> tuple[int, int]:
        """Frames with a result, and without."""
        before, now = self.began.flow, seen.flow
        return now.results - before.results, now.errors - before.errors + now.rejected - before.rejected


@dataclass(slots=True)
class Installed:
    """One for all lanes. ``users``: the pipelines that name each model."""

    store: ModelStore
    measure: Measure
    users: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _well: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # digest → pipelines content with it
    _change: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    def attach(self) -> None:
        """Hear of changes from now on, in this event loop."""
        self._loop = asyncio.get_running_loop()
        self.store.on_change = lambda: self._tell()

    # What is there

    def current(self, name: str) -> Slot | None:
        """What is to run."""
        return self.store.current(name)

    def fallback(self, name: str) -> Slot | None:
        """What is to run when the one on trial goes."""
        return self._of(name, State.ACTIVE)

    def path(self, name: str, slot: Slot) -> Path:
        """Where it lies."""
        return self.store.path(name, slot.digest)

    def gone(self, name: str, slot: Slot) -> str:
        """Which release that is newer than ``slot`` was taken off last, and why; empty when none was."""
        off = [one for one in self._slots(name) if one.state in (State.FAILED, State.ROLLED_BACK)]
        newer = [one for one in off if one.release_counter > slot.release_counter]
        return f"{newer[-1].version} {newer[-1].state.value}: {newer[-1].reason}" if newer else ""

    def change(self) -> asyncio.Event:
        """Is set by the next change of the store. Take it before looking, then none is missed."""
        return self._change

    async def takes(self, name: str, slot: Slot, payload: Payload) -> bool:
        """Whether another bundle of a model would take a frame."""
        try:
            (await asyncio.to_thread(open_bundle, self.path(name, slot))).encode(payload)
        except (FrameRejected, BundleError):
            return False
        return True

    async def verify(self, name: str, slot: Slot) -> None:
        """Hash its files. Raises ModelDamaged."""
        try:
            await asyncio.to_thread(self.store.verify, name, slot.digest)
        except BundleError as error:
            raise ModelDamaged(error.message, error.hint) from None

    # What is said of it

    def proved(self, name: str, slot: Slot, proof: Proof) -> None:
        """A full self-test was passed. Raises ModelStoreError for a model on trial when that cannot be kept."""
        try:
            self.store.prove(name, proof)
        except ModelStoreError as error:
            if slot.state is State.TRIAL:
                raise
            log.warning("a proof cannot be kept; it is made again", extra={"model": name, "reason": str(error)})

    async def went_well(self, name: str, slot: Slot, pipeline: str) -> None:
        """A pipeline is content with a model on trial; the last one commits it."""
        self._well[slot.digest].add(pipeline)
        if self._well[slot.digest] < self.users[name]:
            return
        if await self._write(name, slot, lambda: self.store.commit(name, slot.digest)):
            log.info("model is active", extra={"model": f"{name}@{slot.version}", "digest": slot.digest})

    async def could_not_run(self, name: str, slot: Slot, error: EdgedError) -> None:
        """A model could not be made ready: what that means for it depends on whose fault it was."""
        on_trial = slot.state is State.TRIAL
        if isinstance(error, ModelDamaged):
            log.error("model is damaged", extra=self._extra(name, slot, str(error)))
            await self._write(name, slot, lambda: self.store.lose(name, slot.digest))
        elif isinstance(error, ModelFailed) and on_trial:
            await self.failed(name, slot, str(error))
        elif isinstance(error, ModelFailed) or on_trial:
            await self.taken_back(name, slot, str(error))
        else:  # the device's own trouble: no other model would fare better
            log.error("model cannot run now", extra=self._extra(name, slot, str(error)))

    async def failed_frame(self, name: str, slot: Slot, error: EdgedError) -> None:
        """A frame got no result from a model on trial, and there is another that may do better."""
        if isinstance(error, EngineCrashed):
            await self.failed(name, slot, f"a frame crashed two of its workers: {error}")
        else:
            await self.taken_back(name, slot, f"a frame got no result: {error}")

    async def failed(self, name: str, slot: Slot, reason: str) -> None:
        """A model on trial failed by itself: never again on this device."""
        log.error("model failed", extra=self._extra(name, slot, reason))
        await self._write(name, slot, lambda: self.store.fail(name, slot.digest, reason))

    async def taken_back(self, name: str, slot: Slot, reason: str) -> None:
        """Something else went wrong while it was to run; where there is another, that one is to run."""
        log.error("model is taken back", extra=self._extra(name, slot, reason))
        await self._write(name, slot, lambda: self.store.roll_back(name, reason, slot.digest))

    # Within

    def _slots(self, name: str) -> tuple[Slot, ...]:
        return next((record.slots for record in self.store.records if record.name == name), ())

    def _of(self, name: str, state: State) -> Slot | None:
        return next((slot for slot in self._slots(name) if slot.state is state), None)

    def _extra(self, name: str, slot: Slot, reason: str) -> dict[str, object]:
        return {"model": f"{name}@{slot.version}", "digest": slot.digest, "reason": reason}

    async def _write(self, name: str, slot: Slot, act: Callable[[], T]) -> bool:
        """Another pipeline may have been faster, and the disk may be full: what runs is decided by the store alone."""
        self._well.pop(slot.digest, None)
        try:
            await asyncio.to_thread(act)
        except (ModelRefused, ModelStoreError) as error:
            log.warning("model stays as it is", extra={"model": name, "reason": str(error)})
            return False
        return True

    def _tell(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        event, self._change = self._change, asyncio.Event()
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
