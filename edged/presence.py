"""Joins devices and who uses them: an engine whose device is gone is missing, and found again with it.

An engine names its device in ``[engines.X] device``. Every placed engine is attended to from before it runs until its
task ends. A source finds out by itself whether its device is there, and only says that it has it. Decides nothing:
``edged.placement`` does, and ``edged.devices`` says whether a device can be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edged.devices.watch import Watch
from edged.engines.placed import PlacedEngine
from edged.hardware_config import Board


class Presence:
    """Knows which engines need which device, and which sources have one. ``watch`` is to be run as a task."""

    def __init__(self, boards: Sequence[Board] = (), place: Path | None = None) -> None:
        self.watch = Watch(self.tell, boards=boards, place=place)
        self._attended: dict[PlacedEngine, dict[str, str]] = {}
        self._read: dict[str, str] = {}  # nodes, by the source that has them

    def attend(self, engine: PlacedEngine) -> None:
        """Tell it from now on of the devices that its engines need."""
        needed = engine.devices
        if needed:
            self._attended[engine] = needed
            self._tell(engine)

    def leave(self, engine: PlacedEngine) -> None:
        """It has ended."""
        self._attended.pop(engine, None)
        self.assign()

    def tell(self) -> None:
        """Devices changed: tell every engine."""
        for engine in list(self._attended):
            self._tell(engine)
        self.assign()

    def reads(self, source: str, node: str) -> None:
        """A source has this node from now on; none, if it is empty."""
        if self._read.get(source, "") != node:
            self._read[source] = node
            self.assign()

    def assign(self) -> None:
        """Note who has which device now."""
        users = {node: f"source {source}" for source, node in self._read.items() if node}
        for engine, needed in self._attended.items():
            users |= {needed[name]: f"engine {name}" for name in engine.working() if name in needed}
        self.watch.assign(users)

    def _tell(self, engine: PlacedEngine) -> None:
        for name, wanted in self._attended[engine].items():
            engine.tell_device(name, self.watch.missing(wanted))
