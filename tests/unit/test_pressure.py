"""The level of pressure: it rises at once, falls one step at a time and late, and slows the least important first."""

from __future__ import annotations

import itertools
import random
import tomllib

import msgspec
import pytest

from edged.hardware_config import Pressure as Settings
from edged.pressure import (
    GROWN_BYTES,
    RANK,
    TRANSITIONS,
    Event,
    Held,
    IllegalMove,
    Kind,
    Level,
    Measure,
    PressurePolicy,
    Reading,
    diagram,
    fattest,
    limit_of,
)
from tests.support.tree import ROOT

SETTINGS = Settings()
MIB = 1 << 20


def hot(celsius: float, ceiling: float | None = None) -> Reading:
    return Reading((Measure(Kind.TEMPERATURE, "cpu", celsius, ceiling),))


def used(percent: float, kind: Kind = Kind.MEMORY_USED) -> Reading:
    return Reading((Measure(kind, "system", percent),))


def levels(policy: PressurePolicy, readings: list[Reading], every_s: float = 2.0, start_s: float = 0.0) -> list[Level]:
    """The level after each reading."""
    seen = []
    for count, reading in enumerate(readings):
        policy.take(reading, start_s + count * every_s)
        seen.append(policy.level)
    return seen


@pytest.mark.parametrize(
    ("reading", "level"),
    [
        (hot(84.9), Level.NORMAL),
        (hot(85.0), Level.TIGHT),
        (hot(95.0), Level.CRITICAL),
        (used(84.0), Level.NORMAL),
        (used(85.0), Level.TIGHT),
        (used(96.0), Level.CRITICAL),
        (used(19.0, Kind.MEMORY_STALL), Level.NORMAL),
        (used(20.0, Kind.MEMORY_STALL), Level.TIGHT),
        (used(50.0, Kind.MEMORY_STALL), Level.CRITICAL),
        (used(100.0, Kind.CPU_STALL), Level.NORMAL),
        (used(100.0, Kind.IO_STALL), Level.NORMAL),
        (Reading((Measure(Kind.THROTTLED, "under-voltage", 1.0),)), Level.TIGHT),
        (Reading(), Level.NORMAL),
    ],
)
def test_it_rises_at_once_to_what_the_worst_measure_asks_for(reading: Reading, level: Level) -> None:
    policy = PressurePolicy(SETTINGS, 0.0)
    assert policy.take(reading, 1.0) is (level is not Level.NORMAL)
    assert policy.level is level
    assert bool(policy.reasons) is (level is not Level.NORMAL)


def test_a_limit_that_is_set_for_the_cpu_acts() -> None:
    policy = PressurePolicy(msgspec.structs.replace(SETTINGS, cpu_stall_tight_percent=60.0), 0.0)
    policy.take(used(61.0, Kind.CPU_STALL), 1.0)
    assert policy.level is Level.TIGHT
    assert policy.reasons == ("cpu stall (system) 61.0 %",)


def test_a_zone_that_the_kernel_switches_off_early_has_lower_limits() -> None:
    limit = limit_of(Measure(Kind.TEMPERATURE, "soc", 0.0, ceiling=90.0), SETTINGS)
    assert (limit.tight, limit.critical) == (75.0, 85.0)
    assert limit_of(Measure(Kind.TEMPERATURE, "soc", 0.0, ceiling=125.0), SETTINGS).critical == 95.0


def test_it_falls_one_step_after_each_dwell_of_calm() -> None:
    policy = PressurePolicy(SETTINGS, 0.0)
    seen = levels(policy, [hot(96.0)] + [hot(40.0)] * 40)
    changes = [(2.0 * at, to) for at, (one, to) in enumerate(itertools.pairwise(seen), 1) if one is not to]
    assert changes == [(32.0, Level.TIGHT), (64.0, Level.NORMAL)]
    assert policy.reasons == ()


def test_within_the_margin_it_stays_and_calm_begins_anew() -> None:
    policy = PressurePolicy(SETTINGS, 0.0)
    swinging = [hot(86.0), *([hot(79.0)] * 14 + [hot(81.0)]) * 5]  # 81 is below the limit, but not by its margin
    assert set(levels(policy, swinging)) == {Level.TIGHT}


def test_without_margin_and_dwell_it_would_flap() -> None:
    """The control of the two tests above: the same readings, judged by the limit alone."""
    judged = [limit_of(one.measures[0], SETTINGS).level(one.measures[0].value) for one in [hot(86.0), hot(84.0)] * 10]
    assert sum(one is not other for one, other in itertools.pairwise(judged)) == 19
    assert set(levels(PressurePolicy(SETTINGS, 0.0), [hot(86.0), hot(84.0)] * 10)) == {Level.TIGHT}


