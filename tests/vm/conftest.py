"""The machines of this rung: one image, edged installed into it once, and a fresh machine for each module that asks."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.package import package as build_package
from tests.support.parts import require
from tests.vm.image import Image, image, make_disk
from tests.vm.installation import installed_disk
from tests.vm.machine import Guest, accelerator, overlay

HERE = Path(__file__).parent
RUNG_LIMIT_S = 900  # of one test, its fixtures included: an uncached image on two busy cores takes three minutes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("vm")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(RUNG_LIMIT_S))


@pytest.fixture(scope="session")
def vm_image() -> Image:
    require("x86-64 Linux", "root", "qemu", "tools of a Debian image")
    return image()


class Machines:
    """Boots machines; their disks start as Debian with edged installed."""

    def __init__(self, image: Image, installed: Path, folder: Path) -> None:
        self.boots: list[float] = []
        self._image = image
        self._installed = installed
        self._folder = folder
        self._names = itertools.count(1)

    def disk(self) -> Path:
        """A new disk."""
        return overlay(self._installed, self._folder / f"disk-{next(self._names)}.qcow2")

    def bare_disk(self) -> Path:
        """A new disk with Debian and nothing of edged."""
        bare = self._folder / "bare.raw"
        if not bare.exists():
            make_disk(self._image.root, bare)
        return overlay(bare, self._folder / f"disk-{next(self._names)}.qcow2")

    def boot(self, disk: Path, *, processors: int = 2, others: Sequence[Path] = ()) -> Guest:
        """Boot a machine on a disk, which takes what it writes, as do ``others``. Use it as a context manager."""
        share = disk.with_suffix(".share")
        share.mkdir(exist_ok=True)
        guest = Guest(self._image, disk, share, log=disk.with_suffix(".log"), processors=processors, others=others)
        self.boots.append(guest.boot_s)
        return guest


@pytest.fixture(scope="session")
def package(vm_image: Image) -> Path:
    """edged's Debian package: the one that EDGED_DEB names, else as this working tree makes it."""
    return build_package()


@pytest.fixture(scope="session")
def machines(vm_image: Image, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    started = time.monotonic()
    folder = tmp_path_factory.mktemp("vm")
    made = Machines(vm_image, installed_disk(vm_image, package, folder), folder)
    installed_s = time.monotonic() - started
    yield made
    total_s = vm_image.built_s + time.monotonic() - started
    boots = " ".join(f"{boot_s:.0f}" for boot_s in made.boots)
    print(
        f"\nmachines ({accelerator()}): image {vm_image.built_s:.0f} s, disk {installed_s:.0f} s, boots {boots} s, "
        f"the whole rung {total_s:.0f} s"
    )


@pytest.fixture(scope="module")
def guest(machines: Machines) -> Iterator[Guest]:
    """A machine of the module's own, with edged installed; its service starts with the machine."""
    with machines.boot(machines.disk()) as guest:
        yield guest
