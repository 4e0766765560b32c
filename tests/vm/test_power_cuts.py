"""The power goes under load, again and again: what the device had said to be stored is there, and it works on.

A cut takes all that was not flushed to the disk: the kernel's memory and QEMU's are gone. The control is the same
device with a database that is not flushed; it must lose what it had said, or the cuts would prove nothing.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.vm.conftest import Machines
from tests.vm.power import Campaign, Found, campaign, look, make_releases, settle

CUTS = (5, 6)  # of the device, in its first two boots
CONTROL_CUTS = (2,)
pytestmark = pytest.mark.timeout(1800)  # on busy cores; the rung's own clock is printed


@dataclass(frozen=True)
class Seen:
    """A device, the disks of its cuts, and those of the control's."""

    device: Campaign
    found: list[Found]
    control: Campaign
    control_found: list[Found]


@pytest.fixture(scope="module")
def seen(machines: Machines, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Two machines at a time: the device and the control, then the device's last boot and what looks at the disks."""
    given = make_releases(tmp_path_factory.mktemp("given"), len(CUTS))
    with ThreadPoolExecutor(2) as pool:
        device = pool.submit(campaign, machines, given, CUTS, seed=1)
        control = pool.submit(campaign, machines, given, CONTROL_CUTS, seed=2, careless=True).result()
        cuts = device.result().cuts
        last = pool.submit(settle, machines, device.result())
        found = look(machines, cuts + control.cuts)
        last.result()
    return Seen(device.result(), found[: len(cuts)], control, found[len(cuts) :])


def test_after_every_power_cut_every_told_row_is_there(seen: Seen) -> None:
    told = [len(cut.told) for cut in seen.device.cuts]
    print(f"\n{len(told)} cuts after {told} told rows, {[one.rows for one in seen.found]} found")
    assert len(seen.found) == sum(CUTS) >= 10
    for cut, found in zip(seen.device.cuts, seen.found, strict=True):
        assert found.lost == 0
        assert set(found.integrity) == {"ok"} and found.quarantined == []
        assert 0 < len(cut.told) <= found.rows < cut.fed  # there was work at that moment
    assert sorted(set(told)) == told


def test_the_device_works_on_after_each_cut_and_its_account_closes(seen: Seen) -> None:
    device = seen.device
    print(f"\n{len(device.after)} times back in {device.seconds:.0f} s; {device.fed} frames, {device.models}")
    assert [(one.lost, set(one.integrity), one.quarantined) for one in device.after] == [(0, {"ok"}, [])] * len(CUTS)
    assert Counter(row["kind"] for row in device.rows) == {"result": device.fed}  # and no gap
    assert len({row["key"] for row in device.rows}) == device.fed
    assert [row["seq"] for row in device.rows] == list(range(1, device.fed + 1))
    assert device.account == {"received": device.fed, "committed": device.fed, "rejected": 0, "dropped": 0}
    assert device.models.count("active") == 1 and "failed" not in device.models


def test_control_a_database_that_is_not_flushed_loses_rows(seen: Seen) -> None:
    lost = [found.lost for found in seen.control_found]
    told = [len(cut.told) for cut in seen.control.cuts]
    print(f"\ncontrol: {told} rows told, {lost} of them lost, in {seen.control.seconds:.0f} s")
    assert all(count > 0 for count in lost)
