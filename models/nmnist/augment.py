"""Recordings as torch tensors, event frames made from them, and the same recordings bent, moved and thinned out.

Everything happens to the events, before they are binned: a pixel moves as a whole with all of its times. Without a
generator ``frames`` gives exactly what the manifest's encoding gives a device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]  # lives in the training environment only
import torch.nn.functional as functional  # type: ignore[import-not-found]  # as above

from edged.domain import Events
from models.nmnist.data import POLARITIES, SIDE, STEP_US, TIMESTEPS

_CENTRE = (SIDE - 1) / 2
_ROTATION = math.radians(12)
_ZOOM = 0.12  # each axis on its own
_SHEAR = 0.12
_SHIFT = 2.5  # pixels
_BEND = 1.5  # pixels, at the knots of a 5 x 5 net over the sensor
_MOST_LOST = 0.3  # share of events
_TEMPO = 0.04
_LATE_US = 8_000.0  # of the whole recording
_JITTER_US = 2_000.0  # of each event


@dataclass(frozen=True)
class Recordings:
    """Many recordings side by side, each array (N, most events); ``there`` tells events from padding."""

    x: Any
    y: Any
    polarity: Any
    t_us: Any  # since the recording's first event
    there: Any


def recordings(events: list[Events]) -> Recordings:
    """Pad recordings to one length."""
    most = max(len(one.t_us) for one in events)

    def padded(arrays: list[Any], dtype: Any) -> Any:
        return torch.tensor(np.stack([np.pad(a.astype(np.int64), (0, most - len(a))) for a in arrays]), dtype=dtype)

    return Recordings(
        padded([one.x for one in events], torch.float32),
        padded([one.y for one in events], torch.float32),
        padded([one.polarity for one in events], torch.int64),
        padded([one.t_us - one.t_us[0] for one in events], torch.float32),
        padded([np.ones(len(one.t_us)) for one in events], torch.bool),
    )


def frames(given: Recordings, rows: Any, random: Any = None) -> Any:
    """Binary frames (rows, T, polarities, SIDE, SIDE) of some recordings; with a generator, of ones like them."""
    chosen = Recordings(*(array[rows] for array in vars(given).values()))
    if random is not None:
        chosen = _varied(chosen, random)
    step = torch.floor(chosen.t_us / STEP_US).long()
    inside = (chosen.x >= 0) & (chosen.x < SIDE) & (chosen.y >= 0) & (chosen.y < SIDE)
    kept = chosen.there & inside & (step < TIMESTEPS)
    place = torch.arange(len(rows))[:, None] * TIMESTEPS + step
    place = (place * POLARITIES + chosen.polarity) * SIDE * SIDE + _pixel(chosen)
    made = torch.zeros(len(rows) * TIMESTEPS * POLARITIES * SIDE * SIDE)
    made[place[kept]] = 1
    return made.view(len(rows), TIMESTEPS, POLARITIES, SIDE, SIDE)


def _pixel(given: Recordings) -> Any:
    return given.y.long() * SIDE + given.x.long()


def _varied(given: Recordings, random: Any) -> Recordings:
    count, most = given.x.shape

    def uniform(*shape: int) -> Any:
        return torch.rand(count, *shape, generator=random) * 2 - 1

    net = functional.interpolate(uniform(2, 5, 5) * _BEND, size=(SIDE, SIDE), mode="bicubic", align_corners=True)
    bend_x, bend_y = (net[:, axis].reshape(count, -1).gather(1, _pixel(given)) for axis in (0, 1))
    angle, x, y = uniform(1) * _ROTATION, given.x - _CENTRE, given.y - _CENTRE
    right = torch.cos(angle) * (1 + uniform(1) * _ZOOM) * x - (torch.sin(angle) + uniform(1) * _SHEAR) * y
    down = torch.sin(angle) * x + torch.cos(angle) * (1 + uniform(1) * _ZOOM) * y
    # half a pixel of noise before rounding: a grid that is turned or stretched shows no holes
    x = _CENTRE + right + bend_x + uniform(1) * _SHIFT + uniform(most) / 2
    y = _CENTRE + down + bend_y + uniform(1) * _SHIFT + uniform(most) / 2
    t_us = given.t_us * (1 + uniform(1) * _TEMPO) + uniform(1) * _LATE_US + uniform(most) * _JITTER_US
    lost = torch.rand(count, 1, generator=random) * _MOST_LOST
    there = given.there & (torch.rand(count, most, generator=random) >= lost)
    return Recordings(x.round(), y.round(), given.polarity, t_us.clamp(min=0), there)
