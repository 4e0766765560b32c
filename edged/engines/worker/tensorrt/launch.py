"""Runs plans: buffers, addresses, and the stream's work as one CUDA graph for each batch.

A batch runs as the next power of two (at most the largest), so that few contexts and graphs cover all of them; the rows
that are too many hold whatever was there before, and nobody reads them. The first run of a batch goes call by call, the
second is recorded, and all others launch the record. Where TensorRT cannot be recorded it goes on call by call.

Inputs and outputs pass through pinned memory at fixed addresses, which a record needs: the slots of the shared memory
change. States are on the GPU: two buffers each, and from step to step they swap their places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edged.engines.layout import Layout, Region, Role
from edged.engines.worker.arrays import Arrays
from edged.engines.worker.tensorrt.api import Compiled, Context, PlanFailed
from edged.engines.worker.tensorrt.cuda import Buffer, Cuda, CudaError, Graph, aligned
from edged.engines.worker.tensorrt.spec import Spec

FLOAT = np.dtype(np.float32)
OUTPUTS = "outputs"  # of the window plan: (T, B, classes)


class Launch:
    """Work for the stream that is always the same."""

    def __init__(self, cuda: Cuda, work: Callable[[], None], *, recorded: bool) -> None:
        self._cuda = cuda
        self._work = work
        self._recorded = recorded
        self._warm = False
        self._graph: Graph | None = None

    def run(self) -> None:
        """Do it, and wait for its end. Raises CudaError, PlanFailed."""
        if self._warm and self._recorded and self._graph is None:
            self._record()
        if self._graph is not None:
            self._graph.launch()
        else:
            self._work()
        self._cuda.wait()
        self._warm = True

    def close(self) -> None:
        """Free the record."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _record(self) -> None:
        try:
            self._graph = self._cuda.record(self._work)
        except (CudaError, PlanFailed) as error:
            print(f"goes on without a CUDA graph: {error}", flush=True)
            self._recorded = False


class Place:
    """A tensor's buffer: ``steps`` parts of one batch each, every part at a legal address."""

    def __init__(self, cuda: Cuda, tensor_shape: tuple[int, ...], steps: int, largest: int) -> None:
        self._shape = tensor_shape
        self._steps = steps
        self._row_bytes = FLOAT.itemsize * int(np.prod(tensor_shape, dtype=np.int64))
        self.buffer = Buffer(cuda, steps * aligned(largest * self._row_bytes))

    def pitch(self, batch: int) -> int:
        """Bytes from one step to the next."""
        return aligned(batch * self._row_bytes)

    def address(self, batch: int, step: int = 0) -> int:
        """Where a step lies on the GPU."""
        return self.buffer.address + step * self.pitch(batch)

    def size(self, batch: int, steps: int = 1) -> int:
        """Bytes of the first steps."""
        return steps * self.pitch(batch)

    def host(self, batch: int, steps: int = 1) -> Any:
        """The first steps in the twin, as (steps, batch, *shape)."""
        strides = [FLOAT.itemsize]
        for extent in reversed((batch, *self._shape)):
            strides.insert(0, strides[0] * extent)
        strides[0] = self.pitch(batch)
        return np.ndarray((steps, batch, *self._shape), FLOAT, self.buffer.bytes.data, 0, tuple(strides))

    def raw(self, batch: int, steps: int = 1) -> Any:
        """The same, as the bytes that are copied."""
        return self.buffer.bytes[: self.size(batch, steps)]


class Runner:
    """What both forms of a window have in common: rounded batches, each with its launch."""

    def __init__(self, cuda: Cuda, compiled: Compiled, layout: Layout, spec: Spec, *, recorded: bool) -> None:
        self.cuda = cuda
        self.compiled = compiled
        self.layout = layout
        self.spec = spec
        self._recorded = recorded
        self._launches: dict[tuple[str, int], Launch] = {}
        self._buffers: list[Buffer] = []

    def rounded(self, batch: int) -> int:
        """The batch that is run for a batch."""
        return min(1 << (batch - 1).bit_length(), self.layout.max_batch)

    def place(self, region: Region, steps: int = 1) -> Place:
        """Room for a tensor of the model."""
        place = Place(self.cuda, region.tensor.shape, steps, self.layout.max_batch)
        self._buffers.append(place.buffer)
        return place

    def launch(self, kind: str, batch: int, work: Callable[[Context, int], None]) -> None:
        """Run ``work`` for a rounded batch, recorded from the second time on. A record needs a context of its own."""
        key = (kind, batch)
        if key not in self._launches:
            context = self.compiled.context(batch)
            self._launches[key] = Launch(self.cuda, lambda: work(context, batch), recorded=self._recorded)
        self._launches[key].run()

    def close(self) -> None:
        """Free everything on the GPU but the plan."""
        for launch in self._launches.values():
            launch.close()
        for buffer in self._buffers:
            buffer.close()
        self._launches.clear()
        self._buffers.clear()


