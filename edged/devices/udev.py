"""What udev tells of devices: those that are here, and those that come and go. The one file that knows pyudev.

Reads the properties that ``udev/60-edged.hwdb`` and the rules set, and holds no table of its own. Of a removed device
only its path is told: its properties are gone by then.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edged.devices.table import Sighting
from edged.errors import EdgedError

SUBSYSTEMS = ("usb", "pci", "platform", "video4linux", "iio", "tty")  # those of the rules
RULES = "60-edged.rules"
RULE_FOLDERS = ("/etc/udev/rules.d", "/run/udev/rules.d", "/usr/local/lib/udev/rules.d", "/usr/lib/udev/rules.d",
                "/lib/udev/rules.d")  # fmt: skip
BUFFER_BYTES = 4 << 20  # for bursts: a hub with everything behind it
HINT = "docs/devices.md says how to install the rules"


class Missed(Exception):
    """Events were lost: look at everything again."""


class Unwatched(EdgedError):
    """Devices cannot be watched here."""

    code = "devices"


class Udev:
    """One connection to udev. ``fileno`` becomes readable when ``changes`` has something to tell."""

    def __init__(self) -> None:
        try:
            import pyudev  # type: ignore[import-untyped]  # the package carries no types
        except ImportError as error:
            raise Unwatched(f"pyudev cannot be used: {error}", "pip install edged[devices]") from None
        try:
            self._context = pyudev.Context()
            self._monitor = pyudev.Monitor.from_netlink(self._context)
            for subsystem in SUBSYSTEMS:
                self._monitor.filter_by(subsystem)
            with contextlib.suppress(PermissionError):  # then the system's own size has to do
                self._monitor.set_receive_buffer_size(BUFFER_BYTES)
            self._monitor.start()
        except OSError as error:
            raise Unwatched(f"udev's events cannot be received: {error}", "netlink sockets must be allowed") from None

    def fileno(self) -> int:
        """To be waited for."""
        number: int = self._monitor.fileno()
        return number

    def here(self) -> list[Sighting]:
        """Every device of the table that is here."""
        found = [_sighting(one) for name in SUBSYSTEMS for one in self._context.list_devices(subsystem=name)]
        return [sighting for sighting in found if sighting is not None]

    def changes(self) -> Iterator[Sighting | str]:
        """What came or changed as a Sighting, what was removed as its path; ends when there is nothing more yet.

        Raises Missed when the kernel dropped events.
        """
        while True:
            try:
                device = self._monitor.poll(timeout=0)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise Missed from None
                raise
            if device is None:
                return
            if device.action == "remove":
                yield str(device.device_path)
                continue
            sighting = _sighting(device)
            if sighting is not None:
                yield sighting


def remark() -> str:
    """What is wrong with udev here as a whole, and what to do; empty if nothing is."""
    if not any((Path(folder) / RULES).exists() for folder in RULE_FOLDERS):
        return f"{RULES} is not installed, so devices are not recognised ({HINT})"
    return ""


def _sighting(device: Any) -> Sighting | None:
    """A device of the table; None for any other, and for the interfaces of a USB device."""
    words = device.properties
    kind = words.get("EDGED_KIND", "")
    if not kind or (words.get("SUBSYSTEM") == "usb" and words.get("DEVTYPE") != "usb_device"):
        return None
    is_usb = words.get("SUBSYSTEM") == "usb"
    return Sighting(
        path=str(device.device_path),
        kind=kind,
        name=words.get("EDGED_NAME", ""),
        link=words.get("EDGED_LINK", ""),
        engine=words.get("EDGED_ENGINE", ""),
        becomes=words.get("EDGED_BECOMES", "").lower(),
        quirk=words.get("EDGED_QUIRK", ""),
        usb_id=_usb_id(words.get("PRODUCT", "")) if is_usb else "",
        serial=words.get("ID_SERIAL_SHORT", ""),
        product=words.get("ID_MODEL", ""),
        node=words.get("DEVNAME", ""),
        links=tuple(sorted(link for link in words.get("DEVLINKS", "").split() if link.startswith("/dev/edged/"))),
        bus=int(words.get("BUSNUM", "0")) if is_usb else 0,
        address=int(words.get("DEVNUM", "0")) if is_usb else 0,
        ruled="edged" in words.get("TAGS", "").split(":"),
    )


def _usb_id(product: str) -> str:
    """``18d1:9302`` of the kernel's ``18d1/9302/100``, which leaves out leading zeros."""
    vendor, _, rest = product.partition("/")
    return f"{vendor:0>4}:{rest.partition('/')[0]:0>4}".lower()
