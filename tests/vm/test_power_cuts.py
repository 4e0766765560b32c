"""The power goes under load, again and again: what the device had said to be stored is there, and it works on.

A cut is SIGKILL of the whole machine: the kernel's memory is gone, the disk keeps what was flushed to it. The control
is the same device with a database that is not flushed; it must lose what it had said, or the cuts would prove nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.vm.conftest import Machines
from tests.vm.power import Campaign, campaign, make_releases

CUTS = 5  # of each of two devices
CONTROL_CUTS = 1
pytestmark = pytest.mark.timeout(3000)  # on busy cores; the rung's own clock is printed


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_releases(tmp_path_factory.mktemp("given"), CUTS)


@pytest.fixture(scope="module")
def campaigns(machines: Machines, given: Path) -> Iterator[list[Future[Campaign]]]:
    """Two devices and the control, side by side: each machine has one processor, and a boot keeps hardly more busy."""
    with ThreadPoolExecutor(3) as pool:
        devices = [pool.submit(campaign, machines, given, CUTS, seed) for seed in (1, 2)]
        yield [*devices, pool.submit(campaign, machines, given, CONTROL_CUTS, 3, careless=True)]


def test_after_every_power_cut_every_told_row_is_there_and_the_accounts_close(
    campaigns: list[Future[Campaign]],
) -> None:
    for seen in (campaigns[0].result(), campaigns[1].result()):
        print(
            f"\n{CUTS} cuts in {seen.seconds:.0f} s: {len(seen.told)} rows told, {sum(seen.lost)} lost; {seen.models}"
        )
        assert seen.lost == [0] * CUTS
        assert seen.told and set(seen.integrity) == {"ok"} and seen.quarantined == []
        assert Counter(row["kind"] for row in seen.rows) == {"result": seen.fed}  # and no gap
        assert len({row["key"] for row in seen.rows}) == seen.fed
        assert [row["seq"] for row in seen.rows] == list(range(1, seen.fed + 1))
        assert seen.account == {"received": seen.fed, "committed": seen.fed, "rejected": 0, "dropped": 0}
        assert seen.models.count("active") == 1 and "failed" not in seen.models


def test_control_a_database_that_is_not_flushed_loses_rows(campaigns: list[Future[Campaign]]) -> None:
    seen = campaigns[2].result()
    print(f"\n{CONTROL_CUTS} cut in {seen.seconds:.0f} s: {len(seen.told)} rows told, {sum(seen.lost)} lost")
    assert sum(seen.lost) > 0
