"""Lava's own convolution, with the weights, order and strides that we give it, against the matrix of the same node."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edged.bundle.graph.builder import StepBuilder
from tests.support.lava import Case, lava_python, save_case
from tests.support.tree import ROOT

CODE = """\
import json, sys
from pathlib import Path
import numpy as np
from lava.proc.conv import utils
from edged.engines.worker.lava.network import read
from edged.engines.worker.lava.neurons import lif
from edged.engines.worker.lava.spec import read_graph, read_spec
from edged.engines.worker.lava.wiring import IN_RUNTIME, wire
place = Path(sys.argv[1])
network = read(read_graph(place), read_spec(place))
wired = wire(network, {p.name: lif(p)._asdict() for p in network.populations}, IN_RUNTIME)
(synapse,) = [s for s in wired.synapses if s.source == "x"]
(link,) = [one for one in network.links if one.source == "x"]
conv, order = synapse.process, wired.placed["cell"].order
x = np.random.default_rng(0).normal(0, 1, link.weights.shape[1])
sent = utils.conv(x[synapse.order].reshape(conv.s_in.shape), conv.weight.init, conv.weight.init.shape[1:3],
                  conv.stride.init, conv.padding.init, conv.dilation.init, int(np.ravel(conv.groups.init)[0]))
back = np.empty(link.weights.shape[0])
back[order] = sent.reshape(-1)
wanted = link.weights @ x
print(json.dumps([type(conv).__name__, float(np.abs(back - wanted).max()), float(np.abs(wanted).max())]))
"""


@pytest.mark.parametrize(
    ("kernel", "strides", "pads", "dilations", "groups"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1), 1),
        ((2, 3), (2, 1), (0, 1), (1, 1), 1),
        ((3, 2), (1, 2), (2, 0), (2, 1), 1),
        ((3, 3), (1, 1), (1, 1), (1, 2), 2),
        ((1, 1), (1, 1), (0, 0), (1, 1), 4),
    ],
)
def test_a_convolution_of_lavas_is_the_one_of_the_graph(
    tmp_path: Path,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int],
    dilations: tuple[int, int],
    groups: int,
) -> None:
    rng = np.random.default_rng(1)
    b = StepBuilder("conv")
    weights = rng.normal(0, 1, (8, 4 // groups, *kernel)).astype(np.float32)
    made = b.node(
        "Conv", b.input("x", (4, 7, 9)), b.constant(weights), pads=[*pads, *pads], strides=list(strides),
        dilations=list(dilations), group=groups,
    )  # fmt: skip
    extents = [
        (size + 2 * pad - step * (reach - 1) - 1) // stride + 1
        for size, pad, step, reach, stride in zip((7, 9), pads, dilations, kernel, strides, strict=True)
    ]
    fired = b.neuron("IFZ", made, (8, *extents), name="cell", v_th=1.0, v_reset=0.0)
    flat = b.node("Flatten", fired)
    graph = b.build(b.node("Gemm", flat, b.constant(rng.normal(0, 1, (8 * extents[0] * extents[1], 2)))), 2)
    save_case(tmp_path / "case", Case(graph.model, graph.spec(2), {"x": np.zeros((1, 4, 7, 9), np.float32)}))
    command = [lava_python(), "-c", CODE, str(tmp_path / "case")]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, error, size = json.loads(done.stdout)
    assert name == "Conv"
    assert error < 1e-9 < size
