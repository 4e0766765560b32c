"""An engine that sends every input through a USB device, and computes with what comes back. Runs in a guest's worker.

Each frame goes to the device's bulk OUT endpoint and is read from its IN endpoint again, in many small transfers with
a pause between them, as a stick that computes would take its time; ONNX Runtime computes with those bytes. So no result
exists without the device, and a device that goes takes the frame with it: USBError ends the worker. PROGRESS tells how
far it is: frames begun, frames done, transfers of the present one.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import usb.core  # type: ignore[import-untyped]  # ships no stubs
import usb.util  # type: ignore[import-untyped]  # ships no stubs

from edged.engines.layout import Role
from edged.engines.wire import Load
from edged.engines.worker import onnxruntime
from edged.engines.worker.arrays import Arrays

LINK = Path("/dev/edged/coral")  # what the rules make
PROGRESS = Path("/var/lib/edged/cache/usb-progress")  # of the daemon's state, what a worker may write
CHUNK = 64  # bytes of a transfer
PAUSE_S = float(os.environ.get("USB_PAUSE_S", "0.02"))  # between two of them
TIMEOUT_MS = 5000


class Engine:
    """ONNX Runtime behind a USB device."""

    version = f"usb {onnxruntime.Engine.version}"

    def load(self, load: Load, memory: mmap.mmap, progress: Callable[[str], None]) -> Model:
        """Open the device first: without it there is nothing to load."""
        stick = Stick(LINK)
        return Model(onnxruntime.Engine().load(load, memory, progress), Arrays(memory, load.layout), stick)


class Model:
    """Inputs go through the device, in place."""

    def __init__(self, inner: onnxruntime.Model, arrays: Arrays, stick: Stick) -> None:
        self.plan = f"usb-{inner.plan}"
        self.timings = inner.timings
        self._inner = inner
        self._arrays = arrays
        self._stick = stick
        self._begun = self._done = 0

    def infer(self, slot: int, batch: int) -> None:
        """Run a window on what the device gave back."""
        self._begun += 1
        for array in self._arrays.of(slot, Role.INPUT, batch).values():
            self._through(array)
        self._done += 1
        self._tell(0)
        self._inner.infer(slot, batch)

    def step(self, slot: int, batch: int) -> None:
        """Run one time step on what the device gave back."""
        for array in self._arrays.of(slot, Role.STEP_INPUT, batch).values():
            self._through(array)
        self._inner.step(slot, batch)

    def _through(self, array: Any) -> None:
        data = array.view("uint8").reshape(-1)
        given = data.tobytes()
        data[:] = 0  # what does not come back is not there
        for number, start in enumerate(range(0, len(given), CHUNK), 1):
            part = given[start : start + CHUNK]
            data[start : start + len(part)] = self._stick.echo(part)
            self._tell(number)

    def _tell(self, transfers: int) -> None:
        part = PROGRESS.with_suffix(".part")
        part.write_text(f"{self._begun} {self._done} {transfers}\n")
        part.rename(PROGRESS)


class Stick:
    """The device behind a node of usbfs: claimed, its two bulk endpoints at hand."""

    def __init__(self, link: Path) -> None:
        node = link.resolve(strict=True)
        bus, address = int(node.parent.name), int(node.name)
        self._device = usb.core.find(bus=bus, address=address)
        if self._device is None:
            raise OSError(f"{node} is no USB device")
        interface = self._device.get_active_configuration()[(0, 0)]
        usb.util.claim_interface(self._device, interface)
        self._out, self._in = (
            usb.util.find_descriptor(
                interface, custom_match=lambda e, d=direction: usb.util.endpoint_direction(e.bEndpointAddress) == d
            )
            for direction in (usb.util.ENDPOINT_OUT, usb.util.ENDPOINT_IN)
        )

    def echo(self, data: bytes) -> Any:
        """Send and receive. Raises USBError, and OSError for another number of bytes."""
        self._out.write(data, TIMEOUT_MS)
        time.sleep(PAUSE_S)
        back = self._in.read(len(data), TIMEOUT_MS)
        if len(back) != len(data):
            raise OSError(f"{len(back)} of {len(data)} bytes came back")
        return back
