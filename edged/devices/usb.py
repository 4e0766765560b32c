"""Whether a USB device answers, and what it calls itself. The one file that knows pyusb. Blocks: call it in a thread.

Claims no interface and sends nothing but requests for its description, which every device must answer.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """What a device said. ``problem`` is empty when it answered; ``note`` says why nobody asked."""

    product: str = ""
    problem: str = ""
    note: str = ""


def ask(bus: int, address: int) -> Answer:
    """Ask the device at this place of the bus for its description and its name."""
    try:
        import usb.core  # type: ignore[import-untyped]  # the package carries no types
        import usb.util  # type: ignore[import-untyped]  # the package carries no types
    except ImportError as error:
        return Answer(note=f"not asked: pyusb cannot be used: {error}")
    try:
        device = usb.core.find(bus=bus, address=address)
    except usb.core.NoBackendError:
        return Answer(note="not asked: libusb-1.0 is not installed")
    except usb.core.USBError as error:
        return Answer(problem=f"libusb cannot look for it: {error.strerror}")
    if device is None:
        return Answer(problem="libusb does not see it")
    try:
        return Answer(product=str(usb.util.get_string(device, device.iProduct) or "") if device.iProduct else "")
    except usb.core.USBError as error:
        return Answer(problem=f"it does not answer: {error.strerror}")
    except ValueError:  # pyusb's word for: it says that it has a name, and does not tell it
        return Answer(problem="it does not answer: its name cannot be read")
    finally:
        usb.util.dispose_resources(device)
