"""What a virtual machine boots: Debian 12 with its own kernel, built once and kept in the user's cache.

A build makes the tree ``root``, ``kernel`` and ``initrd`` in a directory named by a digest of what they are made from:
this file and the files below ``guest/system``. The guest gets no network, so whatever it needs from Debian is in
``PACKAGES``, with what edged's own package depends on; that is installed later (``tests.vm.installation``).

``python -m tests.vm.image`` builds it and prints where it is. Needs root, mmdebstrap and, once, Debian's archive.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.parts import SEARCH_PATH

SUITE = "bookworm"  # the oldest Debian whose Python runs edged
PYTHON = "3.11"  # that of the suite
SYSTEM = Path(__file__).parent / "guest" / "system"  # copied over the root as it is
PACKAGES = (
    "busybox-static", "dbus", "init-system-helpers", "kmod", "libnss-systemd", "libudev1", "libusb-1.0-0", "mosquitto",
    "passwd", "procps", "python3", "python3-systemd", "sqlite3", "systemd", "systemd-sysv", "udev", "usbutils",
    "v4l-utils",
)  # fmt: skip
EXCLUDED = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*")
BOOT_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "crc32c-intel", "libcrc32c", "ext4")
MODULES = (
    *BOOT_MODULES, "9p", "9pnet_virtio", "virtio_console", "virtio-rng", "configfs", "loop", "overlay", "fuse",
    # USB: controllers, what is plugged into QEMU's, and gadgets that pretend to be any device
    "xhci-pci", "ehci-pci", "usb-storage", "usbhid", "cdc-acm", "ftdi_sio", "usbmon",
    "dummy_hcd", "libcomposite", "usb_f_ss_lb", "usb_f_fs", "usb_f_acm", "usb_f_uvc",
    # cameras
    "vivid", "uvcvideo",
)  # fmt: skip
MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "getty.target", "mosquitto.service", "systemd-logind.service", "systemd-networkd.service",
    "systemd-networkd.socket", "systemd-timesyncd.service",
)  # fmt: skip
MACHINE_ID = "e" * 32  # without one, systemd would take each boot from a new disk for the first of a new machine
DISK_MB = 3000  # sparse: only what is in it takes room
# The root device appears a moment after its driver.
INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "$module"; done </modules
tries=0
until [ -b /dev/vda ] || [ $tries = 100 ]; do /bin/busybox sleep 0.1; tries=$((tries + 1)); done
/bin/busybox mount -t ext4 /dev/vda /disk && /bin/busybox mount --move /dev /disk/dev
exec /bin/busybox switch_root /disk /sbin/init
"""


@dataclass(frozen=True)
class Image:
    """What a machine boots; read-only. ``built_s`` is 0 when it came from the cache."""

    root: Path
    kernel: Path
    initrd: Path
    built_s: float


