"""Scenarios of devices that come and go, each in a process of its own under ``umockdev-wrapper``.

They use the real pyudev and pyusb, and the real table as udev's tools read it. ``tests/integration/test_devices.py``
runs each by its name; a failed assertion ends it with what it says.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from edged.devices.table import LOST_MAX
from edged.devices.watch import Watch
from edged.status import DeviceFacts
from tests.support.descriptors import open_descriptors
from tests.support.udev import device
from tests.support.umock import Testbed

HUB = "/devices/pci0000:00/0000:00:14.0/usb1"
PORT = f"{HUB}/1-2"
OTHER_PORT = f"{HUB}/1-3"
CORAL, CORAL_WITH_FIRMWARE, NCS2 = ("1a6e", "089a"), ("18d1", "9302"), ("03e7", "2485")
EVENTS = 1000


@asynccontextmanager
async def watching(moves: list[DeviceFacts] | None = None) -> AsyncIterator[Watch]:
    """A watch that has seen everything that is here."""
    watch = Watch(on_move=(moves if moves is not None else []).append)
    task = asyncio.create_task(watch.run())
    try:
        async with asyncio.timeout(10):
            await watch.surveyed.wait()
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(watch: Watch, *states: str) -> DeviceFacts | None:
    """Wait until the devices have these states, in the order in which they are told."""
    try:
        async with asyncio.timeout(10):
            while [facts.state for facts in watch.facts()] != list(states):
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"wanted {states}, there are {watch.facts()}") from None
    return watch.facts()[0] if states else None


async def enumerates(bed: Testbed) -> None:
    """What is here at the start is found, by the words of the table; what the table does not name is not."""
    bed.plug(*CORAL_WITH_FIRMWARE, PORT, serial="A1")
    bed.plug("0403", "6001", OTHER_PORT)
    bed.add(device("/devices/virtual/iio/iio:device0", "iio", "EDGED_KIND=sensor", "TAGS=:edged:", node="iio:device0"))
    async with watching() as watch:
        stick, sensor = watch.facts()
        assert (stick.kind, stick.name, stick.link) == ("accelerator", "Coral USB accelerator", "coral-1-2"), stick
        assert (stick.id, stick.serial, stick.state) == ("18d1:9302", "A1", "ready"), stick
        assert (sensor.kind, sensor.node, sensor.state) == ("sensor", "/dev/iio:device0", "ready"), sensor
        for wanted in ("coral", "accelerator", "/dev/edged/coral", "coral-1-2", "sensor"):
            assert watch.missing(wanted) == "", wanted
        assert watch.missing("ncs2").startswith("there is no device ncs2")


async def comes_and_goes(bed: Testbed) -> None:
    """Fifty times: seen, asked, lost, returned; it is one device all the time."""
    moves: list[DeviceFacts] = []
    async with watching(moves) as watch:
        assert watch.facts() == ()
        for _ in range(50):
            bed.plug(*CORAL_WITH_FIRMWARE, PORT)
            await until(watch, "ready")
            bed.unplug(PORT)
            lost = await until(watch, "lost")
            assert lost is not None and lost.reason == "it was unplugged"
            assert "is lost: it was unplugged" in watch.missing("coral")
    states = [facts.state for facts in moves]
    assert states == ["seen", "probing", "ready", "lost", *(["returned", "probing", "ready", "lost"] * 49)]


async def renumerates(bed: Testbed) -> None:
    """A stick that gets its firmware is the same device under another id, be it in its port or on the faster bus."""
    for place in (PORT, "/devices/pci0000:00/0000:00:14.0/usb2/2-2"):
        moves: list[DeviceFacts] = []
        bed.plug(*CORAL, PORT)
        async with watching(moves) as watch:
            before = await until(watch, "ready")
            assert before is not None and "18d1:9302" in before.reason
            bed.unplug(PORT)
            bed.plug(*CORAL_WITH_FIRMWARE, place)
            async with asyncio.timeout(10):
                while [(one.id, one.path, one.state) for one in watch.facts()] != [("18d1:9302", place, "ready")]:
                    await asyncio.sleep(0.01)
        told = next(facts for facts in moves if facts.state == "returned")
        assert told.reason.startswith("as 18d1:9302, it was 1a6e:089a"), told
        bed.unplug(place)


async def moves_to_another_port(bed: Testbed) -> None:
    """By its serial a device is known again in another port; one without a serial is another device there."""
    for serial, count in (("A1", 1), ("", 2)):
        bed.plug(*NCS2, PORT, serial=serial)
        async with watching() as watch:
            await until(watch, "ready")
            bed.unplug(PORT)
            await until(watch, "lost")
            bed.plug(*NCS2, OTHER_PORT, serial=serial)
            await until(watch, *["ready", "lost"][:count])
        bed.unplug(OTHER_PORT)


async def does_not_answer(bed: Testbed) -> None:
    """A stick that is on the bus and gives no answer cannot be used; its descriptor says that it has a name."""
    bed.plug(*NCS2, PORT, named=True)
    async with watching() as watch:
        (stick,) = watch.facts()
        assert stick.state == "unusable" and stick.reason.startswith("it does not answer: "), stick


async def is_denied(bed: Testbed) -> None:
    """What we may not open says whose it is, or that the rules are missing; it is asked again when that changed."""
    give_up_overriding()
    bed.plug(*CORAL_WITH_FIRMWARE, PORT)
    bed.plug(*NCS2, OTHER_PORT, ruled=False)
    nodes = sorted((bed.root / "dev/bus/usb/001").iterdir())
    assert len(nodes) == 2
    for node in nodes:
        node.chmod(0o060)  # for its group, and not for its owner, who we are
        assert not os.access(node, os.R_OK)
    async with watching() as watch:
        ours, unruled = watch.facts()
        assert (ours.state, unruled.state) == ("unusable", "unusable")
        assert "permission denied for /dev/bus/usb/001/002; it is for group" in ours.reason, ours
        assert "60-edged.rules is not in effect" in unruled.reason, unruled
        assert "is unusable: permission denied" in watch.missing("coral")
        for node in nodes:
            node.chmod(0o660)
        for path in (PORT, OTHER_PORT):
            bed.change(path)
        await until(watch, "ready", "ready")
        assert "was not in effect when it came" in watch.facts()[1].reason


async def is_not_denied_to_root(bed: Testbed) -> None:
    """The control of ``is_denied``: the same node, and nothing given up."""
    assert os.geteuid() == 0, "only root may override"
    bed.plug(*CORAL_WITH_FIRMWARE, PORT)
    (node,) = (bed.root / "dev/bus/usb/001").iterdir()
    node.chmod(0o060)
    async with watching() as watch:
        assert [facts.state for facts in watch.facts()] == ["ready"]


def held() -> tuple[int, int]:
    """Open files and resident kilobytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return open_descriptors(), pages * os.sysconf("SC_PAGE_SIZE") // 1024


