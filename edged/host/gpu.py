"""What the kernel says of a GPU that is part of the machine's chip, as on a Jetson: its load and its clock.

Reads small files of sysfs that everybody may read, and changes nothing. A GPU on a card has no such files: what
NVIDIA's library says of it is told by the worker that has it open (``edged.engines.worker.tensorrt``), for the daemon's
sandbox has no node of it, and a library that may crash or hang has no place in the daemon. Blocks for as long as a file
takes: call it in a thread.

Where the files are, by JetPack: 5 and 6 (driver nvgpu) have a devfreq device whose ``of_node/name`` is the chip's name,
with ``device/load``; older links are /sys/devices/gpu.0 (Xavier, Nano) and /sys/devices/platform/gpu.0 (Orin; 6.2 and
7.2). ``load`` counts thousandths. Thor's devfreq device is gpu-gpc-0, which tells its clock, and its load on some
releases. Such a GPU uses the machine's memory, so that there is none of its own to measure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edged.status import INTEGRATED, GpuFacts

CHIPS = ("gp10b", "gv11b", "ga10b", "gpu")  # TX2, Xavier, Orin, and later device trees
DEVICES = ("sys/devices/gpu.0", "sys/devices/platform/gpu.0")
THOR = "gpu-gpc-0"
WHOLE = 1000  # the load of a GPU that is busy all the time
HZ_PER_MHZ = 1e6


@dataclass(frozen=True, slots=True)
class _Files:
    """Those of one GPU; empty where it has no such file."""

    name: str
    load: Path | None
    clock: Path | None


class GpuReader:
    """Reads below ``root``. The files are found once: such a GPU neither comes nor goes."""

    def __init__(self, root: Path) -> None:
        self._found = next(_found(root), None)

    def read(self) -> GpuFacts | None:
        """The GPU of the chip, now; None where there is none, or it says nothing."""
        if self._found is None:
            return None
        load, clock = (_number(path) if path else None for path in (self._found.load, self._found.clock))
        if load is None and clock is None:
            return None
        return GpuFacts(
            id=INTEGRATED,
            name=self._found.name,
            told_by="kernel",
            load_percent=100 * min(load, WHOLE) / WHOLE if load is not None else None,
            clock_mhz=clock / HZ_PER_MHZ if clock else None,
        )


def _found(root: Path) -> Iterator[_Files]:
    for entry in sorted((root / "sys/class/devfreq").glob("*")):
        name = _text(entry / "device/of_node/name").rstrip("\0\n")
        if name in CHIPS or entry.name == THOR:
            loads = (path for path in (entry / "device/load", entry / "load") if path.exists())
            yield _Files(name or entry.name, next(loads, None), entry / "cur_freq")
    for device in DEVICES:
        if (root / device / "load").exists():
            clocks = sorted((root / device / "devfreq").glob("*/cur_freq"))
            yield _Files("gpu.0", root / device / "load", clocks[0] if clocks else None)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if re.fullmatch(r"\d{1,12}", text) else None
