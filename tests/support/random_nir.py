"""Random NIR networks: chains of every node type, with branches, feedback, delays and several populations."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.nir_files import Fields, Net, Rules

SPIKING = ("IF", "LIF", "CubaLIF")
ANALOGUE = ("LI", "CubaLI", "I")


class Grower:
    """Adds node after node to a network; ``at`` is the last node of the main chain, ``shape`` what it sends."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...], rules: Rules) -> None:
        self.rng, self.rules = rng, rules
        self.net = Net({"in": {"type": "Input", "shape": np.array(shape)}}, [])
        self.at, self.shape = "in", shape

    def add(self, fields: Fields, shape: tuple[int, ...], *sources: str) -> str:
        name = f"n{len(self.net.nodes):02}"
        self.net.nodes[name] = fields
        self.net.edges += [(source, name) for source in sources or (self.at,)]
        if not sources or self.at in sources:
            self.at, self.shape = name, shape
        return name

    def finish(self) -> Net:
        self.net.nodes["out"] = {"type": "Output", "shape": np.array(self.shape)}
        self.net.edges.append((self.at, "out"))
        return self.net

    def cell(self, kind: str) -> Fields:
        return cell(self.rng, kind, self.shape, self.rules)

    def dense(self, size: int) -> None:
        weight = self.rng.normal(0.1, 1.5, (size, self.shape[0]))
        kind = self.rng.choice(["Affine", "Linear"])
        bias = {"bias": self.rng.normal(0, 0.3, size)} if kind == "Affine" else {}
        self.add({"type": str(kind), "weight": weight, **bias}, (size,))

    def feedback(self, target: str, source: str, size: int, width: int) -> None:
        """``source`` (width,) of the step before, through weights, into ``target`` (size,)."""
        name = f"back{len(self.net.nodes)}"
        weight = self.rng.normal(0, 0.8, (size, width))
        self.net.nodes[name] = {"type": "Linear", "weight": weight}
        self.net.edges += [(source, name), (name, target)]
        self.net.feedback.add(name)


def cell(rng: np.random.Generator, kind: str, shape: tuple[int, ...], rules: Rules) -> Fields:
    """A layer of neurons whose parameters differ from element to element, or from channel to channel."""

    def drawn(low: float, high: float) -> Any:
        wide = shape if rng.random() < 0.5 else (shape[0], *(1 for _ in shape[1:]))
        return np.broadcast_to(rng.uniform(low, high, wide), shape).copy()

    slow, fast = drawn(4 * rules.dt, 20 * rules.dt), drawn(1.5 * rules.dt, 6 * rules.dt)
    made: dict[str, Any] = {
        "tau": slow,
        "tau_mem": slow,
        "tau_syn": fast,
        "r": drawn(1.0, 3.0) / (rules.dt if kind in ("I", "IF") else 0.2),
        "v_leak": drawn(-0.3, 0.3),
        "w_in": drawn(0.5, 2.0),
        "v_threshold": drawn(0.6, 1.5),
        "v_reset": drawn(-0.5, 0.3) if rules.reset == "value" else np.zeros(shape),
    }
    return {"type": kind, **{name: made[name] for name in FIELDS[kind]}}


FIELDS = {
    "I": ("r",),
    "IF": ("r", "v_threshold", "v_reset"),
    "LI": ("tau", "r", "v_leak"),
    "LIF": ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    "CubaLI": ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
    "CubaLIF": ("tau_syn", "tau_mem", "r", "v_leak", "w_in", "v_threshold", "v_reset"),
}