def test_random_readings_make_only_moves_of_the_table_and_never_fall_fast() -> None:
    choose = random.Random(11)
    policy, now_s, last_change_s, before = PressurePolicy(SETTINGS, 0.0), 0.0, 0.0, Level.NORMAL
    for _ in range(5000):
        now_s += choose.uniform(0.2, 6.0)
        reading = Reading(hot(choose.gauss(70, 12)).measures + used(choose.gauss(70, 12)).measures)
        policy.take(reading, now_s)
        if RANK[policy.level] < RANK[before]:
            assert RANK[before] - RANK[policy.level] == 1 and now_s - last_change_s >= SETTINGS.dwell_s
        if policy.level is not before:
            before, last_change_s = policy.level, now_s
    assert policy.changes > 10


@pytest.mark.parametrize(
    ("level", "event"), sorted(set(itertools.product(Level, Event)) - TRANSITIONS.keys(), key=str), ids=str
)
def test_a_move_that_the_table_does_not_have_raises(level: Level, event: Event) -> None:
    policy = PressurePolicy(SETTINGS, 0.0)
    policy.level = level
    with pytest.raises(IllegalMove, match="cannot take"):
        policy.move(event, 1.0)


def test_the_least_important_streams_are_slowed_first_and_the_others_after_each_step() -> None:
    priorities = {"toy": 1, "other-toy": 1, "gate": 5, "alarm": 9}
    policy = PressurePolicy(SETTINGS, 0.0)
    assert set(policy.shares(priorities, 0.0).values()) == {1.0}
    policy.take(hot(86.0), 100.0)
    assert policy.shares(priorities, 100.0) == {"toy": 0.5, "other-toy": 0.5, "gate": 1.0, "alarm": 1.0}
    assert policy.shares(priorities, 111.0) == {"toy": 0.5, "other-toy": 0.5, "gate": 0.5, "alarm": 1.0}
    assert set(policy.shares(priorities, 121.0).values()) == {0.5}
    policy.take(hot(96.0), 122.0)
    assert policy.shares(priorities, 122.0) == {"toy": 0.1, "other-toy": 0.1, "gate": 0.5, "alarm": 0.5}
    assert set(policy.shares(priorities, 999.0).values()) == {0.1}


def test_when_it_eases_the_most_important_streams_are_free_first() -> None:
    policy = PressurePolicy(SETTINGS, 0.0)
    policy.take(hot(96.0), 0.0)
    policy.take(hot(50.0), 100.0)
    assert policy.take(hot(50.0), 131.0)
    assert policy.shares({"toy": 1, "alarm": 9}, 131.0) == {"toy": 0.5, "alarm": 1.0}


def test_the_fattest_worker_that_has_grown_is_replaced_and_then_none_for_a_while() -> None:
    lean = Held("lean", 900 * MIB, 899 * MIB)
    grown, fatter = Held("grown", 300 * MIB, 100 * MIB), Held("fatter", 400 * MIB, 380 * MIB)
    fresh = Held("fresh", 500 * MIB, None)
    policy = PressurePolicy(SETTINGS, 0.0)
    policy.take(hot(99.0), 1.0)
    assert policy.recycle([grown], 1.0) is None  # memory is not what is short
    policy.take(used(96.0), 2.0)
    assert policy.recycle([lean, fresh], 2.0) is None
    assert policy.recycle([lean, grown, fatter, fresh], 2.0) == fatter
    assert policy.recycle([grown], 61.0) is None
    assert policy.recycle([grown], 62.0) == grown


def test_growth_below_the_noise_is_no_growth() -> None:
    assert fattest([Held("a", 100 * MIB + GROWN_BYTES - 1, 100 * MIB)]) is None
    assert fattest([Held("a", 100 * MIB + GROWN_BYTES, 100 * MIB)]) is not None
    assert fattest([]) is None


def test_the_documentation_shows_every_move_and_the_defaults() -> None:
    text = (ROOT / "docs" / "pressure.md").read_text()
    assert diagram().count("-->") == len(TRANSITIONS) + 1
    assert f"```mermaid\n{diagram()}\n```" in text
    shown = tomllib.loads(text.partition("```toml\n")[2].partition("```")[0])["pressure"]
    assert msgspec.convert(shown, Settings) == SETTINGS
    assert set(shown) == set(Settings.__struct_fields__) - {"root"}
