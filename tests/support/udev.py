"""The udev files of the tree, applied by udev's own tools to devices that umockdev makes up.

``apply`` runs ``udevadm test`` in a private mount namespace: only our rules lie in /etc/udev there, /run and the links
are thrown away, and a group ``edged`` exists. Nothing of this machine's udev is touched.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.parts import require
from tests.support.tree import ROOT

HWDB = ROOT / "udev/60-edged.hwdb"
RULES = ROOT / "udev/60-edged.rules"
GROUP_ID = 64987
USB_PORT = "/devices/pci0000:00/0000:00:14.0/usb1/1-2"

# udevadm test makes the links for real: it gets a /dev of its own.
SCRIPT = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/udev /run/etc /run/dev/char /run/dev/pts /run/dev/shm
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /run/dev
cp -r {etc}/. /run/etc
mount --bind /run/etc /etc/udev
mount --bind {group} /etc/group
mount --rbind /dev/pts /run/dev/pts
ln -s pts/ptmx /run/dev/ptmx
mount --rbind /run/dev /dev
exec umockdev-run --device {device} -- udevadm test --action={action} /sys{path}
"""


@dataclass(frozen=True, slots=True)
class Applied:
    """What the rules made of a device."""

    properties: dict[str, str]
    log: str

    @property
    def links(self) -> set[str]:
        """Its links below /dev/edged/."""
        return {link for link in self.properties.get("DEVLINKS", "").split() if link.startswith("/dev/edged/")}

    @property
    def tags(self) -> set[str]:
        """Its tags."""
        return set(self.properties.get("TAGS", "").strip(":").split(":")) - {""}

    @property
    def ours(self) -> dict[str, str]:
        """The properties of the table."""
        return {key: value for key, value in self.properties.items() if key.startswith("EDGED_")}

    def access(self, word: str) -> str:
        """GROUP or MODE, as our rules set it last; empty if they did not."""
        said: list[str] = re.findall(rf"60-edged\.rules:\d+ {word} (\S+)", self.log)
        return said[-1] if said else ""


def compile_hwdb(root: Path, *files: Path) -> Path:
    """The compiled database of some files; an error in one fails. Its exit code says nothing before systemd 254."""
    folder = root / "etc/udev/hwdb.d"
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())
    command = ["systemd-hwdb", "update", "--strict", f"--root={root}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return root / "etc/udev/hwdb.bin"


def query(root: Path, key: str) -> dict[str, str]:
    """What a compiled database says of a key."""
    command = ["systemd-hwdb", "query", f"--root={root}", key]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def apply(
    folder: Path,
    device: str,
    path: str,
    *,
    action: str = "add",
    rules: str = RULES.read_text(),
    tables: tuple[Path, ...] = (HWDB,),
) -> Applied:
    """What udev makes of a device, described as umockdev records one, below /sys."""
    require("udev tools", "umockdev", "root", "mount namespaces")
    etc = folder / "etc-udev"
    (etc / "rules.d").mkdir(parents=True, exist_ok=True)
    (etc / "rules.d/60-edged.rules").write_text(rules)
    (etc / "hwdb.bin").write_bytes(compile_hwdb(folder / "root", *tables).read_bytes())
    group, recorded = folder / "group", folder / "device.umockdev"
    kept = [line for line in Path("/etc/group").read_text().splitlines() if not line.startswith("edged:")]
    group.write_text("\n".join([*kept, f"edged:x:{GROUP_ID}:", ""]))
    recorded.write_text(device)
    script = SCRIPT.format(etc=etc, group=group, device=recorded, action=action, path=path)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    properties = dict(line.split("=", 1) for line in done.stdout.splitlines() if re.match(r"[A-Z0-9_]+=", line))
    return Applied(properties, done.stdout + done.stderr)


def usb_device(
    vendor: str, product: str, *, name: str = "Stick", serial: str = "SN1", path: str = USB_PORT, named: bool = False
) -> str:
    """A USB device with one interface, as umockdev records one."""
    number = int(path.rpartition("-")[2].replace(".", ""))
    swapped = "".join(word[2:] + word[:2] for word in (vendor, product)).upper()
    interface = "0902200001010080320904000002FF0000000705010200020007058102000200"
    descriptors = f"1201000200000040{swapped}000100{2 * named:02X}0001{interface}"
    node = f"bus/usb/001/{number:03d}"
    lines = [f"P: {path}", f"N: {node}={descriptors}", f"E: DEVNAME=/dev/{node}", "E: DEVTYPE=usb_device"]
    lines += ["E: SUBSYSTEM=usb", "E: BUSNUM=001", f"E: DEVNUM={number:03d}", "E: MAJOR=189", f"E: MINOR={number - 1}"]
    lines += [f"E: PRODUCT={vendor.lstrip('0')}/{product.lstrip('0')}/100", "E: TYPE=0/0/0"]
    lines += [f"A: idVendor={vendor}\\n", f"A: idProduct={product}\\n", "A: bcdDevice=0100\\n", "A: busnum=1\\n"]
    lines += [f"A: devnum={number}\\n", "A: speed=480\\n", "A: bConfigurationValue=1\\n", "A: bNumConfigurations=1\\n"]
    lines += [
        "A: bDeviceClass=00\\n",
        f"A: product={name}\\n",
        f"A: serial={serial}\\n",
        f"H: descriptors={descriptors}",
    ]
    return "\n".join(lines) + "\n\n"


def device(path: str, subsystem: str, *properties: str, node: str = "", attributes: tuple[str, ...] = ()) -> str:
    """Any other device, as umockdev records one."""
    lines = [f"P: {path}", f"E: SUBSYSTEM={subsystem}", *(f"E: {one}" for one in properties)]
    if node:
        lines[1:1] = [f"N: {node}"]
        lines += [f"E: DEVNAME=/dev/{node}", "E: MAJOR=81", "E: MINOR=0"]
    lines += [f"A: {one}\\n" for one in attributes]
    return "\n".join(lines) + "\n\n"