def image() -> Image:
    """The image, built if it is not in the cache. Older ones are removed then. Raises CalledProcessError."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged-vm"
    home.mkdir(parents=True, exist_ok=True)
    target = home / _key()
    with _locked(home):
        started = time.monotonic()
        built = not target.is_dir()
        if built:
            _build(home, target)
        took_s = time.monotonic() - started if built else 0.0
    return Image(target / "root", target / "kernel", target / "initrd", took_s)


def _key() -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in _system_files():
        digest.update(f"{file.relative_to(SYSTEM)}\0".encode() + file.read_bytes())
    return f"{SUITE}-{digest.hexdigest()[:16]}"


def _system_files() -> list[Path]:
    return sorted(path for path in SYSTEM.rglob("*") if path.is_file())


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once wait for each other
        yield


def _build(home: Path, target: Path) -> None:
    for old in home.glob(f"{SUITE}-*"):
        shutil.rmtree(old)
    part = home / "part"
    shutil.rmtree(part, ignore_errors=True)
    root = part / "root"
    part.mkdir()
    _debian(root, part)
    version = _add_kernel(root, part)
    _configure(root)
    (part / "initrd").write_bytes(_initrd(root, version))
    shutil.rmtree(part / "unpacked")
    part.rename(target)


def make_disk(root: Path, disk: Path) -> None:
    """A raw disk that holds one ext4 with this tree."""
    with disk.open("wb") as file:
        file.truncate(DISK_MB << 20)
    run("mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1", "-d", str(root), str(disk))


def _debian(root: Path, part: Path) -> None:
    """A minimal Debian in ``root``, and the package of its newest kernel in ``part``."""
    kernel = "apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: //p' | head -n 1"
    fetch = f'export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"; cd {part} && apt-get download -qq "$({kernel})"'
    options = [f"--dpkgopt=path-exclude={path}" for path in EXCLUDED]
    run(
        *("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "--format=directory", *options),
        *("--aptopt=APT::Install-Recommends false", f"--include={','.join(PACKAGES)}", f"--customize-hook={fetch}"),
        *("--skip=check/empty", SUITE, str(root)),
    )


def _add_kernel(root: Path, part: Path) -> str:
    """Unpack the kernel beside the root, and take only the modules that are needed. Returns its version."""
    [package] = part.glob("linux-image-*.deb")
    unpacked = part / "unpacked"
    run("dpkg-deb", "-x", str(package), str(unpacked))
    package.unlink()
    [kernel] = (unpacked / "boot").glob("vmlinuz-*")
    version = kernel.name.removeprefix("vmlinuz-")
    (part / "kernel").write_bytes(_unpacked(kernel.read_bytes()))
    modules = root / "lib/modules" / version
    modules.parent.mkdir()
    (unpacked / "lib/modules" / version).rename(modules)
    run("chroot", str(root), "depmod", version)
    wanted = set(_closure(modules, MODULES))
    for file in (modules / "kernel").rglob("*.ko"):
        if str(file.relative_to(modules)) not in wanted:
            file.unlink()
    run("chroot", str(root), "depmod", version)
    return version


def _unpacked(image: bytes) -> bytes:
    """The kernel itself, from where its boot header says: an emulated machine would take ten seconds to unpack it."""
    start = (image[0x1F1] + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
    kernel = lzma.LZMADecompressor().decompress(image[start : start + int.from_bytes(image[0x24C:0x250], "little")])
    assert kernel.startswith(b"\x7fELF"), "Debian packs its kernel in another way now"
    return kernel


def _closure(modules: Path, names: Sequence[str]) -> list[str]:
    """The files of these modules and of all that they need, in the order in which they can be loaded."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, others = line.partition(":")
        needs[file] = others.split()
    named = {_plain(Path(file).stem): file for file in needs}
    files: dict[str, None] = {}
    for name in names:
        file = named[_plain(name)]
        files |= dict.fromkeys([*reversed(needs[file]), file])
    return list(files)


def _plain(name: str) -> str:
    return re.sub("-", "_", name)


def _configure(root: Path) -> None:
    for file in _system_files():
        target = root / file.relative_to(SYSTEM)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    (root / "etc/hostname").write_text("guest\n")
    (root / "etc/machine-id").write_text(f"{MACHINE_ID}\n")
    (root / "mnt/host").mkdir()
    units = root / "etc/systemd/system"
    for unit in MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    run("systemctl", f"--root={root}", "--quiet", "enable", "vm-agent.service")


def _initrd(root: Path, version: str) -> bytes:
    """Busybox, the modules that the root's disk needs, and a few lines that mount it."""
    tree = root.parent / "unpacked" / "initrd"
    modules = root / "lib/modules" / version
    for folder in ("bin", "dev", "disk"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(root / "bin/busybox", tree / "bin/busybox")
    names = []
    for file in _closure(modules, BOOT_MODULES):
        names.append(f"/{Path(file).name}\n")
        shutil.copyfile(modules / file, tree / Path(file).name)
    (tree / "modules").write_text("".join(names))
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    listing = "".join(f"{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
    archive = run(str(root / "bin/busybox"), "cpio", "-o", "-H", "newc", cwd=tree, given=listing.encode())
    return gzip.compress(archive, compresslevel=1)


def run(*command: str, cwd: Path | None = None, given: bytes = b"") -> bytes:
    """Run a program; what it said is shown only when it failed."""
    environment = {**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C"}
    done = subprocess.run(command, cwd=cwd, input=given, env=environment, capture_output=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr.decode(errors="replace")[-4000:])
        done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    print(image().root.parent)
