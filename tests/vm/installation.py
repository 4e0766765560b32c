"""edged on a disk from which machines start: its Debian package, as this working tree makes it.

It is installed in the tree that becomes the disk, since a machine that is emulated takes minutes for it; that the
package installs in a running machine is a test of its own. The tests and the models are laid beside it (/srv/tree),
for what runs in the guest.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.tree import relative, tracked
from tests.vm.image import Image, make_disk, run

TREE = "srv/tree"
INSTALL = 'mount -t proc proc "$0/proc"; chroot "$0" dpkg --force-unsafe-io --install /edged.deb'


def installed_disk(image: Image, package: Path, folder: Path) -> Path:
    """A raw disk in ``folder``: the image with the package installed; its services start with the machine."""
    root = folder / "root"
    run("cp", "-a", "--reflink=auto", str(image.root), str(root))
    shutil.copyfile(package, root / "edged.deb")
    run("unshare", "--mount", "--propagation", "private", "sh", "-eu", "-c", INSTALL, str(root))
    (root / "edged.deb").unlink()
    for file in tracked("tests", "models", "systemd"):
        target = root / TREE / relative(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    disk = folder / "installed.raw"
    make_disk(root, disk)
    shutil.rmtree(root)
    return disk
