"""A USB device of any id, plugged into the guest's own kernel: a loopback gadget on the dummy host controller.

What is written to its bulk OUT endpoint comes back from its bulk IN endpoint. Everything between is the kernel's real
USB stack: enumeration, hub, usbfs, udev.
"""

from __future__ import annotations

from tests.vm.machine import Guest

HOME = "/sys/kernel/config/usb_gadget/stick"
MAKE = f"""
modprobe -a dummy_hcd usb_f_ss_lb
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
mkdir -p {HOME}/strings/0x409 {HOME}/configs/c.1 {HOME}/functions/Loopback.0
cd {HOME}
echo 0x0200 >bcdUSB
echo "Stick of the tests" >strings/0x409/product
echo 4711 >strings/0x409/serialnumber
ln -s functions/Loopback.0 configs/c.1/
"""


class Gadget:
    """A stick that can be plugged in under any id, again and again."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        guest.shell(MAKE)

    def plug(self, usb_id: str) -> None:
        """Plug it in as ``vendor:product``, and wait until udev is done with it."""
        vendor, product = usb_id.split(":")
        self._guest.shell(f"cd {HOME}; echo 0x{vendor} >idVendor; echo 0x{product} >idProduct; ls /sys/class/udc >UDC")
        self._guest.shell(
            f"for try in $(seq 100); do grep -lsx {product} /sys/bus/usb/devices/*/idProduct && break; sleep 0.1; done;"
            "udevadm settle"
        )

    def pull(self) -> None:
        """Pull it out, whatever is in flight."""
        self._guest.shell(f"echo >{HOME}/UDC")
