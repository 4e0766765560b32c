"""A directory with the files in which the kernel says how a device is, so that tests can make it hot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PSI = "some avg10={share:.2f} avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


class Tree:
    """Stands for the root of a file system. Nothing is there at first."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._groups: dict[int, str] = {}

    def write(self, path: str, text: str) -> None:
        """Put a file in place whole, as the kernel's are."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.part")
        part.write_text(text)
        part.replace(file)

    def zone(self, number: int, name: str, celsius: float, trips: Mapping[str, float] = {}) -> None:
        """A thermal zone, with the temperatures of its trip points by type."""
        folder = f"sys/class/thermal/thermal_zone{number}"
        self.write(f"{folder}/type", f"{name}\n")
        self.write(f"{folder}/temp", f"{celsius * 1000:.0f}\n")
        for place, (kind, at) in enumerate(trips.items()):
            self.write(f"{folder}/trip_point_{place}_type", f"{kind}\n")
            self.write(f"{folder}/trip_point_{place}_temp", f"{at * 1000:.0f}\n")

    def memory(self, *, total_kb: int, available_kb: int) -> None:
        """The memory of the whole device."""
        self.write("proc/meminfo", f"MemTotal: {total_kb} kB\nMemFree: 1 kB\nMemAvailable: {available_kb} kB\n")

    def stall(self, what: str, percent: float) -> None:
        """Pressure stall information of the whole device: memory, cpu or io."""
        self.write(f"proc/pressure/{what}", PSI.format(share=percent))

    def cgroup(self, version: int, name: str, *, usage: int, limit: int | None, inactive: int) -> None:
        """A cgroup of memory; the first one of a version that is made is the reader's own."""
        if version not in self._groups:
            self._groups[version] = name
        prefixes = {1: "4:memory:", 2: "0::"}
        self.write("proc/self/cgroup", "".join(f"{prefixes[one]}{own}\n" for one, own in self._groups.items()))
        folder, names = f"sys/fs/cgroup{name}", ("memory.current", "memory.max", "inactive_file")
        if version == 1:
            folder = f"sys/fs/cgroup/memory{name}"
            names = ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file")
        unlimited = "max" if version == 2 else str(9223372036854771712)
        self.write(f"{folder}/{names[0]}", f"{usage}\n")
        self.write(f"{folder}/{names[1]}", f"{unlimited if limit is None else limit}\n")
        self.write(f"{folder}/memory.stat", f"anon 5\n{names[2]} {inactive}\nslab 1\n")