def dense_net(rng: np.random.Generator, rules: Rules) -> Net:
    """Weights and neurons, with skips, feedback within and across layers, delays, scales and thresholds."""
    grow = Grower(rng, (int(rng.integers(2, 6)),), rules)
    populations: list[tuple[str, int]] = []
    for _ in range(rng.integers(1, 4)):
        size = int(rng.integers(2, 6))
        before, width = grow.at, grow.shape
        grow.dense(size)
        if rng.random() < 0.4:
            grow.add({"type": "Scale", "scale": rng.uniform(0.5, 2, size)}, (size,))
        fields = grow.cell(str(rng.choice(SPIKING)))
        skips = rng.random() < 0.4 and width == (size,)  # two edges into one node are a sum
        grow.add(fields, (size,), grow.at, *([before] if skips else []))
        populations.append((grow.at, size))
        if rng.random() < 0.5:
            target, wide = populations[rng.integers(len(populations))]
            grow.feedback(target, grow.at, wide, size)
        if rng.random() < 0.3:
            grow.add({"type": "Delay", "delay": rng.integers(0, 4, size) * rules.dt}, (size,))
            populations.clear()  # a cycle with a delay in it takes no further step: see the tests
    if rng.random() < 0.5:
        grow.add(grow.cell(str(rng.choice(ANALOGUE))), grow.shape)
    if rng.random() < 0.3:
        grow.add({"type": "Threshold", "threshold": rng.uniform(0.2, 0.8, grow.shape)}, grow.shape)
    return grow.finish()


def spatial_net(rng: np.random.Generator, rules: Rules) -> Net:
    """Convolutions of one or two axes with strides, groups, dilations and paddings; pools; a dense layer at the end."""
    axes = int(rng.integers(1, 3))
    shape = (2, *(int(size) for size in rng.integers(6, 10, axes)))
    grow = Grower(rng, shape, rules)
    for _ in range(rng.integers(1, 3)):
        _convolve(grow, axes)
        grow.add(grow.cell(str(rng.choice(SPIKING))), grow.shape)
        if axes == 2 and rng.random() < 0.6:
            _pool(grow)
    grow.add({"type": "Flatten", "start_dim": 0, "end_dim": -1, "input_type": np.array(grow.shape)},
             (int(np.prod(grow.shape)),))  # fmt: skip
    grow.dense(3)
    grow.add(grow.cell(str(rng.choice(SPIKING))), grow.shape)
    return grow.finish()


def _convolve(grow: Grower, axes: int) -> None:
    rng, space = grow.rng, grow.shape[1:]
    groups = int(rng.integers(1, 3))
    kernel = rng.integers(1, 4, axes)
    dilation, padding = rng.integers(1, 3, axes), rng.integers(0, 3, axes)
    stride = rng.integers(1, 3, axes)
    reach = dilation * (kernel - 1) + 1
    how: Any = str(rng.choice(["numbers", "same", "valid"]))
    if how == "same":
        stride[:] = 1
        size = space
    else:
        around = padding if how == "numbers" else 0 * padding
        size = tuple(int(n) for n in (np.array(space) + 2 * around - reach) // stride + 1)
    if min(size) < 1:
        return
    weight = rng.normal(0.1, 1.0, (4, grow.shape[0] // groups, *kernel))
    plain = (lambda numbers: int(numbers[0])) if axes == 1 else np.array
    fields = {
        "type": f"Conv{axes}d",
        "input_shape": plain(np.array(space)),
        "weight": weight,
        "bias": rng.normal(0, 0.2, 4),
        "stride": plain(stride),
        "dilation": plain(dilation),
        "padding": plain(padding) if how == "numbers" else how,
        "groups": groups,
    }
    grow.add(fields, (4, *size))


def _pool(grow: Grower) -> None:
    rng = grow.rng
    kernel, stride = rng.integers(1, 4, 2), rng.integers(1, 3, 2)
    padding = np.array([rng.integers(0, size // 2 + 1) for size in kernel])
    size = tuple(int(n) for n in (np.array(grow.shape[1:]) + 2 * padding - kernel) // stride + 1)
    if min(size) < 1:
        return
    kind = str(rng.choice(["AvgPool2d", "SumPool2d"]))
    fields = {"type": kind, "kernel_size": kernel, "stride": stride, "padding": padding}
    grow.add(fields, (grow.shape[0], *size))
