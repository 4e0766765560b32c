"""A made-up stick under real workers and under a whole daemon: scenarios of test_placed_devices.py."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from edged.engines.placed import PlacedEngine
from edged.presence import Presence
from edged.status import Status
from tests.integration.test_placed_engine import FIRST, SECOND, takes_all
from tests.support.plans import frames, make_job
from tests.support.tree import ROOT
from tests.support.umock import Testbed

PORT = "/devices/pci0000:00/0000:00:14.0/usb1/1-2"


async def moves_the_work(bed: Testbed) -> None:
    """The stick's engine serves while it is here, under either id; the other one while it is not."""
    presence = Presence()
    with tempfile.TemporaryDirectory() as folder:
        engine = PlacedEngine([replace(FIRST, device="coral"), SECOND], make_job(Path(folder)), takes_all)
        presence.attend(engine)
        tasks = [asyncio.create_task(engine.run()), asyncio.create_task(presence.watch.run())]
        try:
            await answered_by(engine, "second")
            assert "there is no device coral" in engine.all_facts()[0].reason
            bed.plug("1a6e", "089a", PORT)
            await answered_by(engine, "first")
            presence.assign()
            assert [(one.state, one.user) for one in presence.watch.facts()] == [("in-use", "engine first")]
            bed.unplug(PORT)
            await answered_by(engine, "second")
            assert "it was unplugged while engine first had it" in engine.all_facts()[0].reason
            bed.plug("18d1", "9302", PORT)
            await answered_by(engine, "first")
            presence.leave(engine)
            assert [(one.state, one.user, one.id) for one in presence.watch.facts()] == [("ready", "", "18d1:9302")]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


CONFIG = """
[device]
id = "scenario"
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"

[http]
port = 0

[engines.onnxruntime]
device = "/dev/edged/coral"

[[pipeline]]
name = "digits"
model = "{model}"
source = [{{ type = "http", name = "asked" }}]
"""


async def tells_the_daemon(bed: Testbed) -> None:
    """A running daemon whose only engine needs the stick: it waits for it, uses it, and says all that in its status."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "edged.toml"
        config.write_text(CONFIG.format(folder=folder, model=ROOT / "models/digits/bundle"))
        daemon = await asyncio.create_subprocess_exec(sys.executable, "-m", "edged", "run", "--config", str(config))
        try:
            await shown(folder, [], "absent")
            bed.plug("18d1", "9302", PORT)
            assert (await shown(folder, ["in-use"], "serving")).devices[0].user == "engine onnxruntime"
            bed.unplug(PORT)
            status = await shown(folder, ["lost"], "absent")
            assert status.state == "degraded" and "it was unplugged" in status.reasons[0], status
            bed.plug("18d1", "9302", PORT)
            await shown(folder, ["in-use"], "serving")
        finally:
            daemon.terminate()
            assert await daemon.wait() == 0


async def shown(folder: Path, devices: list[str], placement: str) -> Status:
    """The status, once devices and engine stand so."""
    async with asyncio.timeout(40):
        while True:
            with contextlib.suppress(OSError):
                status = msgspec.json.decode((folder / "run/status.json").read_bytes(), type=Status)
                places = [engine.placement for engine in status.engines]
                if [one.state for one in status.devices] == devices and places == [placement]:
                    return status
            await asyncio.sleep(0.1)


async def answered_by(engine: PlacedEngine, name: str) -> None:
    """Ask until this engine answers; no call fails meanwhile."""
    await until(lambda: engine.placement.serving is not None)
    async with asyncio.timeout(20):
        while (await engine.infer(frames(1))).engine != name:
            await asyncio.sleep(0.02)


async def until(true: Callable[[], bool]) -> None:
    """Wait for something."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.02)
