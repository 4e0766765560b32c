"""Made-up devices for a process that runs under ``umockdev-wrapper``: they come and go below a /sys of its own.

The library is called through ctypes: PyGObject belongs to the system's Python, not to the environment of the tests.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from tests.support.parts import program
from tests.support.udev import HWDB, compile_hwdb, query, usb_device


def command(scenario: str, *arguments: str) -> list[str]:
    """The command that runs a scenario of ``tests/support/device_scenarios.py`` with devices of its own."""
    wrapper = program("umockdev-wrapper")
    assert wrapper is not None
    return [wrapper, sys.executable, "-m", "tests.support.device_scenarios", scenario, *arguments]


class Testbed:
    """A /sys and a /dev that are empty at first. ``table``: a folder for the compiled database."""

    def __init__(self, table: Path) -> None:
        self._lib = ctypes.CDLL("libumockdev.so.0")
        self._lib.umockdev_testbed_new.restype = ctypes.c_void_p
        self._lib.umockdev_testbed_get_root_dir.restype = ctypes.c_void_p
        self._lib.umockdev_testbed_get_root_dir.argtypes = [ctypes.c_void_p]
        for name, arguments in (("add_from_string", 2), ("uevent", 2), ("remove_device", 1)):
            function = getattr(self._lib, f"umockdev_testbed_{name}")
            function.argtypes = [ctypes.c_void_p] + [ctypes.c_char_p] * (arguments if name != "add_from_string" else 1)
            if name == "add_from_string":
                function.argtypes.append(ctypes.c_void_p)
        assert "libumockdev" in os.environ.get("LD_PRELOAD", ""), "not under umockdev-wrapper"
        self._bed = self._lib.umockdev_testbed_new()
        self._table = table
        self._words: dict[str, dict[str, str]] = {}
        compile_hwdb(table, HWDB)

    @property
    def root(self) -> Path:
        """Where its files are in truth."""
        found = ctypes.cast(self._lib.umockdev_testbed_get_root_dir(self._bed), ctypes.c_char_p).value
        assert found is not None
        return Path(os.fsdecode(found))

    def words(self, vendor: str, product: str) -> dict[str, str]:
        """What the table says of a USB device."""
        key = f"usb:v{vendor.upper()}p{product.upper()}:Stick"
        if key not in self._words:
            self._words[key] = query(self._table, key)
        return self._words[key]

    def plug(
        self, vendor: str, product: str, path: str, *, serial: str = "", ruled: bool = True, named: bool = False
    ) -> None:
        """A USB device comes, with what the table and the rules give it."""
        words = self.words(vendor, product) | {"ID_SERIAL_SHORT": serial, "TAGS": ":edged:" if ruled else ""}
        first, rest = usb_device(vendor, product, path=path, serial=serial, named=named).split("E: SUBSYSTEM", 1)
        told = "".join(f"E: {key}={value}\n" for key, value in words.items() if value)
        self.add(f"{first}{told}E: SUBSYSTEM{rest}")

    def add(self, description: str) -> None:
        """Any device comes; udev tells of it."""
        assert self._lib.umockdev_testbed_add_from_string(self._bed, description.encode(), None)

    def unplug(self, path: str) -> None:
        """It goes, and udev tells of it."""
        self._lib.umockdev_testbed_uevent(self._bed, f"/sys{path}".encode(), b"remove")
        self._lib.umockdev_testbed_remove_device(self._bed, f"/sys{path}".encode())

    def change(self, path: str) -> None:
        """udev tells that something about it changed."""
        self._lib.umockdev_testbed_uevent(self._bed, f"/sys{path}".encode(), b"change")