async def has_heard(watch: Watch, here: dict[str, tuple[str, str]]) -> None:
    """Wait until what udev told so far was heard, however busy the machine is."""
    known = {path: ":".join(usb_id) for path, usb_id in here.items() if usb_id != ("0403", "6001")}
    async with asyncio.timeout(30):
        while {one.path: one.id for one in watch.facts() if one.state != "lost"} != known:
            await asyncio.sleep(0.005)


async def leaks_nothing(bed: Testbed) -> None:
    """A thousand random events later: the same open files, hardly more memory, a bounded table, the true devices."""
    choose = random.Random(5)
    ids = [CORAL, CORAL_WITH_FIRMWARE, NCS2, ("152a", "8419"), ("0403", "6001")]
    here: dict[str, tuple[str, str]] = {}
    before = (0, 0)
    async with watching() as watch:
        for count in range(EVENTS):
            path = f"{HUB}/1-{choose.randrange(2, 100)}"
            if path not in here:
                here[path] = choose.choice(ids)
                bed.plug(*here[path], path, serial=choose.choice(["", "A", "B"]))
            elif choose.random() < 0.2:
                bed.change(path)
            else:
                bed.unplug(path)
                del here[path]
            if count % 4 == 0:  # in bursts; the made-up socket ends the process when it overflows
                await has_heard(watch, here)
            if count == EVENTS // 5:  # caches are warm
                before = held()
        known = {path: ":".join(usb_id) for path, usb_id in here.items() if usb_id != ("0403", "6001")}
        async with asyncio.timeout(30):
            while {one.path: one.id for one in watch.facts() if one.state == "ready"} != known:
                await asyncio.sleep(0.05)
        after = held()
        lost = [one for one in watch.facts() if one.state == "lost"]
        assert len(lost) <= LOST_MAX and len(watch.facts()) == len(known) + len(lost)
        print(f"{EVENTS} events: {before} -> {after} (files, kB), {len(known)} here, {len(lost)} lost remembered")
        assert after[0] <= before[0], f"open files: {before} -> {after}"
        assert after[1] - before[1] < 8192, f"memory: {before} -> {after}"


