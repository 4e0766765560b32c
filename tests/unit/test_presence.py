"""Who has which device: engines are attended to elsewhere (tests/integration/test_placed_devices.py); here, sources."""

from __future__ import annotations

from edged.devices.states import State
from edged.devices.table import Sighting
from edged.presence import Presence


def test_a_source_has_its_device_until_it_says_otherwise() -> None:
    presence = Presence()
    table = presence.watch._table
    cameras = [
        Sighting(path=f"/devices/video{n}", kind="camera", link="camera", node=f"/dev/video{n}") for n in range(2)
    ]
    for one in cameras:
        device = table.appear(one)
        assert device is not None
        table.probing(device)
        table.probed(device, "")
    presence.reads("door", "/dev/video1")
    presence.reads("gate", "")
    assert [(one.state, one.user) for one in table.devices()] == [(State.READY, ""), (State.IN_USE, "source door")]
    table.vanish(cameras[1].path)
    presence.reads("door", "")
    lost = table.devices()[-1]
    assert (lost.state, lost.reason) == (State.LOST, "it was unplugged while source door had it")
    back = table.appear(cameras[1])
    assert back is not None
    table.probing(back)
    table.probed(back, "")
    assert back.state is State.READY
    presence.reads("door", "/dev/video1")
    assert back.user == "source door"
