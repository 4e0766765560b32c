"""The memory that the daemon shares with one worker: a sealed memfd, nothing in /dev/shm, nothing to sweep up.

The size is sealed before the worker sees the descriptor, so that no worker can shrink it under the daemon's feet.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from edged.engines.layout import Layout, Role, Tensor, lay_out
from edged.engines.worker.arrays import Arrays
from edged.ports import Model, TensorSpec

READOUT = "readout"


class SharedMemory:
    """A layout's memory, mapped here; ``fd`` is for the worker."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.first = {role: layout.role(role)[0].tensor for role in Role if layout.role(role)}
        self.fd = os.memfd_create("edged-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, layout.size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._arrays: Arrays | None = Arrays(mmap.mmap(self.fd, layout.size), layout)
        except BaseException:  # a cancellation too: what was begun is undone, and it goes on
            os.close(self.fd)
            raise

    @property
    def arrays(self) -> Arrays:
        """The views, until ``close``."""
        assert self._arrays is not None
        return self._arrays

    def close(self) -> None:
        """Give the memory up, even where the error of a lost call still refers to this; views that live keep it.

        Safe to call twice.
        """
        self._arrays = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def model_layout(model: Model, max_batch: int) -> Layout:
    """Where a model's tensors lie. Raises WireError for what cannot be shared."""
    states = [_tensor(spec) for spec in model.states]
    tensors = [(Role.INPUT, _tensor(spec)) for spec in model.inputs]
    tensors += [(Role.READOUT, Tensor(READOUT, "float32", (model.classes,)))]
    tensors += [(Role.STEP_INPUT, _tensor(spec)._replace(sequence=False)) for spec in model.inputs]
    tensors += [(Role.STATE, state) for state in states]
    tensors += [(Role.STEP_OUTPUT, Tensor(model.output, "float32", (model.classes,)))]
    tensors += [(Role.NEXT_STATE, state) for state in states]
    return lay_out(model.timesteps, max_batch, tensors)


def _tensor(spec: TensorSpec) -> Tensor:
    return Tensor(spec.name, spec.dtype, tuple(spec.shape), spec.sequence)
