"""Watches devices come and go: joins udev, boards on Ethernet, the table of states and the questions to a device.

``run`` it as a task. udev's socket is bridged into the event loop once; devices are asked one after the other in a
thread, and what udev tells meanwhile waits in its socket, whose overflow means looking at everything again. Without
udev or its package nothing is watched, and ``discovery`` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edged.devices import udev
from edged.devices.boards import BoardProbe, sighting_of
from edged.devices.probe import Verdict, probe
from edged.devices.states import State
from edged.devices.table import Device, DeviceTable, Sighting
from edged.hardware_config import Board
from edged.status import DeviceFacts

log = logging.getLogger(__name__)

UDEV = ""  # no board has this name
FAILURES = 2  # questions in a row that a board does not answer, until it is lost: one may get lost by itself
DOUBT_S = 0.5  # after the first of them
AGAIN_S = 10.0  # what cannot be used is asked again: a group or a mode may have been changed meanwhile
CALM = (State.SEEN, State.PROBING)  # steps on the way, not worth a line in the log


class Watch:
    """Every device of the table. ``on_change`` hears after every change, when no device is between two states."""

    def __init__(
        self,
        on_change: Callable[[], None] = lambda: None,
        *,
        on_move: Callable[[DeviceFacts], None] = lambda _: None,
        ask: Callable[[Sighting], Verdict] = probe,
        boards: Sequence[Board] = (),
        place: Path | None = None,
    ) -> None:
        """``boards`` are asked through the socket at ``place``, or through a process of our own."""
        self.discovery = "devices are being looked for"
        self.surveyed = asyncio.Event()  # everything that was here at the start was asked, or nothing is watched
        self._table = DeviceTable(self._moved)
        self._on_change = on_change
        self._on_move = on_move
        self._ask = ask
        self._boards = tuple(boards)
        self._board_probe = BoardProbe(boards, place)
        self._awaited = {UDEV, *(board.name for board in boards)}  # who has not told of what was here at the start

    async def run(self) -> None:
        """Watch until cancelled; return when there is nothing to watch with."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch_udev(), name="devices:udev")
                for board in self._boards:
                    tasks.create_task(self._attend(board), name=f"devices:{board.name}")
        finally:
            self._board_probe.close()

    async def _watch_udev(self) -> None:
        try:
            source = udev.Udev()
        except udev.Unwatched as error:
            self.discovery = f"off: {error}"
            log.warning("devices are not watched", extra={"reason": str(error)})
            self._settled(UDEV)
            return
        self.discovery = udev.remark() or "udev"
        wake, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(source.fileno(), wake.set)
        try:
            await self._follow(source, wake)
        finally:
            loop.remove_reader(source.fileno())

    def facts(self) -> tuple[DeviceFacts, ...]:
        """Every device, for ``edged status``."""
        return tuple(facts_of(device) for device in self._table.devices())

    def missing(self, wanted: str) -> str:
        """Why there is no usable device of this kind, short name, link or node; empty if there is one."""
        devices = [device for device in self._table.devices() if device.sighting.is_wanted(wanted)]
        if any(device.is_usable for device in devices):
            return ""
        if not devices:
            why = "" if self.discovery == "udev" else f": {self.discovery}"
            return f"there is no device {wanted}{why}"
        last = devices[-1]
        return f"the device {wanted} is {last.state.value}" + (f": {last.reason}" if last.reason else "")

    def assign(self, users: Mapping[str, str]) -> None:
        """Say who has which device now: the user of each wanted device, by what the configuration calls it."""
        given: dict[int, str] = {}
        for wanted, user in users.items():
            usable = [one for one in self._table.devices() if one.is_usable and one.sighting.is_wanted(wanted)]
            if usable:
                given[id(usable[0])] = user
        for device in self._table.devices():
            self._table.use(device, given.get(id(device), ""))

    async def _follow(self, source: udev.Udev, wake: asyncio.Event) -> None:
        pending: dict[str, Device] = {}
        self._survey(source, pending)
        while True:
            while pending:
                await self._probe(pending.pop(next(iter(pending))))
                self._drain(source, pending)
                self._on_change()  # a removal cannot wait until everything is asked
            self._settled(UDEV)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await wake.wait()
            wake.clear()
            self._drain(source, pending)
            for device in self._table.devices():
                if device.state is State.UNUSABLE and not device.sighting.host:
                    pending[device.sighting.path] = device

    def _settled(self, who: str) -> None:
        self._awaited.discard(who)
        if not self._awaited:
            self.surveyed.set()
        self._on_change()

    # Boards on Ethernet

    async def _attend(self, board: Board) -> None:
        """Ask a board again and again: quietly, for it is in use, or nothing has changed."""
        sighting, failures = sighting_of(board), 0
        while True:
            verdict = await self._board_probe.ask(board)
            failures = failures + 1 if verdict.problem else 0
            self._heard(sighting, verdict, failures)
            self._settled(board.name)
            await asyncio.sleep(board.every_s if failures != 1 else min(board.every_s, DOUBT_S))

    def _heard(self, sighting: Sighting, verdict: Verdict, failures: int) -> None:
        device = self._table.here(sighting.path)
        if device is None:
            if verdict.problem and self._was_lost(sighting):
                return
            device = self._table.appear(sighting)
        elif device.is_usable:
            if failures >= FAILURES:
                self._table.vanish(sighting.path, f"it no longer answers: {verdict.problem}")
            return
        elif verdict.problem == device.reason:
            return
        if device is not None:
            self._table.probing(device)
            self._table.probed(device, verdict.problem, verdict.note)

    def _was_lost(self, sighting: Sighting) -> bool:
        return any(one.state is State.LOST and one.sighting.path == sighting.path for one in self._table.devices())

    def _survey(self, source: udev.Udev, pending: dict[str, Device]) -> None:
        found = source.here()
        self._table.keep_only(sighting.path for sighting in found)
        for sighting in found:
            self._appear(sighting, pending)

    def _drain(self, source: udev.Udev, pending: dict[str, Device]) -> None:
        try:
            for change in source.changes():
                if isinstance(change, Sighting):
                    self._appear(change, pending)
                else:
                    pending.pop(change, None)
                    self._table.vanish(change)
        except udev.Missed:
            log.warning("udev's events were missed; looking at all devices again")
            self._survey(source, pending)

    def _appear(self, sighting: Sighting, pending: dict[str, Device]) -> None:
        device = self._table.appear(sighting)
        if device is not None:
            pending[sighting.path] = device

    async def _probe(self, device: Device) -> None:
        if not self._table.is_here(device):
            return
        self._table.probing(device)
        verdict = await asyncio.to_thread(self._ask, device.sighting)
        self._table.probed(device, verdict.problem, verdict.note)

    def _moved(self, device: Device) -> None:
        facts = facts_of(device)
        self._on_move(facts)
        if device.state not in CALM:
            more = {"device": facts.link or facts.path, "state": facts.state, "reason": facts.reason, "id": facts.id}
            log.info("device moved", extra=more)


def facts_of(device: Device) -> DeviceFacts:
    """A device in words for a person."""
    sighting = device.sighting
    return DeviceFacts(
        name=sighting.name or sighting.product,
        kind=sighting.kind,
        state=device.state.value,
        reason=device.reason,
        link=sighting.label,
        id=sighting.usb_id,
        node=sighting.node,
        engine=sighting.engine,
        user=device.user,
        serial=sighting.serial,
        path=sighting.path,
    )
