"""What the configuration says of the device's own hardware: how hard pressed it may be, and its boards on Ethernet.

A part of ``edged.config``, which validates it. Reads nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edged.settings import Name

Finding = tuple[str, object, str]  # field, value, hint
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400, description="must be seconds, more than 0")]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100, description="must be percent, 0 (only told) to 100")]
Celsius = Annotated[float, msgspec.Meta(ge=0, le=150, description="must be degrees Celsius, 0 (only told) to 150")]
Share = Annotated[float, msgspec.Meta(ge=1, le=100, description="must be percent, 1 to 100")]
Kind = Annotated[
    Literal["accelerator", "event-camera", "sensor"],
    msgspec.Meta(description="must be accelerator, event-camera or sensor"),
]
PRESSES = ("memory_used", "memory_stall", "cpu_stall", "io_stall")  # what has limits in percent
PROBE_PORTS = {"spinnaker": 17893}  # SCP over UDP (SpiNNaker Application Note 5)


class Pressure(msgspec.Struct, frozen=True, kw_only=True):
    """When the device is hard pressed, and what follows (``edged.pressure``). A limit of 0 is told and acts on nothing.

    A busy CPU and a busy disk are no danger (queues push back), so that they act only where somebody says so.
    """

    enabled: bool = True
    look_every_s: Annotated[float, msgspec.Meta(ge=0.1, le=60, description="must be seconds, 0.1 to 60")] = 2.0
    temperature_tight_c: Celsius = 85.0  # boards with passive cooling throttle from here on
    temperature_critical_c: Celsius = 95.0
    temperature_ignore: tuple[str, ...] = ("PMIC*",)  # zones by type; Jetson's PMIC-Die says 100 at all times
    memory_used_tight_percent: Percent = 85.0
    memory_used_critical_percent: Percent = 95.0
    memory_stall_tight_percent: Percent = 20.0  # of the time, somebody waited for memory; a load takes less
    memory_stall_critical_percent: Percent = 50.0
    cpu_stall_tight_percent: Percent = 0.0
    cpu_stall_critical_percent: Percent = 0.0
    io_stall_tight_percent: Percent = 0.0
    io_stall_critical_percent: Percent = 0.0
    tight_share_percent: Share = 50.0
    critical_share_percent: Share = 10.0
    step_s: Seconds = 10.0  # at a level, until the streams of the next priority are slowed down too
    dwell_s: Seconds = 30.0  # of calm, before the level falls
    recycle_every_s: Seconds = 60.0  # at most one worker is replaced in this time
    root: Path = Path("/")  # where proc and sys are; another one is for tests

    def check(self) -> Iterator[Finding]:
        """What is critical must lie above what is tight, and let less pass."""
        for name in ("temperature_{}_c", *(f"{of}_{{}}_percent" for of in PRESSES)):
            lower, upper = name.format("tight"), name.format("critical")
            if getattr(self, upper) and not 0 < getattr(self, lower) < getattr(self, upper):
                yield upper, getattr(self, upper), f"must be more than {lower}, which must not be 0 then"
        if self.critical_share_percent > self.tight_share_percent:
            yield "critical_share_percent", self.critical_share_percent, "must be at most tight_share_percent"


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """A board on Ethernet, which no udev sees. ``name`` is what ``[engines.X] device`` calls it.

    ``probe``: ``tcp`` knocks at ``port``; ``spinnaker`` asks for the version. ``engine`` and ``title`` are for people.
    """

    name: Name
    address: Annotated[str, msgspec.Meta(description="must be an IP address: the device asks no DNS")]
    probe: Annotated[Literal["tcp", "spinnaker"], msgspec.Meta(description="must be tcp or spinnaker")] = "tcp"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535, description="must be a port; 0: that of the probe")] = 0
    kind: Kind = "accelerator"
    engine: str = ""
    title: str = ""
    every_s: Annotated[float, msgspec.Meta(ge=0.1, le=3600, description="must be seconds, 0.1 to 3600")] = 5.0
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=60, description="must be seconds, more than 0 to 60")] = 1.0

    @property
    def at(self) -> int:
        """The port that is asked."""
        return self.port or PROBE_PORTS.get(self.probe, 0)

    def check(self) -> Iterator[Finding]:
        """Names are not resolved, and a port that nothing says cannot be asked."""
        try:
            ipaddress.ip_address(self.address)
        except ValueError:
            yield "address", self.address, "must be an IP address: the device asks no DNS"
        if not self.at:
            yield "port", self.port, "is needed for the probe tcp (22 for a host with SSH)"
