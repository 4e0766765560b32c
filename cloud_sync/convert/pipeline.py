"""The conversion from end to end: the passes in their order, and what becomes of their results."""

from __future__ import annotations

from dataclasses import dataclass

from cloud_sync.convert import grid
from cloud_sync.convert.errors import ConversionError
from cloud_sync.convert.fold import fold
from cloud_sync.convert.network import Floats, Network
from cloud_sync.convert.spiking import SpikingNetwork, spiking
from cloud_sync.convert.thresholds import calibrate
from edged.bundle.manifest import MAX_TIMESTEPS


@dataclass(frozen=True, slots=True, eq=False)
class Converted:
    """A spiking network for ``timesteps``, and the folded ANN that it came from."""

    ann: Network
    spiking: SpikingNetwork
    timesteps: int


def convert(network: Network, calibration: Floats, timesteps: int, *, exact: bool = False) -> Converted:
    """Convert a loaded ANN with calibration samples (N, *input_shape).

    ``exact``: weights on a grid on which no engine rounds a sum (``grid``). The same arguments give the same graph.
    Raises ConversionError.
    """
    if not 1 <= timesteps <= MAX_TIMESTEPS:
        raise ConversionError(f"{timesteps} timesteps", f"choose 1 to {MAX_TIMESTEPS}")
    if calibration.shape[1:] != network.input_shape or not len(calibration):
        raise ConversionError(
            f"the calibration data has shape {calibration.shape}", f"the ANN takes (N, {network.input_shape})"
        )
    folded = fold(network)
    if exact:
        grid.check_layers(folded)
        grid.check_samples(calibration)
    made = spiking(folded, calibrate(folded, calibration, timesteps), exact=exact)
    if exact:
        grid.prove(made, timesteps)
    return Converted(folded, made, timesteps)
