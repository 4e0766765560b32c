"""The conversion from end to end: the passes in their order, and what becomes of their results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx

from cloud_sync.convert import grid
from cloud_sync.convert.biases import corrected
from cloud_sync.convert.errors import ConversionError
from cloud_sync.convert.firing import Firing
from cloud_sync.convert.fold import fold
from cloud_sync.convert.network import Floats, Network
from cloud_sync.convert.progress import Say, silent
from cloud_sync.convert.spiking import spiking
from cloud_sync.convert.step import SpikingNetwork
from cloud_sync.convert.thresholds import calibrate
from cloud_sync.convert.weights import Weights, as_they_are, int8
from edged.bundle.graph.quantized import packed
from edged.bundle.manifest import MAX_TIMESTEPS

WeightKind = Literal["float32", "int8"]


@dataclass(frozen=True, slots=True)
class Options:
    """How to convert. ``exact``: weights on a grid on which no engine rounds a sum (``grid``)."""

    firing: Firing = Firing.BINARY
    exact: bool = False
    correct_biases: bool = False
    weights: WeightKind = "float32"

    def rounding(self) -> Weights:
        """What happens to the weights. Raises ConversionError where two options contradict each other."""
        if self.exact and self.weights == "int8":
            raise ConversionError("--exact has a grid of its own", "leave out --weights int8")
        if self.exact:
            return grid.snapped
        return int8 if self.weights == "int8" else as_they_are


PLAIN = Options()


@dataclass(frozen=True, slots=True, eq=False)
class Converted:
    """A spiking network for T = ``timesteps``, and the folded ANN that it came from. It runs ``spiking.steps`` steps:
    with accumulating neurons more than T. ``reach`` are the least and the largest number of the calibration samples."""

    ann: Network
    spiking: SpikingNetwork
    timesteps: int
    options: Options
    reach: tuple[float, float] = (0.0, 1.0)

    def stored(self) -> onnx.ModelProto:
        """The step graph as a bundle keeps it: with int8 weights where that was asked for."""
        model = self.spiking.graph.model
        return packed(model) if self.options.weights == "int8" else model


def convert(
    network: Network,
    calibration: Floats,
    timesteps: int,
    options: Options = PLAIN,
    say: Say = silent,
    *,
    proof: bool = True,
) -> Converted:
    """Convert a loaded ANN with calibration samples (N, *input_shape). The same arguments give the same graph.

    ``say`` is told how far it got. Without ``proof``, an exact conversion may be one whose sums could leave the exact
    range: good for figures, not for a bundle. Raises ConversionError.
    """
    if not 1 <= timesteps <= MAX_TIMESTEPS:
        raise ConversionError(f"{timesteps} timesteps", f"choose 1 to {MAX_TIMESTEPS}")
    if calibration.shape[1:] != network.input_shape or not len(calibration):
        raise ConversionError(
            f"the calibration data has shape {calibration.shape}", f"the ANN takes (N, {network.input_shape})"
        )
    rounding = options.rounding()
    folded = fold(network)
    if options.exact:
        grid.check_layers(folded)
        grid.check_samples(calibration)
    theta = calibrate(folded, calibration, timesteps, say)

    def write(changed: Network) -> SpikingNetwork:
        return spiking(changed, theta, timesteps, firing=options.firing, weights=rounding)

    made = write(corrected(folded, calibration, timesteps, write, say) if options.correct_biases else folded)
    if made.steps > MAX_TIMESTEPS:
        raise ConversionError(f"T = {timesteps} takes {made.steps} steps", f"at most {MAX_TIMESTEPS}: choose a lower T")
    if options.exact and proof:
        grid.prove(made, timesteps, signed=options.firing is Firing.SIGNED)
    return Converted(folded, made, timesteps, options, (float(calibration.min()), float(calibration.max())))
