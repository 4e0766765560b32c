"""The batch probe: runs a step graph on stock ONNX Runtime and shows that samples of a batch do not touch each other.

Complements the static rules: whatever they let pass, three samples in one batch must equal three batches of one.
"""

from __future__ import annotations

import numpy as np
import onnx

from edged.bundle.graph.spec import GraphSpec
from edged.bundle.graph.stock import Floats, Stock
from edged.errors import BundleError

ROWS = 3  # with two, a swap and a mirror look alike
TOLERANCE = 1e-4  # other batch sizes may sum in another order; a mixed batch is off by whole numbers


def probe_batch(model: onnx.ModelProto, spec: GraphSpec, seed: int = 0) -> None:
    """Compare one batch of three with three batches of one, over two steps. Raises BundleError where they differ."""
    stock, rng = Stock(model), np.random.default_rng(seed)
    feeds: dict[str, Floats] = {entry.name: rng.random((ROWS, *entry.shape), dtype=np.float32) for entry in spec.inputs}
    feeds |= {state.input: rng.random((ROWS, *state.shape), dtype=np.float32) for state in spec.states}
    together = stock.run(feeds)
    for row in range(ROWS):
        alone = stock.run({name: value[row : row + 1] for name, value in feeds.items()})
        for name, value in alone.items():
            _compare(name, row, together[name], value)


def _compare(name: str, row: int, together: Floats, alone: Floats) -> None:
    if together.shape != (ROWS, *alone.shape[1:]) or len(alone) != 1:
        raise BundleError(
            f"the model's output {name!r} has shape {together.shape} for {ROWS} samples", "axis 0 is the batch"
        )
    differs = np.abs(together[row] - alone[0]) > TOLERANCE * (1 + np.abs(alone[0]))
    # a spike may flip where another batch size rounds differently; a mixed batch changes more than that
    if differs.mean() > 0.01:
        raise BundleError(
            f"the model's output {name!r} of sample {row} depends on the other samples of its batch",
            "a node mixes axis 0, the batch",
        )
