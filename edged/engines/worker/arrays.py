"""NumPy views of the shared memory: the daemon and every NumPy engine look at the same bytes through these."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from edged.engines.layout import Layout, Role


class Arrays:
    """Views by (slot, role, batch), made once. They keep ``memory`` mapped for as long as one of them lives."""

    def __init__(self, memory: mmap.mmap, layout: Layout) -> None:
        self._memory = memory
        self._layout = layout
        self._made: dict[tuple[int, Role, int], dict[str, Any]] = {}

    def of(self, slot: int, role: Role, batch: int) -> dict[str, Any]:
        """The arrays of a role by name, in the model's order; shapes as the role says, C-contiguous."""
        key = (slot, role, batch)
        if key not in self._made:
            self._made[key] = self._views(slot, role, batch)
        return self._made[key]

    def _views(self, slot: int, role: Role, batch: int) -> dict[str, Any]:
        views = {}
        for region in self._layout.role(role):
            shape = self._layout.shape(region, batch)
            start = slot * self._layout.slot_bytes + region.offset
            views[region.tensor.name] = np.ndarray(shape, region.tensor.dtype, self._memory, start)
        return views