async def is_told_by_the_command(bed: Testbed) -> None:
    """``edged devices --json --follow`` shows what is here, then every move, in a process of its own."""
    bed.plug(*CORAL_WITH_FIRMWARE, PORT)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "edged.toml"
        config.write_text(CONFIG.format(folder=folder))
        command = [sys.executable, "-m", "edged", "devices", "--config", str(config)]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert "coral-1-2  accelerator  ready  18d1:9302  /dev/bus/usb/001/002" in shown
        follow = await asyncio.create_subprocess_exec(*command, "--json", "--follow", stdout=subprocess.PIPE)
        try:
            assert await told(follow) == ("coral-1-2", "ready")
            bed.unplug(PORT)
            assert await told(follow) == ("coral-1-2", "lost")
            bed.plug(*CORAL_WITH_FIRMWARE, PORT)
            assert [await told(follow) for _ in range(3)] == [
                ("coral-1-2", state) for state in ("returned", "probing", "ready")
            ]
        finally:
            follow.terminate()
            await follow.wait()


CONFIG = """
[device]
id = "scenario"
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"

[[pipeline]]
name = "digits"
model = "digits"
source = [{{ type = "http", name = "asked" }}]
"""


async def told(process: asyncio.subprocess.Process) -> tuple[str, str]:
    """The next device and state that the command prints."""
    assert process.stdout is not None
    async with asyncio.timeout(20):
        facts = msgspec.json.decode(await process.stdout.readline(), type=DeviceFacts)
    return facts.link, facts.state


SCENARIOS: dict[str, Callable[[Testbed], Coroutine[None, None, None]]] = {
    scenario.__name__: scenario
    for scenario in (
        enumerates,
        comes_and_goes,
        renumerates,
        moves_to_another_port,
        does_not_answer,
        is_denied,
        is_not_denied_to_root,
        leaks_nothing,
        is_told_by_the_command,
    )
}
CAPABILITY_VERSION = 0x20080522  # of capset(2), for 64 bits
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


def scenario_of(name: str) -> Callable[[Testbed], Coroutine[None, None, None]]:
    """A scenario by its name."""
    if name in ("moves_the_work", "tells_the_daemon"):
        from tests.support import placed_scenario

        return {"moves_the_work": placed_scenario.moves_the_work, "tells_the_daemon": placed_scenario.tells_the_daemon}[
            name
        ]
    return SCENARIOS[name]


def main(name: str, table: str) -> None:
    """Run one scenario."""
    asyncio.run(scenario_of(name)(Testbed(Path(table))))


def give_up_overriding() -> None:
    """Be subject to the modes of files from now on, as every user but root is, and stay who we are.

    Another user could not even read an interpreter that lies where only root may go.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
    held = ctypes.create_string_buffer(24)  # effective, permitted, inheritable; twice, the lower half first
    if libc.capget(header, held):
        raise OSError(ctypes.get_errno(), "capget")
    sets = list(struct.unpack("=6I", held.raw))
    given_up = 1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH
    if libc.capset(header, struct.pack("=6I", *(one & ~given_up for one in sets[:3]), *sets[3:])):
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    main(*sys.argv[1:])
