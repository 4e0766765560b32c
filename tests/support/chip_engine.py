"""The arithmetic of the chip as an engine, in NumPy: whole, or with one thing wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx

from edged.bundle.golden_form import load_golden
from edged.bundle.golden_loihi import Chip, in_integers
from edged.bundle.graph.readout import scores
from edged.bundle.loaded import Bundle
from edged.bundle.loihi import Integers, NoIntegers, Population
from edged.domain import Array
from edged.errors import EngineError
from edged.ports import Inference

Change = Callable[[Population], Population]


class ChipEngine:
    """Implements ``edged.ports.Engine``."""

    def __init__(self, chip: Chip, name: str = "lava-fixed") -> None:
        self.name = name
        self.max_batch = 8
        self.chip = chip

    async def infer(self, inputs: Mapping[str, Array]) -> Inference:
        value = inputs[self.chip.entry.name]
        rows = np.swapaxes(value, 0, 1) if self.chip.entry.sequence else value
        try:
            outputs = self.chip.windows(rows)
        except NoIntegers as error:
            raise EngineError(str(error)) from None
        return Inference(scores(outputs, self.chip.spec.readout).astype(np.float32), 1)

    async def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        frames, spec = inputs[self.chip.entry.name], self.chip.spec
        try:
            rows = [
                self.chip.step(frame, {name: value[k] for name, value in states.items()})
                for k, frame in enumerate(frames)
            ]
        except NoIntegers as error:
            raise EngineError(str(error)) from None
        found = {name: np.stack([row[name] for row in rows]).astype(np.float32) for name in rows[0]}
        return {spec.output: found.pop(spec.output)}, found


def integers_of(bundle: Bundle, model: onnx.ModelProto) -> Integers:
    """What the golden data of a bundle ask for."""
    return in_integers(model, bundle.spec, load_golden(bundle)["free.input"].astype(np.float32))[0]


def changed(made: Integers) -> Iterator[tuple[str, Integers]]:
    """Every defect in the integers of each population, by name."""
    for k, population in enumerate(made.populations):
        for name, change in CHANGES.items():
            other = change(population)
            if other is not population:
                populations = (*made.populations[:k], other, *made.populations[k + 1 :])
                yield f"{population.cell.name}: {name}", replace(made, populations=populations)


def _weights(change: Callable[[Array], Array]) -> Change:
    def apply(one: Population) -> Population:
        first = one.fans[0]
        synapses = replace(first.synapses, weights=change(first.synapses.weights))
        return replace(one, fans=(replace(first, synapses=synapses), *one.fans[1:]))

    return apply


def _shifted(by: int) -> Change:
    return lambda one: replace(one, fans=(replace(one.fans[0], exponent=one.fans[0].exponent + by), *one.fans[1:]))


def _constant(one: Population) -> Population:
    if not one.constants:
        return one
    (first, value), *rest = one.constants
    unit = max(2, 1 << -min(one.constants_exponent, 0))  # of the current: the shift drops anything less
    return replace(one, constants=((first, value + unit), *rest))


def _threshold(by: int) -> Change:
    """One unit of what the chip holds: 2^6 where it is the threshold's own, 2^exponent where it is a bias."""

    def apply(one: Population) -> Population:
        if one.threshold:
            return replace(one, threshold=one.threshold + by * 64)
        return replace(one, bias=one.bias - by * (one.bias & -one.bias))

    return apply


def _reset(one: Population) -> Population:
    """The synapse from each neuron to itself, where there is one. It is at work in whole windows only."""
    own = [k for k, fan in enumerate(one.fans) if fan.synapses.source == one.cell.emission]
    if not own:
        return one
    fan = one.fans[own[0]]
    weights = np.where(fan.synapses.rows == fan.synapses.columns, 0, fan.synapses.weights)
    fans = list(one.fans)
    fans[own[0]] = replace(fan, synapses=replace(fan.synapses, weights=weights))
    return replace(one, fans=tuple(fans))


CHANGES: dict[str, Change] = {
    "weights one up": _weights(lambda w: w + 2),
    "weights one down": _weights(lambda w: w - 2),
    "weights cut to 7 bits": _weights(lambda w: np.round(w / 4) * 4),
    "shift one up": _shifted(1),
    "shift one down": _shifted(-1),
    "threshold one up": _threshold(1),
    "threshold one down": _threshold(-1),
    "constant one up": _constant,
    "decay of u": lambda one: replace(one, du=one.du + 1) if one.du < 4095 else one,
    "decay of v": lambda one: replace(one, dv=one.dv + 1) if one.dv < 4095 else one,
    "reset dropped": _reset,
}
