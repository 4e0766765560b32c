"""NIR files for tests, written as the nir package writes them (HDF5), and an independent simulator of their networks.

The simulator works in float64 on NIR's own quantities (τ, r, v_leak, …), step by step and node by node; it knows
neither the canonical graph nor the code of the import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]  # it ships no types
import numpy as np
from numpy.typing import NDArray

Fields = dict[str, Any]
Floats = NDArray[Any]


@dataclass
class Net:
    """Nodes with their fields (``type`` among them), the edges, and which nodes carry feedback, in order of a step."""

    nodes: dict[str, Fields]
    edges: list[tuple[str, str]]
    feedback: set[str] = field(default_factory=set)

    def write(self, path: Path) -> Path:
        with h5py.File(path, "w") as file:
            file["version"] = "1.0.8"
            write_graph(file.create_group("node"), self.nodes, self.edges)
        return path


def write_graph(group: Any, nodes: Mapping[str, Fields], edges: Sequence[tuple[str, str]]) -> None:
    group["type"] = "NIRGraph"
    group["edges"] = np.array(edges, dtype=h5py.string_dtype()).reshape(-1, 2)
    inner = group.create_group("nodes")
    for name, fields in nodes.items():
        node = inner.create_group(name)
        if "nodes" in fields:
            write_graph(node, fields["nodes"], fields["edges"])
            continue
        for key, value in fields.items():
            node[key] = value


@dataclass(frozen=True)
class Rules:
    """What the simulator is told beside the file."""

    dt: float = 0.25
    reset: str = "value"
    comparison: str = ">"
    start: str = "zero"
    exponential: bool = False


class Simulator:
    """One network from its start. ``margin`` is the least distance of any potential from its threshold so far."""

    def __init__(self, net: Net, rules: Rules) -> None:
        self.net, self.rules = net, rules
        self.reads = {name: [a for a, b in net.edges if b == name] for name in net.nodes}
        self.memory: dict[str, Any] = {}
        self.before: dict[str, Floats] = {}
        self.margin = np.inf

    def run(self, inputs: Floats) -> Floats:
        """(T, *shape) → what the output sends at each step."""
        return np.array([self.step(frame) for frame in inputs.astype(np.float64)])

    def step(self, frame: Floats) -> Floats:
        now: dict[str, Floats] = {}
        for name in self.net.nodes:
            if name in self.net.feedback:  # of what its neurons sent in the step before
                now[name] = self.node(name, sum(self.previous(source) for source in self.reads[name]))
        for name, fields in self.net.nodes.items():
            if name not in self.net.feedback:
                arrived = frame if fields["type"] == "Input" else sum(now[source] for source in self.reads[name])
                now[name] = self.node(name, arrived)
        self.before = now
        return next(now[name] for name, fields in self.net.nodes.items() if fields["type"] == "Output")

    def previous(self, name: str) -> Floats:
        if name in self.before:
            return self.before[name]
        fields = self.net.nodes[name]
        shape = np.shape(fields["r"])
        return self.started(fields, shape) if fields["type"] in ("LI", "CubaLI") else np.zeros(shape)

    def started(self, fields: Fields, shape: tuple[int, ...]) -> Floats:
        name = {"zero": None, "reset": "v_reset", "leak": "v_leak"}[self.rules.start]
        return np.zeros(shape) + (fields.get(name, 0.0) if name else 0.0)

    def node(self, name: str, x: Any) -> Floats:
        fields = self.net.nodes[name]
        made: Floats = getattr(self, f"on_{fields['type'].lower()}")(name, fields, np.asarray(x, np.float64))
        return made

    # What computes in no time

    def on_input(self, _: str, fields: Fields, x: Floats) -> Floats:
        return x

    def on_output(self, _: str, fields: Fields, x: Floats) -> Floats:
        return x

    def on_linear(self, _: str, fields: Fields, x: Floats) -> Floats:
        return np.asarray(fields["weight"] @ x)

    def on_affine(self, _: str, fields: Fields, x: Floats) -> Floats:
        return np.asarray(fields["weight"] @ x + fields["bias"])

    def on_scale(self, _: str, fields: Fields, x: Floats) -> Floats:
        return np.asarray(x * fields["scale"])

    def on_flatten(self, _: str, fields: Fields, x: Floats) -> Floats:
        start, end = fields["start_dim"] % x.ndim, fields["end_dim"] % x.ndim
        return np.asarray(x.reshape(*x.shape[:start], -1, *x.shape[end + 1 :]))

    def on_conv2d(self, _: str, fields: Fields, x: Floats) -> Floats:
        weight, groups = fields["weight"], int(fields["groups"])
        (sy, sx), (dy, dx) = fields["stride"], fields["dilation"]
        kernel = ((weight.shape[2] - 1) * dy, (weight.shape[3] - 1) * dx)
        padding = fields["padding"]
        if isinstance(padding, str):
            around = [(k // 2, k - k // 2) if padding == "same" else (0, 0) for k in kernel]
        else:
            around = [(int(p), int(p)) for p in padding]
        x = np.pad(x, [(0, 0), *around])
        rows, columns = (x.shape[1] - kernel[0] - 1) // sy + 1, (x.shape[2] - kernel[1] - 1) // sx + 1
        out = np.zeros((len(weight), rows, columns))
        each = len(weight) // groups
        for o in range(len(weight)):
            first = (o // each) * weight.shape[1]
            for r in range(rows):
                for c in range(columns):
                    patch = x[first : first + weight.shape[1], r * sy : r * sy + kernel[0] + 1 : dy,
                              c * sx : c * sx + kernel[1] + 1 : dx]  # fmt: skip
                    out[o, r, c] = (patch * weight[o]).sum() + fields["bias"][o]
        return out

    def on_conv1d(self, name: str, fields: Fields, x: Floats) -> Floats:
        padding = fields["padding"]
        wide = {
            **fields,
            "weight": fields["weight"][:, :, np.newaxis],
            "stride": (1, int(fields["stride"])),
            "dilation": (1, int(fields["dilation"])),
            "padding": padding if isinstance(padding, str) else (0, int(padding)),
        }
        return self.on_conv2d(name, wide, x[:, np.newaxis])[:, 0]

    def on_sumpool2d(self, _: str, fields: Fields, x: Floats) -> Floats:
        (ky, kx), (sy, sx), (py, px) = fields["kernel_size"], fields["stride"], fields["padding"]
        x = np.pad(x, [(0, 0), (py, py), (px, px)])
        rows, columns = (x.shape[1] - ky) // sy + 1, (x.shape[2] - kx) // sx + 1
        windows = [[x[:, r * sy : r * sy + ky, c * sx : c * sx + kx].sum((1, 2)) for c in range(columns)]
                   for r in range(rows)]  # fmt: skip
        return np.moveaxis(np.array(windows), 2, 0)

    def on_avgpool2d(self, name: str, fields: Fields, x: Floats) -> Floats:
        return np.asarray(self.on_sumpool2d(name, fields, x) / np.prod(fields["kernel_size"]))

    # What remembers

    def kept(self, tau: Any) -> Floats:
        return np.asarray(np.exp(-self.rules.dt / tau) if self.rules.exponential else 1 - self.rules.dt / tau)

    def on_li(self, name: str, fields: Fields, x: Floats) -> Floats:
        v = self.memory.get(name, self.started(fields, x.shape))
        kept = self.kept(fields["tau"])
        self.memory[name] = v * kept + (1 - kept) * (fields["v_leak"] + fields["r"] * x)
        return np.asarray(self.memory[name])

    def on_i(self, name: str, fields: Fields, x: Floats) -> Floats:
        self.memory[name] = self.memory.get(name, 0.0) + self.rules.dt * fields["r"] * x
        return np.asarray(self.memory[name])

    def on_cubali(self, name: str, fields: Fields, x: Floats) -> Floats:
        current = self.memory.get(f"{name}.c", np.zeros(x.shape))
        kept = self.kept(fields["tau_syn"])
        self.memory[f"{name}.c"] = current = current * kept + (1 - kept) * fields.get("w_in", 1.0) * x
        return self.on_li(name, {**fields, "tau": fields["tau_mem"]}, current)

    def on_lif(self, name: str, fields: Fields, x: Floats) -> Floats:
        self.on_li(name, fields, x)
        return self.fire(name, fields)

    def on_cubalif(self, name: str, fields: Fields, x: Floats) -> Floats:
        self.on_cubali(name, fields, x)
        return self.fire(name, fields)

    def on_if(self, name: str, fields: Fields, x: Floats) -> Floats:
        if name not in self.memory:
            self.memory[name] = self.started(fields, x.shape)
        self.on_i(name, fields, x)
        return self.fire(name, fields)

    def fire(self, name: str, fields: Fields) -> Floats:
        v, theta = self.memory[name], np.asarray(fields["v_threshold"])
        spikes = self.compare(v, theta)
        if self.rules.reset == "subtract":
            self.memory[name] = v - spikes * theta
        else:
            to = fields.get("v_reset", 0.0) if self.rules.reset == "value" else 0.0
            self.memory[name] = np.where(spikes > 0, to, v)
        return spikes

    def on_threshold(self, _: str, fields: Fields, x: Floats) -> Floats:
        return self.compare(x, np.asarray(fields["threshold"]))

    def compare(self, v: Floats, theta: Floats) -> Floats:
        self.margin = min(self.margin, float(np.abs(v - theta).min()))
        return (v > theta if self.rules.comparison == ">" else v >= theta).astype(np.float64)

    def on_delay(self, name: str, fields: Fields, x: Floats) -> Floats:
        past = self.memory.setdefault(name, [])
        past.append(x)
        late = np.broadcast_to(np.round(np.asarray(fields["delay"]) / self.rules.dt).astype(int), x.shape)
        out = np.zeros(x.shape)
        for at in np.ndindex(x.shape):
            if late[at] < len(past):
                out[at] = past[-1 - late[at]][at]
        return out
