"""How hard pressed the device is, and what follows from that. Pure: no files, no clock; ``now_s`` only goes forward.

``edged.host.pressure`` measures, this decides, ``edged.governor`` acts. One table holds every legal move of the level.
It rises at once when a measure reaches a limit, and falls one step at a time: every measure must have stayed below the
limit, less its margin, for the whole dwell. What follows:

- **tight**     the streams of the lowest priority get ``tight_share`` of their frames; after every ``step_s`` at this
  level the streams of the next priority too.
- **critical**  every stream gets ``tight_share``, and those of the lowest priority ``critical_share``, the next ones
  after every ``step_s`` too.
- While memory is what is short, the worker that holds the most of it is replaced, if it has grown: a fresh one holds
  less, and the kernel would choose more rudely.

What a share means is written in ``edged.admission``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from edged.hardware_config import Pressure as Settings

GROWN_BYTES = 16 << 20  # less is the noise of an allocator, and not worth a start
CEILING_TIGHT_C, CEILING_CRITICAL_C = 15.0, 5.0  # below the temperature at which the kernel switches the device off
MARGIN_C = 5.0  # a passively cooled board falls by this within a minute of half its load; less would flap
MARGIN = 0.25  # of a limit in percent; averages over ten seconds swing by a fifth


class Level(enum.Enum):
    """How hard pressed the device is, mildest first."""

    NORMAL = "normal"
    TIGHT = "tight"
    CRITICAL = "critical"


class Event(enum.Enum):
    """What the measures say."""

    TIGHTEN = "tighten"  # one reached its limit for tight
    ALARM = "alarm"  # one reached its limit for critical
    EASE = "ease"  # all have been well below the limit of this level for the whole dwell


TRANSITIONS: dict[tuple[Level, Event], Level] = {
    (Level.NORMAL, Event.TIGHTEN): Level.TIGHT,
    (Level.NORMAL, Event.ALARM): Level.CRITICAL,
    (Level.TIGHT, Event.ALARM): Level.CRITICAL,
    (Level.CRITICAL, Event.EASE): Level.TIGHT,
    (Level.TIGHT, Event.EASE): Level.NORMAL,
}
RANK = {level: rank for rank, level in enumerate(Level)}
RISE = {Level.TIGHT: Event.TIGHTEN, Level.CRITICAL: Event.ALARM}


class IllegalMove(Exception):
    """A move that the table does not have: a mistake in the daemon."""


class Kind(enum.Enum):
    """What is measured."""

    TEMPERATURE = "temperature"
    MEMORY_USED = "memory used"
    MEMORY_STALL = "memory stall"
    CPU_STALL = "cpu stall"
    IO_STALL = "io stall"
    THROTTLED = "throttled by the hardware"


MEMORY = (Kind.MEMORY_USED, Kind.MEMORY_STALL)
UNITS = {Kind.TEMPERATURE: "°C", Kind.THROTTLED: ""}  # all others are percent


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure: °C, percent, or 1 where the hardware slows itself down. At ``ceiling`` the kernel switches off."""

    kind: Kind
    where: str  # which zone, whose memory
    value: float
    ceiling: float | None = None

    @property
    def name(self) -> str:
        """What is measured, and where."""
        return f"{self.kind.value} ({self.where})"


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that was measured at one instant, and what cannot be measured on this device."""

    measures: tuple[Measure, ...] = ()
    missing: tuple[str, ...] = ()
    power_mode: str = ""
    cpu_cap_percent: float | None = None  # of the highest clock that the CPU has


@dataclass(frozen=True, slots=True)
class Limit:
    """Where a measure makes the device tight or critical; 0: never. ``margin``: so far below it no longer does."""

    tight: float
    critical: float
    margin: float

    def level(self, value: float, margin: float = 0.0) -> Level:
        """The highest level whose limit, less a margin, is reached."""
        if self.critical and value >= self.critical - margin:
            return Level.CRITICAL
        return Level.TIGHT if self.tight and value >= self.tight - margin else Level.NORMAL


def limit_of(measure: Measure, settings: Settings) -> Limit:
    """The limit of a measure, as the configuration and the device have it."""
    if measure.kind is Kind.THROTTLED:
        return Limit(1.0, 0.0, 0.0)
    if measure.kind is Kind.TEMPERATURE:
        tight, critical = settings.temperature_tight_c, settings.temperature_critical_c
        if measure.ceiling is not None:
            tight = min(tight, measure.ceiling - CEILING_TIGHT_C)
            critical = min(critical, measure.ceiling - CEILING_CRITICAL_C)
        return Limit(tight, critical, MARGIN_C)
    tight, critical = {
        Kind.MEMORY_USED: (settings.memory_used_tight_percent, settings.memory_used_critical_percent),
        Kind.MEMORY_STALL: (settings.memory_stall_tight_percent, settings.memory_stall_critical_percent),
        Kind.CPU_STALL: (settings.cpu_stall_tight_percent, settings.cpu_stall_critical_percent),
        Kind.IO_STALL: (settings.io_stall_tight_percent, settings.io_stall_critical_percent),
    }[measure.kind]
    # Of a stall, a quarter of the limit; of memory in use the last percent are what counts.
    return Limit(tight, critical, 3.0 if measure.kind is Kind.MEMORY_USED else tight * MARGIN)


@dataclass(frozen=True, slots=True)
class Held:
    """The memory of one worker now, and when it had answered its first calls (None: not yet)."""

    worker: str
    bytes: int
    first_bytes: int | None

    @property
    def grown_bytes(self) -> int:
        """What a fresh worker would not hold."""
        return 0 if self.first_bytes is None else self.bytes - self.first_bytes


def fattest(workers: Iterable[Held]) -> Held | None:
    """The worker to replace when memory is short: of those that have grown, the one that holds the most."""
    grown = [worker for worker in workers if worker.grown_bytes >= GROWN_BYTES]
    return max(grown, key=lambda worker: worker.bytes, default=None)


class PressurePolicy:
    """The level of the device, and what each stream may do at it."""

    def __init__(self, settings: Settings, now_s: float) -> None:
        self.level = Level.NORMAL
        self.reasons: tuple[str, ...] = ()  # the measures that hold the level
        self.changes = 0
        self._settings = settings
        self._since_s = now_s
        self._calm_since_s: float | None = None  # all measures are below the limit of the level, less the margin
        self._memory_short = False
        self._recycled_s = float("-inf")

    def move(self, event: Event, now_s: float) -> Level:
        """Take an event of the table. Raises IllegalMove."""
        level = TRANSITIONS.get((self.level, event))
        if level is None:
            raise IllegalMove(f"a device whose pressure is {self.level.value} cannot take: {event.value}")
        self.level, self._since_s, self._calm_since_s = level, now_s, None
        self.changes += 1
        return level

    def take(self, reading: Reading, now_s: float) -> bool:
        """Take what was measured. Returns whether the level changed."""
        demanded = self._highest(reading, reached=True)
        changed = RANK[demanded] > RANK[self.level]
        if changed:
            self.move(RISE[demanded], now_s)
        else:
            changed = self._ease(self._highest(reading, reached=False), now_s)
        self.reasons = tuple(self._reasons(reading))
        self._memory_short = any(self._level(one) is not Level.NORMAL for one in reading.measures if one.kind in MEMORY)
        return changed

    def shares(self, priorities: Mapping[str, int], now_s: float) -> dict[str, float]:
        """The share of each stream by its name, 1.0 for all of it. ``priorities``: 0 is slowed down first."""
        settings = self._settings
        usual, reduced = {
            Level.NORMAL: (100.0, 100.0),
            Level.TIGHT: (100.0, settings.tight_share_percent),
            Level.CRITICAL: (settings.tight_share_percent, settings.critical_share_percent),
        }[self.level]
        groups = sorted(set(priorities.values()))
        lowest = set(groups[: 1 + int((now_s - self._since_s) / settings.step_s)])
        return {name: (reduced if rank in lowest else usual) / 100 for name, rank in priorities.items()}

    def recycle(self, workers: Sequence[Held], now_s: float) -> Held | None:
        """The worker to replace now, if any: memory is short, and the last one was replaced a while ago."""
        if not self._memory_short or now_s - self._recycled_s < self._settings.recycle_every_s:
            return None
        chosen = fattest(workers)
        if chosen is not None:
            self._recycled_s = now_s
        return chosen

    def _ease(self, held: Level, now_s: float) -> bool:
        if RANK[held] >= RANK[self.level]:
            self._calm_since_s = None
            return False
        if self._calm_since_s is None:
            self._calm_since_s = now_s
        if now_s - self._calm_since_s < self._settings.dwell_s:
            return False
        self.move(Event.EASE, now_s)
        return True

    def _highest(self, reading: Reading, *, reached: bool) -> Level:
        """The highest level that a measure has reached, or (less its margin) still holds."""
        levels = [self._level(one, margin=not reached) for one in reading.measures]
        return max(levels, key=RANK.__getitem__, default=Level.NORMAL)

    def _level(self, measure: Measure, *, margin: bool = False) -> Level:
        limit = limit_of(measure, self._settings)
        return limit.level(measure.value, limit.margin if margin else 0.0)

    def _reasons(self, reading: Reading) -> Iterator[str]:
        if self.level is Level.NORMAL:
            return
        pressing = [one for one in reading.measures if self._level(one, margin=True) is not Level.NORMAL]
        for measure in pressing:
            yield said(measure)
        if not pressing:
            yield f"everything is well again; it stays so for {self._settings.dwell_s:g} s first"


def said(measure: Measure) -> str:
    """A measure in words."""
    if measure.kind is Kind.THROTTLED:
        return f"{measure.kind.value}: {measure.where}"
    return f"{measure.name} {measure.value:.1f} {UNITS.get(measure.kind, '%')}"


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {Level.NORMAL.value}"]
    lines += [f"    {level.value} --> {to.value}: {event.value}" for (level, event), to in TRANSITIONS.items()]
    return "\n".join(lines)
