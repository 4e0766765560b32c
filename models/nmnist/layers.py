"""What the network looks like: known to ``train``, which fits its weights, and to ``network``, which writes its graph.

    34x34x2 events → 16 channels 17x17 → 32 channels 9x9 → 64 channels 5x5 → 96 channels 3x3 → 10 scores

The camera moves three times, and an edge lies elsewhere in each movement. Neurons of the first two layers lose half of
their potential in a step, so they see a feature within a movement and not the three smeared into one. The last two
layers keep all of it: they add up what was seen.

Weights are rounded to a grid on which float32 adds exactly (``network`` proves it). A potential that is halved at each
step needs more digits, hence the coarser grid of the leaky layers.
"""

from __future__ import annotations

from dataclasses import dataclass

THRESHOLD = 0.5  # with a reset by 1: a neuron that starts half full
RESET = 1.0
STRIDE = 2  # of every convolution: instead of pooling, so that layers see nothing but spikes


@dataclass(frozen=True)
class Layer:
    """A convolution with padding kernel // 2, and its neurons: ``decay`` is what a step leaves of a potential."""

    inputs: int
    outputs: int
    kernel: int
    decay: float
    grid: float


LAYERS = (
    Layer(2, 16, 5, 0.5, 2.0**-8),
    Layer(16, 32, 3, 0.5, 2.0**-8),
    Layer(32, 64, 3, 1.0, 2.0**-12),
    Layer(64, 96, 3, 1.0, 2.0**-12),
)
FEATURES = 96 * 3 * 3
DENSE_GRID = 2.0**-12
