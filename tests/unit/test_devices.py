"""Every move of a device, which lost one a new one is, and what is said of it: pure."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.devices.cli import move_line, table_lines
from edged.devices.states import HERE, TRANSITIONS, Event, IllegalMove, State, after, diagram
from edged.devices.table import ALL_MAX, LOST_MAX, Device, DeviceTable, Sighting
from edged.devices.watch import facts_of
from tests.support.tree import ROOT

STICK = Sighting(path="/devices/usb1/1-2", kind="accelerator", name="Stick", link="coral", usb_id="18d1:9302")
BARE = replace(STICK, usb_id="1a6e:089a", becomes="18d1:9302")


def ready(table: DeviceTable, sighting: Sighting) -> Device:
    device = table.appear(sighting)
    assert device is not None
    table.probing(device)
    table.probed(device, "")
    return device


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_only_the_moves_of_the_table_are_made(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert after(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalMove, match=state.value):
            after(state, event)


def test_a_device_can_be_lost_from_every_state_and_every_state_is_reached() -> None:
    assert {state for state in HERE if TRANSITIONS[state, Event.REMOVE] is State.LOST} == set(HERE)
    assert set(TRANSITIONS.values()) | {State.SEEN} == set(State)


def test_the_documentation_shows_the_present_table() -> None:
    assert diagram().count("-->") == len(TRANSITIONS) + 1
    assert f"```mermaid\n{diagram()}\n```" in (ROOT / "docs/devices.md").read_text()


def test_a_device_goes_all_the_way_and_returns_as_itself() -> None:
    states: list[State] = []
    table = DeviceTable(lambda device: states.append(device.state))
    device = ready(table, BARE)
    table.use(device, "engine one")
    assert table.vanish(BARE.path) is device
    assert device.reason == "it was unplugged while engine one had it" and device.user == ""
    assert table.appear(STICK) is device
    assert device.reason == "as 18d1:9302, it was 1a6e:089a"
    assert [state.value for state in states] == "seen probing ready in-use lost returned".split()  # noqa: SIM905 -- read as a story


@pytest.mark.parametrize(
    ("lost", "found", "same"),
    [
        (STICK, STICK, True),
        (BARE, replace(STICK, path="/devices/usb2/2-2"), True),  # with firmware it is on the faster bus
        (STICK, replace(STICK, path="/devices/usb1/1-3"), False),  # any other stick of its kind
        (replace(STICK, serial="A"), replace(STICK, serial="A", path="/devices/usb1/1-3"), True),
        (replace(STICK, serial="A"), replace(STICK, serial="B", path="/devices/usb1/1-3"), False),
        (STICK, replace(STICK, kind="camera", link="camera", usb_id="0001:0002"), False),
    ],
)
def test_what_appears_is_the_lost_device_or_another(lost: Sighting, found: Sighting, same: bool) -> None:
    table = DeviceTable()
    device = ready(table, lost)
    table.vanish(lost.path)
    assert (table.appear(found) is device) is same


def test_a_removal_that_was_not_heard_is_noticed_by_what_is_in_the_port() -> None:
    table = DeviceTable()
    device = ready(table, BARE)
    assert table.appear(STICK) is device
    assert device.state is State.RETURNED


def test_a_device_in_use_is_not_asked_again_and_an_unchanged_one_neither() -> None:
    table = DeviceTable()
    device = ready(table, STICK)
    assert table.appear(STICK) is None
    assert table.appear(replace(STICK, links=("/dev/edged/coral",))) is device
    table.use(device, "engine one")
    assert table.appear(replace(STICK, node="/dev/other")) is None
    table.use(device, "")
    assert device.state is State.READY


def test_what_cannot_be_used_is_used_by_nobody() -> None:
    table = DeviceTable()
    device = table.appear(STICK)
    assert device is not None
    table.probing(device)
    table.probed(device, "permission denied")
    table.use(device, "engine one")
    assert (device.state, device.user, device.reason) == (State.UNUSABLE, "", "permission denied")


def test_a_removal_of_something_unknown_is_nothing() -> None:
    assert DeviceTable().vanish("/devices/none") is None


def test_after_missed_events_only_what_is_there_stays() -> None:
    table = DeviceTable()
    other = replace(STICK, path="/devices/usb1/1-3")
    gone, stays = ready(table, STICK), ready(table, other)
    assert table.keep_only([other.path]) == [gone]
    assert stays.state is State.READY


def test_a_bus_that_makes_up_devices_without_end_fills_no_memory() -> None:
    table = DeviceTable()
    paths = [f"/devices/{number}" for number in range(ALL_MAX + 10)]
    for path in paths:
        table.appear(replace(STICK, path=path))
    assert (len(table), table.refused) == (ALL_MAX, 10)
    for path in paths:
        table.vanish(path)
    assert len(table) == LOST_MAX


@pytest.mark.parametrize("wanted", ["accelerator", "coral", "coral-1-2", "/dev/edged/coral", "/dev/edged/coral-1-2"])
def test_a_device_is_wanted_by_kind_name_port_or_link(wanted: str) -> None:
    assert STICK.is_wanted(wanted)
    assert not STICK.is_wanted(f"{wanted}-9") and not STICK.is_wanted("")


MOVES = st.tuples(st.sampled_from(["appear", "vanish", "probe", "use", "only"]), st.integers(0, 5), st.integers(0, 2))


@given(st.lists(MOVES, max_size=60))
@settings(max_examples=200, deadline=None)
def test_whatever_happens_no_move_is_illegal_and_no_device_is_in_two_places(moves: list[tuple[str, int, int]]) -> None:
    table = DeviceTable()
    for act, port, which in moves:
        sighting = replace([STICK, BARE, replace(STICK, serial="A")][which], path=f"/devices/usb1/1-{port}")
        present = [one for one in table.devices() if one.state is not State.LOST]
        if act == "appear":
            table.appear(sighting)
        elif act == "vanish":
            table.vanish(sighting.path)
        elif act == "only":
            table.keep_only([sighting.path])
        elif present:
            device = present[port % len(present)]
            if act == "use":
                table.use(device, ["", "one", "two"][which])
            elif device.state is not State.IN_USE:
                table.probing(device)
                table.probed(device, "denied" if which else "")
        devices = table.devices()
        assert len({id(one) for one in devices}) == len(devices) == len(table)
        here = [one.sighting.path for one in devices if one.state is not State.LOST]
        assert len(set(here)) == len(here)
        assert all(bool(one.user) == (one.state is State.IN_USE) for one in devices)


def test_the_command_shows_a_device_with_its_reason_and_no_control_characters() -> None:
    facts = facts_of(Device(replace(STICK, name="Evil\x1b[2J"), State.UNUSABLE, "permission denied"))
    heading, row, because = table_lines([facts])
    assert heading.startswith("device") and row.startswith("coral-1-2  accelerator  unusable  18d1:9302")
    assert "\x1b" not in row and because == "    because: permission denied"
    assert move_line(facts) == "coral-1-2 unusable: permission denied"
    assert table_lines([]) == ["No known device is here."]