class Stepper(Runner):
    """The step plan: single steps, and windows of T steps with the states on the GPU."""

    def __init__(self, cuda: Cuda, compiled: Compiled, layout: Layout, spec: Spec, *, recorded: bool) -> None:
        super().__init__(cuda, compiled, layout, spec, recorded=recorded)
        steps = layout.timesteps
        self._inputs = {
            r.tensor.name: (self.place(r, steps if r.tensor.sequence else 1), r.tensor.sequence)
            for r in layout.role(Role.INPUT)
        }
        self._states = {r.tensor.name: (self.place(r), self.place(r)) for r in layout.role(Role.STATE)}
        (output,) = layout.role(Role.STEP_OUTPUT)
        self._output = self.place(output, steps)

    def window(self, arrays: Arrays, slot: int, batch: int) -> None:
        """INPUT to READOUT, from zero state."""
        rows = self.rounded(batch)
        for name, array in arrays.of(slot, Role.INPUT, batch).items():
            place, sequence = self._inputs[name]
            place.host(rows, self.layout.timesteps if sequence else 1)[:, :batch] = array
        self.launch("window", rows, self._window)
        (readout,) = arrays.of(slot, Role.READOUT, batch).values()
        outputs = self._output.host(rows, self.layout.timesteps)[:, :batch]
        readout[...] = self.spec.read_out(outputs)

    def step(self, arrays: Arrays, slot: int, batch: int) -> None:
        """STEP_INPUT and STATE to STEP_OUTPUT and NEXT_STATE."""
        rows = self.rounded(batch)
        for name, array in arrays.of(slot, Role.STEP_INPUT, batch).items():
            self._inputs[name][0].host(rows)[0, :batch] = array
        for name, array in arrays.of(slot, Role.STATE, batch).items():
            self._states[name][0].host(rows)[0, :batch] = array
        self.launch("step", rows, self._step)
        (output,) = arrays.of(slot, Role.STEP_OUTPUT, batch).values()
        output[...] = self._output.host(rows)[0, :batch]
        for name, array in arrays.of(slot, Role.NEXT_STATE, batch).items():
            array[...] = self._states[name][1].host(rows)[0, :batch]

    def _window(self, context: Context, rows: int) -> None:
        steps = self.layout.timesteps
        for place, sequence in self._inputs.values():
            self.cuda.upload(place.address(rows), place.raw(rows, steps if sequence else 1))
        for before, _ in self._states.values():
            self.cuda.zero(before.address(rows), before.size(rows))
        for t in range(steps):
            self._place(context, rows, t)
            context.enqueue(self.cuda.stream)
        self.cuda.download(self._output.raw(rows, steps), self._output.address(rows))

    def _step(self, context: Context, rows: int) -> None:
        for place, _ in self._inputs.values():
            self.cuda.upload(place.address(rows), place.raw(rows))
        for before, _ in self._states.values():
            self.cuda.upload(before.address(rows), before.raw(rows))
        self._place(context, rows, 0)
        context.enqueue(self.cuda.stream)
        self.cuda.download(self._output.raw(rows), self._output.address(rows))
        for _, after in self._states.values():
            self.cuda.download(after.raw(rows), after.address(rows))

    def _place(self, context: Context, rows: int, t: int) -> None:
        for name, (place, sequence) in self._inputs.items():
            context.place(name, place.address(rows, t if sequence else 0))
        for name, pair in self._states.items():
            before, after = pair if t % 2 == 0 else pair[::-1]
            context.place(name, before.address(rows))
            context.place(self.spec.next_states[name], after.address(rows))
        context.place(self.spec.output, self._output.address(rows, t))


class Windower(Runner):
    """The window plan: all steps in one run, what depends on no state at once for all of them."""

    def __init__(self, cuda: Cuda, compiled: Compiled, layout: Layout, spec: Spec, *, recorded: bool) -> None:
        super().__init__(cuda, compiled, layout, spec, recorded=recorded)
        self._inputs = {r.tensor.name: (r, self._room(r, layout.timesteps)) for r in layout.role(Role.INPUT)}
        (readout,) = layout.role(Role.READOUT)
        self._classes = readout.tensor.shape
        self._outputs = self._room(readout, layout.timesteps)

    def window(self, arrays: Arrays, slot: int, batch: int) -> None:
        """INPUT to READOUT."""
        rows = self.rounded(batch)
        for name, array in arrays.of(slot, Role.INPUT, batch).items():
            region, room = self._inputs[name]
            given = _dense(room, self.layout.shape(region, rows))
            if region.tensor.sequence:
                given[:, :batch] = array
            else:
                given[:batch] = array
        self.launch("window", rows, self._window)
        (readout,) = arrays.of(slot, Role.READOUT, batch).values()
        readout[...] = self.spec.read_out(_dense(self._outputs, self._shape(rows))[:, :batch])

    def _window(self, context: Context, rows: int) -> None:
        for name, (region, room) in self._inputs.items():
            self.cuda.upload(room.address, _dense(room, self.layout.shape(region, rows)))
            context.place(name, room.address)
        context.place(OUTPUTS, self._outputs.address)
        context.enqueue(self.cuda.stream)
        self.cuda.download(_dense(self._outputs, self._shape(rows)), self._outputs.address)

    def _room(self, region: Region, steps: int) -> Buffer:
        size = FLOAT.itemsize * steps * self.layout.max_batch * int(np.prod(region.tensor.shape, dtype=np.int64))
        self._buffers.append(Buffer(self.cuda, size))
        return self._buffers[-1]

    def _shape(self, rows: int) -> tuple[int, ...]:
        return (self.layout.timesteps, rows, *self._classes)


def _dense(room: Buffer, shape: tuple[int, ...]) -> Any:
    """The beginning of a buffer's twin as an array."""
    return np.ndarray(shape, FLOAT, room.bytes.data)
