"""The devices that are here, and those that were lost lately. Pure: whoever sees and asks devices tells it.

Rules: a device is keyed on its DEVPATH, for that is all that is left of it when it is removed. What appears is a lost
device when it is in the same port and has the same link, or carries the same serial, or is what the lost one becomes
once it has its firmware. The table is bounded: of the lost ones only the last are remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edged.devices.states import AT_REST, Event, State, after

LOST_MAX = 32  # remembered; a field device has a handful of ports
ALL_MAX = 256  # known at once; a bus that makes up more is not one that we can serve


@dataclass(frozen=True, slots=True)
class Sighting:
    """A device as udev describes it; the words are those of the table ``udev/60-edged.hwdb``."""

    path: str  # DEVPATH, without /sys
    kind: str
    name: str = ""
    link: str = ""  # its short name
    engine: str = ""
    becomes: str = ""  # vendor:product with firmware
    quirk: str = ""
    usb_id: str = ""  # vendor:product
    serial: str = ""
    product: str = ""  # its own word for itself
    node: str = ""
    links: tuple[str, ...] = ()
    bus: int = 0  # where USB has it
    address: int = 0
    ruled: bool = True  # our rules were in effect when it came
    host: str = ""  # IP address of a board on Ethernet

    @property
    def port(self) -> str:
        """The last part of its path, such as 1-2."""
        return self.path.rpartition("/")[2]

    @property
    def label(self) -> str:
        """Its short name, with its port where it has one; empty where it has no name."""
        return f"{self.link}-{self.port}" if self.link and not self.host else self.link

    def is_wanted(self, wanted: str) -> bool:
        """Whether a configuration that names a kind, a short name, a link or a node means this one."""
        short = (f"/dev/edged/{self.link}", f"/dev/edged/{self.link}-{self.port}", f"{self.link}-{self.port}")
        return wanted in (self.kind, self.link, self.node, *short, *self.links) if wanted else False


@dataclass(slots=True)
class Device:
    """One device and where it stands. ``user``: who has it."""

    sighting: Sighting
    state: State = State.SEEN
    reason: str = ""
    user: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether a worker may have it, or has it."""
        return self.state in (State.READY, State.IN_USE)


class DeviceTable:
    """Knows every device by its path. ``on_move`` hears of every move, after it."""

    def __init__(self, on_move: Callable[[Device], None] = lambda _: None) -> None:
        self._here: dict[str, Device] = {}
        self._lost: list[Device] = []  # oldest first
        self._on_move = on_move
        self.refused = 0  # devices beyond ALL_MAX

    def __len__(self) -> int:
        return len(self._here) + len(self._lost)

    def devices(self) -> tuple[Device, ...]:
        """Those that are here, by path, then the lost ones."""
        return (*(self._here[path] for path in sorted(self._here)), *self._lost)

    def appear(self, sighting: Sighting) -> Device | None:
        """Take what udev tells of a device. Returns it if it is to be asked (again)."""
        device = self._here.get(sighting.path)
        if device is not None and device.sighting.usb_id != sighting.usb_id:
            self.vanish(sighting.path, "another device is in its port")  # its removal was not heard
            device = None
        if device is None:
            return self._enter(sighting)
        if device.sighting == sighting and device.state is not State.UNUSABLE:
            return None
        device.sighting = sighting
        return device if device.state in AT_REST else None

    def vanish(self, path: str, reason: str = "it was unplugged") -> Device | None:
        """Take a removal. Returns the device, if it was one of ours."""
        device = self._here.pop(path, None)
        if device is None:
            return None
        user, device.user = device.user, ""
        self._lost.append(device)
        del self._lost[:-LOST_MAX]
        self._move(device, Event.REMOVE, f"{reason} while {user} had it" if user else reason)
        return device

    def keep_only(self, paths: Iterable[str]) -> list[Device]:
        """After udev's events were missed: whatever of its devices is at no other path than these has vanished."""
        gone = sorted({path for path, one in self._here.items() if not one.sighting.host} - set(paths))
        return [device for path in gone if (device := self.vanish(path)) is not None]

    def here(self, path: str) -> Device | None:
        """The device that is at a path."""
        return self._here.get(path)

    def is_here(self, device: Device) -> bool:
        """Whether it did not vanish meanwhile."""
        return self._here.get(device.sighting.path) is device

    def probing(self, device: Device) -> None:
        """It is being asked."""
        self._move(device, Event.PROBE, "")

    def probed(self, device: Device, problem: str, note: str = "") -> None:
        """It was asked. ``problem``: why it cannot be used, or nothing; ``note``: worth knowing all the same."""
        self._move(device, Event.FAIL if problem else Event.PASS, problem or note)

    def use(self, device: Device, user: str) -> None:
        """Somebody has it from now on; nobody, if ``user`` is empty."""
        if device.user != user and device.is_usable:
            was, device.user = device.user, user
            if bool(was) != bool(user):
                self._move(device, Event.TAKE if user else Event.GIVE, device.reason)

    def _enter(self, sighting: Sighting) -> Device | None:
        if len(self._here) >= ALL_MAX:
            self.refused += 1
            return None
        device = self._former(sighting)
        if device is None:
            device = self._here[sighting.path] = Device(sighting)
            self._on_move(device)
            return device
        former = device.sighting
        self._lost.remove(device)
        device.sighting = sighting
        self._here[sighting.path] = device
        self._move(device, Event.RETURN, _how_returned(former, sighting))
        return device

    def _former(self, sighting: Sighting) -> Device | None:
        """The lost device that this one is, the last lost first."""
        for fits in (_same_port, _same_serial, _with_firmware):
            for device in reversed(self._lost):
                if fits(device.sighting, sighting):
                    return device
        return None

    def _move(self, device: Device, event: Event, reason: str) -> None:
        device.state, device.reason = after(device.state, event), reason
        self._on_move(device)


def _same_port(lost: Sighting, found: Sighting) -> bool:
    return lost.path == found.path and (lost.kind, lost.link) == (found.kind, found.link)


def _same_serial(lost: Sighting, found: Sighting) -> bool:
    return bool(found.serial) and (lost.serial, lost.usb_id) == (found.serial, found.usb_id)


def _with_firmware(lost: Sighting, found: Sighting) -> bool:
    return bool(lost.becomes) and lost.becomes == found.usb_id


def _how_returned(former: Sighting, now: Sighting) -> str:
    told = [f"as {now.usb_id}, it was {former.usb_id}"] if former.usb_id != now.usb_id else []
    told += [f"in port {now.port}, it was in {former.port}"] if former.path != now.path else []
    return "; ".join(told)
