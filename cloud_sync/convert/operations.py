"""Counts synaptic operations as NeuroBench defines them (Yik et al., 2023): an operation is one weight that one
activation meets. *Dense* counts all of them; *effective* leaves out zero weights and zero activations. A layer whose
inputs are only 0 and ±1 accumulates (AC); any other multiplies and accumulates (MAC). Not counted: padding, biases,
pooling, the Mul of a residual branch.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloud_sync.convert.network import Conv, Dense, Floats


@dataclass(frozen=True, slots=True)
class SynapticOperations:
    """Operations for one sample, averaged over samples."""

    effective_macs: float = 0.0
    effective_acs: float = 0.0
    dense: float = 0.0

    def __add__(self, other: SynapticOperations) -> SynapticOperations:
        return SynapticOperations(
            self.effective_macs + other.effective_macs,
            self.effective_acs + other.effective_acs,
            self.dense + other.dense,
        )


class LayerCounter:
    """Adds up what one weighted layer did. Feed it every input that the layer saw, (B, *source_shape)."""

    def __init__(self, operation: Conv | Dense, source_shape: tuple[int, ...], shape: tuple[int, ...]) -> None:
        self._effective = fan_out(operation, source_shape, shape, dense=False)
        self._dense = float(fan_out(operation, source_shape, shape, dense=True).sum())
        self._done = 0.0
        self._calls = 0
        self._spikes_only = True

    def see(self, inputs: Floats) -> None:
        """One application of the layer to a batch."""
        self._done += float(np.tensordot((inputs != 0).sum(axis=0), self._effective, axes=inputs.ndim - 1))
        self._calls += len(inputs)
        self._spikes_only = self._spikes_only and bool(np.isin(inputs, (-1, 0, 1)).all())

    def total(self, samples: int) -> SynapticOperations:
        """Operations a sample, over all that was seen."""
        effective = self._done / samples
        acs = effective if self._spikes_only else 0.0
        return SynapticOperations(effective - acs, acs, self._dense * self._calls / samples)


def fan_out(
    operation: Conv | Dense, source_shape: tuple[int, ...], shape: tuple[int, ...], *, dense: bool
) -> NDArray[np.float64]:
    """How many weights each element of the input meets, in ``source_shape``; only non-zero ones unless ``dense``."""
    present = np.ones(operation.weight.shape) if dense else (operation.weight != 0).astype(np.float64)
    if isinstance(operation, Dense):
        return np.asarray(present.sum(axis=1))
    groups = operation.groups
    by_channel = present.reshape(groups, -1, *present.shape[1:]).sum(axis=1).reshape(-1, *present.shape[2:])
    axes = len(source_shape) - 1
    padded = [size + operation.pads[axis] + operation.pads[axis + axes] for axis, size in enumerate(source_shape[1:])]
    counts = np.zeros((source_shape[0], *padded))
    for offset in itertools.product(*(range(size) for size in operation.weight.shape[2:])):
        window = tuple(
            slice(at * gap, at * gap + (size - 1) * step + 1, step)
            for at, gap, size, step in zip(offset, operation.dilations, shape[1:], operation.strides, strict=True)
        )
        counts[(slice(None), *window)] += by_channel[(slice(None), *offset)].reshape(-1, *(1,) * axes)
    inside = tuple(
        slice(operation.pads[axis], operation.pads[axis] + size) for axis, size in enumerate(source_shape[1:])
    )
    return counts[(slice(None), *inside)]
